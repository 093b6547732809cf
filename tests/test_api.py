"""The three lines of a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ldm_ae
from ldm_ae.core.errors import UserError
from tests.pictures import smooth_picture


def test_api_loads_encodes_and_decodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    smooth_picture(1, 64, 48).save(tmp_path / "photo.png")
    model = ldm_ae.load(tiny_model_folder)
    x = ldm_ae.load_image(tmp_path / "photo.png", size=32)
    assert x.shape == (1, 3, 32, 32)
    assert -1 <= x.min() < x.max() <= 1
    latents = model.encode(x).mode()
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(model.decode(latents), model(x, torch.zeros_like(latents)).reconstructions)


def test_invalid_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"photo\.png: "):
        ldm_ae.load_image(tmp_path / "photo.png", size=32)
