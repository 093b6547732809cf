from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.compare import Golden


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(update=request.config.getoption("update_goldens"))


@pytest.fixture(scope="session")
def golden_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.golden.inputs import write_images

    return write_images(tmp_path_factory.mktemp("golden") / "images")


@pytest.fixture(scope="session")
def golden_run(tmp_path_factory: pytest.TempPathFactory, golden_images: Path) -> Callable[[str], Path]:
    """The run directory of a configuration by its name, trained once in this process. Tests only read it."""
    from tests.golden.inputs import train_golden

    folder = tmp_path_factory.mktemp("golden_runs")
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            runs[name] = train_golden(name, folder, golden_images)
        return runs[name]

    return run
