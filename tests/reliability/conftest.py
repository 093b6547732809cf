"""The trials of scripts/reliability in short."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import CLI, run_script

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "reliability"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use `samples` as slow: creating them takes seconds."""
    for item in items:
        here = item.path.is_relative_to(Path(__file__).parent)
        if here and "samples" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny run and store by the real commands, made once; tests leave them as they found them."""
    import samples

    folder = tmp_path_factory.mktemp("samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "ldm_ae", command(folder / "log"))
        return samples.make_samples(folder / "samples")


def command(log: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a stand-in for `samples.ldm_ae`: a fork with both outputs in `log`."""

    def ldm_ae(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        log.unlink(missing_ok=True)
        status = run_script(CLI, words, log)
        return subprocess.CompletedProcess(words, status, "", log.read_text())

    return ldm_ae


@pytest.fixture
def trial() -> Any:
    from trials import Trial

    return Trial(0, "in short", "as the long form")
