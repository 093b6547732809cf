"""Run the tests with the newest and with the oldest versions of the dependencies, and write docs/COMPATIBILITY.md.

Each set of versions is installed into a fresh virtual environment: the newest by pip, as in the README, the oldest
that `pyproject.toml` allows by uv's resolution `lowest-direct`. Only the standard library and uv are needed:

    python scripts/compatibility.py            # both; about half an hour on two cores
    python scripts/compatibility.py oldest --python 3.10
    python scripts/compatibility.py newest --environment .venv/bin/python    # the packages installed there
    python scripts/compatibility.py oldest -- --shuffle 1    # arguments of pytest follow --
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "COMPATIBILITY.md", ROOT / "docs" / "compatibility.json"
BEGIN, END = "<!-- results: written by scripts/compatibility.py -->", "<!-- end of results -->"
KINDS = ("newest", "oldest")
TESTS = ("-n", "logical", "--dist", "worksteal")
# The tests run on this checkout, even if an environment was made for another one.
SETTINGS = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
# A program that runs inside an environment and prints its versions and the kind of CPU.
FACTS = """
import importlib.metadata, json, platform, re, sys, torch
from ldm_ae.core.environment import git_commit
names = {re.match(r"[\\w.-]+", line)[0] for line in importlib.metadata.requires("ldm_ae")} - {"ldm_ae", "ldm-ae"}
installed = {found.name for found in importlib.metadata.distributions()}
versions = {name: importlib.metadata.version(name) for name in sorted(names & installed, key=str.lower)}
print(json.dumps({
    "python": platform.python_version(), "instructions": torch.backends.cpu.get_cpu_capability(),
    "commit": git_commit(sys.argv[1]), "versions": versions,
}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script from the command line; return 1 if a test fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="newest|oldest", help="versions to test (default: both)")
    parser.add_argument(
        "--python", default="{}.{}".format(*sys.version_info), help="Python version (default: %(default)s)"
    )
    parser.add_argument(
        "--environment", metavar="PYTHON", type=Path, help="test the current environment as the named kind of versions"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the warnings of libraries to this file")
    own, additional = split_arguments(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    more = [*([f"--warnings-report={options.report.absolute()}"] if options.report else []), *additional]
    kinds = options.kinds or KINDS
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"unknown versions {', '.join(unknown)}: expected newest or oldest")
    if options.environment is not None and len(kinds) != 1:
        parser.error("--environment tests one kind of versions: give newest or oldest")
    if options.environment is None and shutil.which("uv") is None:
        parser.error("the command uv is missing; install it with: pip install uv")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="ldm-ae-compatibility-") as folder:
            # The path is not resolved: a virtual environment's interpreter is a link.
            python = options.environment and options.environment.absolute()
            python = python or install(kind, options.python, Path(folder))
            results[kind] = run_tests(python, Path(folder), more)
        RESULTS.write_text(json.dumps({name: results[name] for name in KINDS if name in results}, indent=2) + "\n")
        write_tables(results)
    return 1 if any(results[kind]["failed"] for kind in kinds) else 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of this script, and those after `--`, which are pytest's."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end + 1 :])


def install(kind: str, version: str, folder: Path) -> Path:
    """Make a virtual environment with the newest or the oldest versions and return its interpreter."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run(["uv", "venv", "--quiet", "--seed", "--python", version, folder / "venv"], check=True)
    if kind == "newest":
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[dev]"], check=True)
        return python
    # Wheels only: releases without a wheel for this Python would need a compiler and build tools of their time.
    resolve = ["uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--only-binary", ":all:"]
    wanted = folder / "requirements.txt"
    command = [*resolve, "--python", python, "--extra", "dev", "-o", wanted, ROOT / "pyproject.toml"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, "-r", wanted], check=True)
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, "--no-deps", "-e", ROOT], check=True)
    return python


def run_tests(python: Path, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Run the tests in an environment and return their counts, the names of failed ones, versions and kind of CPU."""
    report = folder / "report.xml"
    command = [python, "-m", "pytest", *TESTS, f"--junitxml={report}", *more]
    subprocess.run(command, cwd=ROOT, env=os.environ | SETTINGS, check=False)
    facts = subprocess.run(
        [python, "-c", FACTS, ROOT], env=os.environ | SETTINGS, check=True, capture_output=True, text=True
    ).stdout
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"date": day, "cpu": cpu_name(), **json.loads(facts), **counts(report)}


def counts(report: Path) -> dict[str, Any]:
    """Return how many tests of a JUnit report passed, failed and were skipped, and the names of the failed ones."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = {name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None}
    skipped = {name(case) for case in cases if case.find("skipped") is not None} - failed
    every = {name(case) for case in cases}
    return {
        "passed": len(every - failed - skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": sorted(failed),
    }


def name(case: ElementTree.Element) -> str:
    """Return module and name of a test."""
    return f"{case.get('classname')}::{case.get('name')}"


def cpu_name() -> str:
    """Return the model of this machine's CPU, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else "unknown"


def write_tables(results: dict[str, Any]) -> None:
    """Put results and versions between the two marks of the document."""
    kinds = [kind for kind in KINDS if kind in results]
    rows: list[tuple[str, ...]] = [
        ("", *kinds),
        ("---", *("---" for _ in kinds)),
        *((field, *(str(results[kind][field]) for kind in kinds)) for field in ("date", "commit", "python")),
        ("CPU", *(f"{results[kind]['cpu']}, {results[kind]['instructions']}" for kind in kinds)),
        *((field, *(str(results[kind][field]) for kind in kinds)) for field in ("passed", "failed", "skipped")),
    ]
    names = sorted({package for kind in kinds for package in results[kind]["versions"]}, key=str.lower)
    rows += [(f"`{package}`", *(results[kind]["versions"].get(package, "") for kind in kinds)) for package in names]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = DOCUMENT.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    failures = [f"- {kind}: `{test}`" for kind in kinds for test in results[kind]["failures"]]
    told = "\n".join([table, *(["", "Failed:", "", *failures] if failures else [])])
    DOCUMENT.write_text(pattern.sub(lambda _: f"{BEGIN}\n{told}\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
