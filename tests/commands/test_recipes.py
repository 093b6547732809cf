"""Recipes by name, `ldm-ae recipes`, and the nearest name to a wrong one."""

from __future__ import annotations

import runpy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_ae.cli import main
from ldm_ae.core.nearest import nearest_name, nearest_path
from ldm_ae.core.resources import find_config, recipe_summary, recipes, with_config_paths

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe_begins_with_a_line_that_summarizes_it(path: Path) -> None:
    summary = recipe_summary(path)
    assert path.read_text().startswith(f"# {summary}\n")
    assert summary[0].isupper()
    assert summary.endswith(".")
    assert len(summary) <= 98, "the list is at most 120 columns wide"


def test_recipes_lists_each_recipe_with_its_summary(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[: len(CONFIGS)]] == [
        [path.stem, recipe_summary(path)] for path in CONFIGS
    ]
    assert lines[-1].endswith(f"the files are in {CONFIGS[0].parent}")


@pytest.mark.parametrize("value", ["kl_f8", "kl_f8.yaml"])
def test_config_takes_a_recipe_by_name_from_any_folder(value: str, elsewhere: Path) -> None:
    assert find_config(value) == ROOT / "configs" / "kl_f8.yaml"
    given = ["--seed", "1", "--config", value, f"--config={value}", "--out", "kl_f8"]
    path = str(ROOT / "configs" / "kl_f8.yaml")
    assert with_config_paths(given) == ["--seed", "1", "--config", path, f"--config={path}", "--out", "kl_f8"]


def test_existing_file_is_taken_in_place_of_a_recipe(elsewhere: Path) -> None:
    (elsewhere / "kl_f8").write_text("seed: 1\n")
    assert find_config("kl_f8") == Path("kl_f8")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("kl-f8", "no such configuration file: kl-f8; did you mean the recipe kl_f8?"),
        ("KL_F16.yml", "did you mean the recipe kl_f16?"),
        ("configs/vq_f8.yaml", "did you mean the recipe vq_f8?"),
        ("mine/tiny.yml", "did you mean mine/tiny.yaml? `ldm-ae recipes` lists the recipes"),
        ("mine", "mine is a folder; `ldm-ae recipes`"),
        ("xyz", "no such configuration file: xyz; `ldm-ae recipes`"),
    ],
)
def test_wrong_config_names_the_nearest(
    value: str, words: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "tiny.yaml").write_text("seed: 1\n")
    for arguments in (["--config", value], [f"--config={value}"]):
        assert main(["train", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_training_script_takes_recipes_by_name(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "kl_f99"])
    with pytest.raises(SystemExit) as exited:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert exited.value.code == 2
    assert "did you mean the recipe kl_f" in capsys.readouterr().err


def test_nearest_path_corrects_each_part(elsewhere: Path) -> None:
    (elsewhere / "runs" / "kl_small").mkdir(parents=True)
    assert nearest_path("rusn/kl-small") == Path("runs/kl_small")
    assert nearest_path("runs/kl") == Path("runs/kl_small")
    assert nearest_path(elsewhere / "runs" / "kl_smal") == elsewhere / "runs" / "kl_small"
    assert nearest_path("runs/other") is None
    assert nearest_path("nowhere/kl_small") is None


def test_nearest_name_ignores_case_and_hyphens() -> None:
    names = ["kl_f8", "kl_f16", "quickstart"]
    assert nearest_name("KL-F16", names) == "kl_f16"
    assert nearest_name("quick", names) == "quickstart"
    assert nearest_name("zzz", names) is None


def test_package_contains_the_recipes() -> None:
    setuptools = (ROOT / "pyproject.toml").read_text().splitlines()
    for line in ('  "ldm_ae.recipes",', '"ldm_ae.recipes" = "configs"', '"ldm_ae.recipes" = ["*.yaml"]'):
        assert line in setuptools


@pytest.mark.slow
def test_wheel_contains_the_recipes_and_every_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build writes beside the sources, so that it works on a copy."""
    build_meta: Callable[..., str] = pytest.importorskip("setuptools.build_meta").build_wheel
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ldm_ae", "configs", "scripts", "checkpoints"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    monkeypatch.chdir(source)
    wheel = build_meta(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        names = set(archive.namelist())
        packed = {name for name in names if name.startswith("ldm_ae/recipes/")}
        archive.extractall(tmp_path / "site")
    assert packed == {f"ldm_ae/recipes/{path.name}" for path in CONFIGS}
    assert names >= {str(path.relative_to(source)) for path in (source / "ldm_ae").rglob("*") if path.is_file()}
    monkeypatch.setattr("ldm_ae.core.resources._PACKAGE", tmp_path / "site" / "ldm_ae")
    assert recipes() == {path.stem: tmp_path / "site" / "ldm_ae" / "recipes" / path.name for path in CONFIGS}
