"""Codebook usage: hand-computed values, and the evaluation of a discrete model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_ae.evaluation import evaluate, write_report
from ldm_ae.evaluation.metrics.codebook import CodebookSummary, CodebookUsage
from ldm_ae.evaluation.report.codebook_page import codebook_section
from ldm_ae.evaluation.report.pictures import code_picture
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.models import VQAutoencoder
from ldm_ae.quantizers import FSQ, LFQ, VQ, Quantizer, ResidualVQ
from tests.evaluation.stubs import MeanDistance, loader, pictures
from tests.evaluation.test_report import Page

WIDTHS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def counted(indices: torch.Tensor, size: int) -> CodebookSummary:
    usage = CodebookUsage(size)
    for image in indices:
        usage.update(image[None], pixels=64)
    found = usage.summary()
    assert found is not None
    return found


def test_codebook_usage_equals_hand_computed_values() -> None:
    """Code 0 in half of the places, codes 1 and 2 in a quarter each, of 8 codes: 1.5 bits, perplexity 2^1.5."""
    indices = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [2, 0]]])
    found = counted(indices, 8)
    scores = found.scores()
    assert scores == pytest.approx({
        "entropy_bits_per_pixel": 1.5 * 8 / 128, "codebook_usage": 3 / 8, "codebook_perplexity": 2**1.5,
        "codebook_entropy_bits": 1.5, "codebook_dead_codes": 5,
    })  # fmt: skip
    # 4 and 2 times the uniform frequency: a code at a boundary belongs to the upper class.
    assert found.histogram() == [5, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0]
    assert found.line() == "codebook: 3 of 8 codes in use over 8 places, 1.50 of 3.00 bits per code"
    assert found.describe()["fixed_bits"] == 3.0
    json.dumps(found.describe(), allow_nan=False)


def test_residual_levels_are_separate_and_their_bits_add_up() -> None:
    """Level 0 has one code, level 1 four alike."""
    indices = torch.stack([torch.zeros(1, 2, 2, dtype=torch.int64), torch.arange(4).view(1, 2, 2)], dim=1)
    found = counted(indices, 4)
    assert found.counts.tolist() == [[4, 0, 0, 0], [1, 1, 1, 1]]
    assert found.entropies.tolist() == pytest.approx([0.0, 2.0])
    scores = found.scores()
    assert scores["entropy_bits_per_pixel"] == pytest.approx((0.0 + 2.0) * 4 / 64)
    assert (scores["codebook_usage"], scores["codebook_dead_codes"]) == (5 / 8, 3)
    assert scores["codebook_perplexity"] == pytest.approx((1.0 + 4.0) / 2)
    assert "level 1: 4 of 4 codes, 2.00 bits per code" in codebook_section(found)


def test_very_large_codebook_is_not_counted() -> None:
    usage = CodebookUsage(2**21)
    usage.update(torch.zeros(1, 2, 2, dtype=torch.int64), pixels=16)
    assert usage.summary() is None
    assert codebook_section(None) == ""


def test_codebook_image_has_a_pixel_for_each_code() -> None:
    # Seven codes in 3 x 3: two places are empty. The uniform frequency is 8 / 7.
    picture = np.array(code_picture(torch.tensor([0, 1, 7, 0, 0, 0, 0])).convert("RGB"))
    assert picture.shape == (3, 3, 3)
    brightness = picture.astype(int).sum(axis=2).flatten()
    assert (brightness[[0, 3, 4, 5, 6]] == brightness[0]).all()
    assert brightness[0] < brightness[1] < brightness[2]
    assert (picture[2, 1:] == 128).all()


def discrete(quantizer: Quantizer) -> VQAutoencoder:
    model = VQAutoencoder(quantizer=quantizer, **WIDTHS).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            if name.endswith("embedding.weight"):
                value.normal_(std=0.3)
    return model


def run(model: VQAutoencoder) -> Evaluation:
    return evaluate(
        model, loader(), source="six pictures", transform_description={}, model_name="tiny", device="cpu",
        perceptual=MeanDistance(), pictures=2,
    )  # fmt: skip


def test_rate_and_entropy_of_a_discrete_model_are_reported(tmp_path: Path) -> None:
    model = discrete(VQ(32, 4))
    result = run(model)
    with torch.no_grad():
        indices = model.encode(pictures(6)).indices
    assert indices is not None
    shares = torch.bincount(indices.flatten(), minlength=32).double() / indices.numel()
    entropy = float(-(shares[shares > 0] * shares[shares > 0].log2()).sum())
    assert not any(name.startswith("kl_") for name in result.scores)
    # One code of 5 bits for each 2 x 2 pixels.
    assert result.scores["bits_per_pixel"] == pytest.approx(5 / 4)
    # Batches of 4 and 2 against one of 6 could move a latent across the border of two codes.
    assert result.scores["codebook_entropy_bits"] == pytest.approx(entropy, abs=0.01)
    assert result.scores["entropy_bits_per_pixel"] == pytest.approx(result.scores["codebook_entropy_bits"] / 4)
    assert 0 < entropy < 5
    assert result.protocol["codebook"]["counted"] == 6 * 16 * 16  # type: ignore[index]
    # 5 bits x 256 are 160 bytes, which is 7 x 7 colour pixels, rounded; the latents are 1024 numbers.
    assert result.protocol["baseline"]["thumbnail_size"] == "7x7"  # type: ignore[index]
    assert "as many bytes as the codes" in result.protocol["baseline"]["method"]  # type: ignore[index]
    (line,) = [line for line in summary_lines(result) if line.startswith("codebook:")]
    assert f"{entropy:.1f}" in line
    page = Page(write_report(result, tmp_path).read_text(encoding="utf-8"))
    assert "Codes in use" in page.text
    assert line[len("codebook: ") :] in page.text
    assert "Entropy, bits per pixel" in page.text
    (image,) = [attributes for attributes in page.all("img") if attributes["alt"] == "codes of level 0"]
    assert (image["src"] or "").startswith("data:image/png;base64,")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert sum(metrics["codebook"]["histogram"]["codes"]) == 32
    assert metrics["codebook"]["histogram"]["codes"][0] == result.scores["codebook_dead_codes"]


@pytest.mark.parametrize(
    ("quantizer", "bits", "levels"),
    [(FSQ((5, 4, 3)), math.log2(60), 1), (ResidualVQ(quantizer=LFQ(4), levels=2), 8.0, 2)],
)
def test_codebook_report_supports_every_quantizer(
    quantizer: Quantizer, bits: float, levels: int, tmp_path: Path
) -> None:
    result = run(discrete(quantizer))
    assert result.scores["bits_per_pixel"] == pytest.approx(bits / 4, rel=1e-6)
    assert result.codebook is not None
    assert result.codebook.levels == levels
    assert result.scores["entropy_bits_per_pixel"] <= result.scores["bits_per_pixel"]
    write_report(result, tmp_path)


def test_uncounted_codebook_still_has_a_rate() -> None:
    result = run(discrete(LFQ(24)))
    assert result.codebook is None
    assert result.scores["bits_per_pixel"] == pytest.approx(24 / 4)
    assert "codebook_usage" not in result.scores
    assert "too large" in result.protocol["codebook"]["counted"]  # type: ignore[index]
