"""An exploration of labelled pictures by a tiny model of each kind, made once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import ldm_ae
from ldm_ae.exploration import Exploration
from ldm_ae.models import Autoencoder, KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ
from tests.pictures import write_class_folders

SMALL = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False,
}  # fmt: skip


class Made(NamedTuple):
    """An exploration, its model and its images."""

    exploration: Exploration
    model: Autoencoder
    images: Path
    page: Path


def make(model: Autoencoder, root: Path) -> Made:
    images = write_class_folders(root / "images")
    found = ldm_ae.explore(model.eval(), images, size=16, out=root / "out", pictures=4, device="cpu")
    assert found.page is not None
    return Made(found, model, images, found.page)


@pytest.fixture(scope="session")
def continuous(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    return make(KLAutoencoder(latent_channels=3, **SMALL), tmp_path_factory.mktemp("continuous"))


@pytest.fixture(scope="session")
def discrete(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    model = VQAutoencoder(quantizer=VQ(8, 3), **SMALL)
    return make(model, tmp_path_factory.mktemp("discrete"))
