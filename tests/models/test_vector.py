"""Autoencoders with one vector of latents; tests/models/test_contract.py has all that every class promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.losses import Bernoulli
from ldm_ae.models.adapters.vector import VectorAutoencoder


def test_mlp_is_the_textbooks() -> None:
    """784-512-256-20 and back: the encoder's last layer gives 20 means and 20 log-variances."""
    model = VectorAutoencoder(pixels="grey", image_size=28, architecture="mlp", act_fn="relu")
    shapes = [tuple(p.shape) for name, p in model.net.named_parameters() if name.endswith("weight")]
    assert shapes == [(512, 784), (256, 512), (40, 256), (256, 20), (512, 256), (784, 512)]
    assert sum(isinstance(module, torch.nn.ReLU) for module in model.net.modules()) == 4


@pytest.mark.parametrize("architecture", ["convolutional", "mlp"])
def test_bounded_reconstructions_are_probabilities_of_finite_logarithm(architecture: str) -> None:
    """Whatever the decoder gives: 2 sigmoid(l) - 1 with l limited to 10, and l itself near 0."""
    model = VectorAutoencoder.example("MLPVAE" if architecture == "mlp" else "VectorVAE")
    outputs = torch.tensor([-1e6, -10.0, -0.1, 0.0, 0.1, 1e6])
    images = model.net.to_images(outputs)
    logits = torch.special.logit((images.double() + 1) / 2)
    torch.testing.assert_close(logits[[0, 5]], torch.tensor([-10.0, 10.0]).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(logits[1:5], 10 * torch.tanh(outputs[1:5].double() / 10), rtol=1e-3, atol=1e-6)
    worst = Bernoulli()(images.view(-1, 1, 1, 1), -images.sign().view(-1, 1, 1, 1))
    assert float(worst.max()) == pytest.approx(10, rel=1e-3)
    free = VectorAutoencoder(image_size=4, architecture="mlp", hidden=(), bounded=False)
    assert torch.equal(free.net.to_images(outputs), outputs)


@pytest.mark.parametrize("name", ["VectorVAE", "MLPVAE"])
def test_smallest_initial_log_variance_makes_samples_equal_the_mode(name: str, tmp_path: Path) -> None:
    given = VectorAutoencoder.example(name)
    given.set_initial_log_variance(-30.0)
    given.save_pretrained(tmp_path)
    posterior = VectorAutoencoder(pretrained=str(tmp_path)).encode(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(posterior.sample(), posterior.mode(), rtol=0, atol=1e-5)


def test_impossible_shapes_are_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(UserError, match="image_size that is divisible by 8, for 4 levels, got 20"):
        VectorAutoencoder(image_size=20)
    with pytest.raises(UserError, match="must be at least 1"):
        VectorAutoencoder(latent_channels=0)
    with pytest.raises(UserError, match="expected a VectorVAE or a MLPVAE, got a AutoencoderKL"):
        VectorAutoencoder(pretrained=str(tiny_model_folder))
    with pytest.raises(UserError, match=r"latents must be \(B, 3, 1, 1\), got \(2, 3, 2, 1\)"):
        VectorAutoencoder.example("MLPVAE").decode(torch.zeros(2, 3, 2, 1))
