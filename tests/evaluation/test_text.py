"""Text that is rendered, reconstructed and read again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.metrics.text import ALPHABET, SIZES, UNREADABLE, TextError, fraction_of_errors, read, sheet
from ldm_ae.evaluation.scoring import Scoring
from tests.evaluation.stubs import IdentityAutoencoder, pictures

KEYS = {"text_error", *(f"text_error_{size}" for size in SIZES)}


class Blurred(IdentityAutoencoder):
    """Reconstructions are averaged over 16 x 16 pixels."""

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(latents, 16), scale_factor=16, mode="bilinear")


def measure(model: IdentityAutoencoder) -> Scoring:
    scoring = Scoring([TextError()], Setting(model=model, device=torch.device("cpu")))
    images = pictures(2)
    scoring.update(images, images, model.encode(images))
    return scoring


@pytest.mark.parametrize("size", SIZES)
def test_originals_are_read_without_an_error(size: int) -> None:
    written = sheet(size, 256)
    assert read(written.levels, written) == written.lines
    text = "".join(written.lines)
    assert {character.lower() for character in text} == {character.lower() for character in ALPHABET} | {" "}
    # Neither brightness nor contrast matters.
    assert read(written.levels * 0.1 + 7.0, written) == written.lines


def test_perfect_model_has_no_errors_and_blur_has_many() -> None:
    scoring = measure(IdentityAutoencoder())
    assert scoring.compute() == dict.fromkeys(KEYS, 0.0)
    details = scoring.details["text_error"]
    assert set(details) == {str(size) for size in SIZES}
    assert all(lines["read"] == lines["written"] for lines in details.values())
    blurred = measure(Blurred())
    found = blurred.compute()
    assert set(found) == KEYS
    assert all(found[f"text_error_{size}"] > 0.8 for size in (8, 12, 16))
    assert found["text_error_8"] > found["text_error_32"] > 0.1
    assert found["text_error"] == pytest.approx(sum(found[f"text_error_{size}"] for size in SIZES) / len(SIZES))
    lines = blurred.details["text_error"]["12"]
    assert fraction_of_errors(lines["written"], lines["read"]) == found["text_error_12"]


def test_errors_are_counted_without_spaces() -> None:
    assert fraction_of_errors(("ab c", "de f"), ("ab c", "dx f")) == pytest.approx(1 / 6)


def test_replaced_character_is_read_as_what_it_looks_like() -> None:
    written = sheet(16, 256)
    height, width = written.templates.shape[1:]
    levels = written.levels.clone()
    levels[:height, :width] = written.templates[ALPHABET.index("7")]
    levels[:height, width : 2 * width] = 128.0
    first = read(levels, written)[0]
    assert first[:2] == "7" + UNREADABLE
    assert first[2:] == written.lines[0][2:]


def test_model_that_refuses_the_images_is_skipped() -> None:
    class Small(IdentityAutoencoder):
        def encode(self, pixel_values):
            if pixel_values.shape[-1] > 32:
                raise UserError("only 32 pixels")
            return super().encode(pixel_values)

    scoring = measure(Small())
    assert scoring.compute() == {}
    assert scoring.skipped == {"text_error": "Misread text reconstructs images of 256 pixels: only 32 pixels"}
    without = Scoring([TextError()], Setting(model=None, device=torch.device("cpu")))
    assert without.skipped == {"text_error": "Misread text needs a model"}
