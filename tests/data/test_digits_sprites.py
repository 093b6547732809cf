"""The digits of scikit-learn, and the sprites of known factors."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import Subset, open_source, sprites
from ldm_ae.data.sources.sprites import SpritesSource
from ldm_ae.data.sprites import COUNTS, SHAPES, TOTAL, Factors, draw, factors, factors_of_key, key


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_digits_are_those_of_scikit_learn_in_a_stratified_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    splits = {split: open_source(f"digits:{split}") for split in ("train", "test")}
    numbers = {split: [int(source.key(i)[6:]) for i in range(len(source))] for split, source in splits.items()}
    assert sorted(numbers["train"] + numbers["test"]) == [*range(1797)]
    counts = Counter(digits.target[numbers["test"]].tolist())
    assert {*counts} == {*range(10)}
    assert {*counts.values()} <= {29, 30}
    for source, rows in zip(splits.values(), numbers.values(), strict=True):
        for i in (0, 7, len(source) - 1):
            raw = source[i]
            assert raw.label == digits.target[rows[i]]
            assert np.abs(pixels(raw.data) / 255 * 16 - digits.images[rows[i]]).max() < 0.04  # half a level of 256
    assert not Subset(splits["test"], [0]).labels_hold_mirrored()  # a mirrored 2 is not a 2
    with pytest.raises(UserError, match="no digits 'digits:valid'; there are digits:train and digits:test"):
        open_source("digits:valid")


def test_sprites_are_every_combination_once() -> None:
    order = sprites._order()
    assert len(np.unique(order)) == TOTAL == np.prod(COUNTS)
    assert factors(0) == Factors(*np.unravel_index(order[0], COUNTS))  # type: ignore[arg-type]
    # The first sample is part of the format: recorded keys and seeds of published figures refer to it.
    assert [key(factors(i)) for i in (0, 1)] == [
        "square-scale3-rotation02-x23-y10", "ellipse-scale4-rotation25-x25-y28",
    ]  # fmt: skip
    assert all(factors_of_key(key(factors(i))) == factors(i) for i in range(50))
    for name in ("heart", "heart-scale9-rotation07-x12-y31", "heart-scale1-rotation07-x12-z31", "star-scale1-r-x-y"):
        with pytest.raises(UserError, match="expected the key of a sprite"):
            factors_of_key(name)
    with pytest.raises(UserError, match="expected a sample from 0 to 737279, got 737280"):
        factors(TOTAL)


@pytest.mark.parametrize("shape", range(3))
def test_sprites_move_turn_and_grow_by_their_factors(shape: int) -> None:
    base = draw(Factors(shape, 5, 0, 0, 0))
    assert base.shape == (64, 64)
    assert {*np.unique(base)} == {0, 255}
    for x, y in ((31, 0), (0, 31), (31, 31)):
        # From end to end they move by 40 pixels.
        assert np.array_equal(draw(Factors(shape, 5, 0, x, y)), np.roll(base, (40 * y // 31, 40 * x // 31), (0, 1)))
    areas = [(draw(Factors(shape, scale, 7, 16, 16)) > 0).sum() for scale in range(6)]
    assert areas == sorted(set(areas))
    assert areas[-1] / areas[0] == pytest.approx(4, rel=0.15)
    turned = draw(Factors(shape, 5, 10, 31, 31))[20:, 20:]  # a quarter of a turn, clockwise, around pixel (52, 52)
    still = draw(Factors(shape, 5, 0, 31, 31))
    assert np.array_equal(turned[20:44, 20:44], np.rot90(still[40:64, 40:64], -1))
    for rotation in range(0, 40, 3):
        for x, y in ((0, 0), (31, 31)):
            image = draw(Factors(shape, 5, rotation, x, y))
            assert not image[[0, -1]].any()  # none is cut off
            assert not image[:, [0, -1]].any()
    with pytest.raises(UserError, match="expected rotation from 0 to 39, got 40"):
        draw(Factors(shape, 5, 40, 0, 0))


def test_sprites_of_a_range_are_disjoint_and_have_their_factors() -> None:
    source, more = open_source("sprites:6"), open_source("sprites:6-9")
    assert isinstance(source, SpritesSource)
    assert isinstance(more, SpritesSource)
    assert (len(source), len(more)) == (6, 3)
    assert [more.factors(i) for i in range(3)] == [factors(6), factors(7), factors(8)]
    raw = source[2]
    assert factors_of_key(raw.key) == factors(2)
    assert raw.label == factors(2).shape
    assert (raw.caption or "").startswith(SHAPES[factors(2).shape])
    assert np.array_equal(pixels(raw.data), draw(factors(2)))
    for location in ("sprites:0", "sprites:9-9", "sprites:737281", "sprites:x"):
        with pytest.raises(UserError, match=f"there are no sprites '{location}'"):
            open_source(location)


def test_folders_of_these_names_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits:train", "sprites:3"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "mine.png")
        assert open_source(name).key(0) == "mine.png"
