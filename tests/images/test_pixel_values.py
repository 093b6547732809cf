"""Specifications of images other than RGB in 8 bits: values, conversion of stored samples, text and JSON."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.images.missing import MISSING
from ldm_ae.images.pixels import GREY, RGB, RGBA, PixelSpec
from ldm_ae.images.uint8 import from_levels, to_uint8

GREY16 = PixelSpec(channels=1, meaning="grey", bits=16)
CT = PixelSpec(channels=1, meaning="grey", bits=16, low=(-1024.0,), high=(3071.0,))
BANDS = PixelSpec(
    channels=3, meaning="channels", names=("B02", "B03", "B08"), bits=0, low=(0.0,), high=(0.5, 0.5, 1.0),
    missing=math.nan,
)  # fmt: skip


def test_defaults_of_a_spec_follow_from_meaning_and_bits() -> None:
    assert (RGB.names, RGB.low, RGB.high) == (("red", "green", "blue"), (0.0,) * 3, (255.0,) * 3)
    assert RGBA.names[-1] == "alpha"
    assert (GREY.mode, RGBA.mode, GREY16.high) == ("L", "RGBA", (65535.0,))
    assert BANDS.low == (0.0,) * 3
    floats = PixelSpec(channels=2, meaning="channels", bits=0)
    assert (floats.names, floats.high) == (("channel 0", "channel 1"), (1.0, 1.0))
    assert [spec.dtype.name for spec in (RGB, GREY16, CT, BANDS)] == ["uint8", "uint16", "int16", "float32"]


def test_rgb_converts_exactly_as_levels_do() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).unsqueeze(1)
    assert torch.equal(RGB.normalize(levels), from_levels(levels))
    odd = torch.linspace(-1.4, 1.4, 9973).repeat(3, 1).unsqueeze(1)
    assert torch.equal(RGB.denormalize(odd), to_uint8(odd))


@pytest.mark.parametrize("spec", [GREY16, CT, PixelSpec(channels=1, meaning="grey", bits=16, high=(1023.0,))])
def test_every_integer_sample_survives_the_round_trip(spec: PixelSpec) -> None:
    stored = torch.arange(int(spec.low[0]), int(spec.high[0]) + 1, dtype=torch.int32).view(1, 1, -1)
    values = spec.normalize(stored)
    assert values.dtype == torch.float32
    assert (float(values.min()), float(values.max())) == (-1.0, 1.0)
    assert torch.equal(spec.denormalize(values).to(torch.int32), stored)


def test_fractional_limits_round_to_samples_between_them() -> None:
    spec = PixelSpec(channels=1, meaning="grey", bits=16, low=(10.5,), high=(99.5,), clip=True)
    stored = spec.denormalize(torch.tensor([-3.0, 3.0]).view(1, 1, 2))
    assert stored.to(torch.int32).flatten().tolist() == [11, 99]
    assert spec.normalize(torch.tensor([[[0, 500]]])).flatten().tolist() == [-1.0, 1.0]
    assert spec.normalize(torch.tensor([[[55]]])).item() == pytest.approx(0.0)


def test_channels_have_their_own_limits() -> None:
    stored = torch.full((2, 3, 1, 1), 0.25)
    assert BANDS.normalize(stored)[1].flatten().tolist() == [0.0, 0.0, -0.5]
    assert torch.allclose(BANDS.denormalize(BANDS.normalize(stored)), stored)


def test_missing_samples_are_masked_and_become_the_value_of_missing_data() -> None:
    stored = torch.tensor([0.5, math.nan, 1.0]).view(3, 1, 1)
    assert BANDS.mask(stored).flatten().tolist() == [True, False, True]
    assert BANDS.normalize(stored).flatten().tolist() == [1.0, MISSING, 1.0]
    nodata = PixelSpec(channels=1, meaning="grey", bits=16, missing=65535)
    samples = torch.from_numpy(np.array([[[65535, 7]]], dtype=np.uint16))
    assert nodata.mask(samples).flatten().tolist() == [False, True]
    assert nodata.normalize(samples).flatten()[0] == MISSING
    assert GREY.mask(torch.zeros(1, 2, 2)).all()


def test_specs_with_nan_are_equal_after_pickle_and_json() -> None:
    for spec in (RGB, GREY16, CT, BANDS, RGBA):
        for copy in (pickle.loads(pickle.dumps(spec)), PixelSpec.from_json(spec.to_json())):
            assert (copy == spec, hash(copy) == hash(spec)) == (True, True)
    assert len({RGB, GREY, GREY16, CT, BANDS}) == 5
    assert BANDS.to_json() == {
        "meaning": "channels", "channels": 3, "bits": 0, "names": ["B02", "B03", "B08"], "high": [0.5, 0.5, 1.0],
        "missing": "nan",
    }  # fmt: skip


def test_recipes_give_a_name_or_a_mapping() -> None:
    assert PixelSpec.from_json("rgb") == PixelSpec.from_json({}) == RGB
    assert PixelSpec.from_json({"meaning": "grey", "bits": 16}) == GREY16
    spec = PixelSpec.from_json({"channels": 2, "bits": 16, "low": 100, "high": [4095, 8191.5]})
    assert (spec.meaning, spec.low, spec.high) == ("channels", (100.0, 100.0), (4095.0, 8191.5))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cmyk", "meaning is 'cmyk'; it must be one of rgb, grey, rgba, channels"),
        (4, "pixels must be rgb, grey, rgba or a mapping with channels, got 4"),
        ({"chanels": 4}, "has no option chanels; it has meaning, channels"),
        ({"meaning": "channels"}, "whose number is missing; set channels"),
        ({"channels": "4"}, "channels must be a whole number above 0, got '4'"),
        ({"meaning": "rgb", "channels": 4}, r"images are rgb \(4 channels in \[-1, 1\]\); supported"),
        ({"channels": 2, "bits": 12}, r"bits must be 8, 16 or 0 \(floating point\), got 12"),
        ({"channels": 2, "low": [1, 2, 3]}, "low has 3 values for 2 channels"),
        ({"channels": 2, "names": "ab"}, "names must be a list, got 'ab'"),
        ({"channels": 2, "names": ["a", "a"]}, "names must differ, got a, a"),
        ({"channels": 2, "low": 5, "high": [7, 5]}, "channel 1: low must be a number below high, got 5 and 5"),
        ({"channels": 2, "high": 4095}, "samples of 8 bits are 0 to 255, got low 0 and high 4095; set bits to 16"),
        ({"channels": 2, "high": "much"}, "high must be a number, got 'much'"),
        ({"channels": 2, "missing": "nan"}, "missing is nan; samples of 8 bits cannot hold it"),
    ],
)
def test_impossible_specs_are_refused_in_one_line(value: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        PixelSpec.from_json(value)
    assert len(str(error.value).splitlines()) == 1


def test_text_states_what_differs_from_eight_bits() -> None:
    assert str(GREY16) == "grey (1 channel of 16 bits in [-1, 1])"
    assert str(CT) == "grey (1 channel of 16 bits from -1024 to 3071 in [-1, 1])"
    assert str(BANDS) == (
        "channels (3 channels B02, B03, B08 of floating point from 0 to 0.5/0.5/1 without nan in [-1, 1])"
    )
