"""Fixtures of the latent store's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import encode


@pytest.fixture
def store(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> Path:
    """A complete store of the twelve images: shards of five, five and two."""
    encode(tiny_model, image_folder, tmp_path / "store")
    return tmp_path / "store"
