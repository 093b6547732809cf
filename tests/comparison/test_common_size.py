"""The size at which several models are compared."""

from __future__ import annotations

import pytest

from ldm_ae.comparison.common_size import Sizes, common_size
from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models import LatentSpec

GREY = PixelSpec(channels=1, meaning="grey")


def vector(side: int) -> Sizes:
    """The sizes of a model of one vector, which takes images of one size."""
    return Sizes(
        spec=LatentSpec(channels=10, downsample_factor=side, image_size=side, scaling_factor=1.0),
        trained=side,
        pixels=GREY,
    )


def test_models_of_one_size_are_compared_at_it() -> None:
    assert common_size([vector(28), vector(28)], size=None).transform.describe()["size"] == [28, 28]


def test_models_of_different_sizes_have_no_common_one() -> None:
    with pytest.raises(UserError, match="some models take images of 16x16 and 28x28 only; compare models that take"):
        common_size([vector(28), vector(16)], size=None)
