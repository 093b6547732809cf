"""Tiny models and images that many tests share. Nothing here needs a network, a GPU or another test.

Imports of torch stand inside the fixtures: pytest-xdist's main process, which runs no test, starts seconds earlier.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import shuffling, warning_policy
from tests.pictures import write_class_folders
from tests.shuffling import pytest_collection_modifyitems
from tests.warning_policy import pytest_configure

if TYPE_CHECKING:
    from ldm_ae.models import KLAutoencoder
    from tests.browser import Browser

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]  # pytest finds hooks here


def pytest_addoption(parser: pytest.Parser) -> None:
    warning_policy.add_options(parser)
    shuffling.add_options(parser)
    parser.addoption("--update-goldens", action="store_true", help="write what tests/golden expects anew")


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"  # the models are so small that a second thread costs more than it gives
os.environ["LDM_AE_BF16_SPEED"] = "1"  # `auto` is fp32 on every machine, and nothing is timed


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """The same random numbers for each test, and an Accelerate that remembers no precision of another one."""
    import torch
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Spare the garbage collector what imports and earlier modules have left: it would look at a million objects again
    in every full collection, and Accelerate asks for one whenever it frees a run's networks."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_model() -> KLAutoencoder:
    """Downsample factor 4, 4 latent channels, about 60,000 parameters, random weights."""
    from ldm_ae.models import KLAutoencoder

    return KLAutoencoder(
        block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False,
    )  # fmt: skip


@pytest.fixture
def tiny_model_folder(tiny_model: KLAutoencoder, tmp_path: Path) -> Path:
    """The tiny model saved as a diffusers folder."""
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Twelve PNG images in two class folders, sizes from 40 to 62 pixels."""
    return write_class_folders(tmp_path / "images")


@pytest.fixture
def patch_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network class of `tests.models.patch_linear`, installed as another package's."""
    from importlib.metadata import EntryPoint

    from ldm_ae.core import registry
    from ldm_ae.models.adapters import AUTOENCODERS

    point = EntryPoint("patch_linear", "tests.models.patch_linear", registry.PLUGINS)
    monkeypatch.setattr(registry, "plugin_entry_points", lambda: [point])
    monkeypatch.setattr(AUTOENCODERS, "_others", None)


@pytest.fixture(scope="session")
def window() -> Iterator[Browser]:
    """A tab of a headless browser; the test is skipped where there is none."""
    from tests.browser import PROGRAMS, browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip(f"no Chromium here: CHROME is not set, and none of {', '.join(PROGRAMS)} is on the path")
    with browser(program) as opened:
        yield opened
