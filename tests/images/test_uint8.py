"""Levels and pixel values."""

import pytest
import torch

from ldm_ae.images.uint8 import from_levels, to_levels, to_uint8


def test_uint8_roundtrip_preserves_every_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    pixel_values = from_levels(levels)
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values, levels.to(torch.float32).div(127.5).sub(1.0))
    assert torch.equal(to_uint8(pixel_values), levels)
    assert torch.equal(from_levels(to_levels(pixel_values)), pixel_values)


@pytest.mark.parametrize(("value", "level"), [(-2.0, 0), (-1.0, 0), (0.0, 128), (0.999, 255), (1.5, 255)])
def test_values_are_clamped_and_rounded(value: float, level: int) -> None:
    assert to_uint8(torch.tensor([value])).tolist() == [level]


def test_from_levels_does_not_modify_its_input() -> None:
    levels = torch.tensor([0.0, 255.0])
    assert from_levels(levels).tolist() == [-1.0, 1.0]
    assert levels.tolist() == [0.0, 255.0]
