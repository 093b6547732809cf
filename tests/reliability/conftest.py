"""The trials of scripts/reliability in short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reliability"


@pytest.fixture(scope="session", autouse=True)
def _scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny run and store by the real commands, made once; tests leave them as they found them."""
    from samples import make_samples

    return make_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def trial() -> Any:
    from trials import Trial

    return Trial(0, "in short", "as the long form")
