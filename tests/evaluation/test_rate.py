"""The rate of a discrete model's codes under a prior, as evaluation reports it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import evaluate, write_report
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.models import Autoencoder, KLAutoencoder, model_hash
from ldm_ae.priors import CausalTransformer, CodePrior, GatedPixelCNN, SavedPrior
from ldm_ae.quantizers import VQ, ResidualVQ
from tests.evaluation.stubs import loader, pictures
from tests.evaluation.test_codebook import counted, discrete
from tests.priors.common import spread


def run(model: Autoencoder, prior: CodePrior, hash_of_model: str | None = None) -> Evaluation:
    saved = SavedPrior(prior, model_hash(model) if hash_of_model is None else hash_of_model, "runs/prior")
    return evaluate(
        model, loader(4), source="four pictures", transform_description={}, model_name="tiny", device="cpu", pictures=2,
        prior=saved,
    )  # fmt: skip


def test_rate_is_the_negative_log_probability_per_pixel(tmp_path: Path) -> None:
    model = discrete(VQ(32, 4))
    prior = spread(GatedPixelCNN(codebook_size=32, shape=(16, 16), classes=2, width=8, depth=2))
    result = run(model, prior)
    with torch.no_grad():
        indices = model.encode(pictures(4)).indices
    bits = prior.bits(indices) / 1024
    # float32 logits of sizes around 10 are right to 1e-6, whatever the batch.
    assert [row.scores["prior_bits_per_pixel"] for row in result.images] == pytest.approx(bits.tolist(), rel=1e-5)
    assert result.scores["prior_bits_per_pixel"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert result.protocol["codebook"]["prior"]["name"] == "runs/prior"  # type: ignore[index]
    assert result.protocol["codebook"]["prior"]["class"] == "GatedPixelCNN"  # type: ignore[index]
    page = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert "Rate under the prior, bits per pixel" in page
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert scores["prior_bits_per_pixel"] == result.scores["prior_bits_per_pixel"]
    assert any(line.startswith("prior_bits_per_pixel") for line in summary_lines(result))


@pytest.mark.parametrize("levels", [1, 2])
def test_uniform_prior_has_the_fixed_length_rate(levels: int) -> None:
    quantizer = VQ(32, 4) if levels == 1 else ResidualVQ(VQ(32, 4), levels)
    shape = (16, 16) if levels == 1 else (levels, 16, 16)
    prior = CausalTransformer(codebook_size=32, shape=shape, width=32, depth=1).eval()
    torch.nn.init.zeros_(prior.net.lm_head.weight)
    result = run(discrete(quantizer), prior)
    assert result.scores["prior_bits_per_pixel"] == pytest.approx(levels * 5 / 4, rel=1e-6)
    assert result.scores["bits_per_pixel"] == pytest.approx(levels * 5 / 4, rel=1e-6)


def test_mismatched_priors_are_refused() -> None:
    model = discrete(VQ(32, 4))
    prior = GatedPixelCNN(codebook_size=32, shape=(8, 8), width=8, depth=1)
    with pytest.raises(UserError, match=r"needs images with \(8, 8\) codes, got \(16, 16\)"):
        run(model, prior)
    with pytest.raises(UserError, match="codes of another model"):
        run(model, prior, "0" * 64)
    kl = KLAutoencoder(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    with pytest.raises(UserError, match="codes of another model"):
        run(kl, prior, model_hash(model))


def test_rate_of_other_images_uses_the_counted_frequencies() -> None:
    """Codes 0, 1, 2 occurred 4, 2, 2 times of 8 codes; each once more, of 16 in all, and a code that never did."""
    found = counted(torch.tensor([[[0, 0], [1, 2]], [[0, 1], [2, 0]]]), 8)
    bits = found.bits(torch.tensor([[[0, 0], [0, 0]], [[0, 1], [2, 7]]]))
    expected = [4 * math.log2(16 / 5), math.log2(16 / 5) + 2 * math.log2(16 / 3) + 4]
    assert bits.tolist() == pytest.approx(expected)
    levels = counted(torch.stack([torch.zeros(1, 2, 2), torch.arange(4).view(1, 2, 2)], dim=1).long(), 4)
    bits = levels.bits(torch.tensor([[[[0, 0]], [[3, 3]]]]))
    assert bits.tolist() == pytest.approx([2 * math.log2(8 / 5) + 2 * 2.0])
