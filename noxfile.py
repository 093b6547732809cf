"""The commands that a contributor needs: `nox -s tests`, `lint`, `types`, `site` or `compat` (`pip install nox`)."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on all cores; arguments after -- go to pytest: `nox -s tests -- -m "not slow"`."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-n", "logical", "--dist", "worksteal", *session.posargs, env={"HF_HUB_OFFLINE": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and import rules."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation site and fail on any warning; it goes into the session's temporary folder."""
    session.install("-e", ".[docs]")
    folder = f"{session.create_tmp()}/site"
    session.run("mkdocs", "build", "--strict", "--site-dir", folder, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def compat(session: nox.Session) -> None:
    """Run the tests with the newest and the oldest dependencies and write docs/COMPATIBILITY.md."""
    session.install("uv")
    session.run("python", "scripts/compatibility.py", *session.posargs)
