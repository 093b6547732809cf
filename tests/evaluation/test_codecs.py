"""JPEG and WebP as yardsticks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.evaluation.codecs import CODECS, Codec, code_images
from ldm_ae.evaluation.metrics.psnr import psnr
from tests.pictures import smooth_picture


def pixel_values(count: int) -> torch.Tensor:
    arrays = [np.array(smooth_picture(i, 64, 48).convert("RGB")) for i in range(count)]
    return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float() / 127.5 - 1


@pytest.mark.parametrize("codec", CODECS)
def test_higher_codec_quality_uses_more_bits_and_raises_psnr(codec: Codec) -> None:
    images = pixel_values(2)
    coarse, fine = code_images(images, codec, 5), code_images(images, codec, 90)
    assert (coarse.bits < fine.bits).all()
    assert (psnr(coarse.reconstructions, images) < psnr(fine.reconstructions, images)).all()
    assert fine.reconstructions.shape == images.shape


def test_codec_bits_equal_the_file_size(tmp_path: Path) -> None:
    images = pixel_values(1)
    picture = Image.fromarray(np.array(smooth_picture(0, 64, 48).convert("RGB")))
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=30, optimize=True)
    coded = code_images(images, "jpeg", 30)
    assert coded.bits.tolist() == [8 * len(file.getvalue())]
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(coded.reconstructions[0], expected)
