"""Autoencoder and SiT together: which loss trains which network, its value, the average, the statistics."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.diffusion import NO_CLASS
from ldm_ae.features import DINOv2
from ldm_ae.losses import ObjectiveConfig
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from ldm_ae.regularizers import EndToEnd
from ldm_ae.training.losses import TrainingLosses

WEIGHTS = {"kl": 1e-6, "diffusion": 1.0, "alignment": 0.5, "latent_alignment": 1.5}
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def joint(depth: int = 2, **arguments: object) -> tuple[KLAutoencoder, EndToEnd]:
    torch.manual_seed(1)
    model = KLAutoencoder.example("AutoencoderKL")
    model.set_sample_size(16)
    regularizer = EndToEnd(features=DINOv2.example(), width=32, depth=depth, projector_width=16, **arguments)  # type: ignore[arg-type]
    regularizer.prepare(model)
    return model, regularizer


def gradients(weights: dict[str, float]) -> dict[str, Tensor]:
    """Gradients of one batch by name; of `autoencoder.`, `sit.` and `projector.`."""
    model, regularizer = joint()
    losses = TrainingLosses(model, ObjectiveConfig(regularization_weights=weights), regularizer=regularizer)
    torch.manual_seed(2)
    losses.generator_loss(IMAGES, 0).loss.backward()
    parts = {"autoencoder": model.net, "sit": regularizer.sit, "projector": regularizer.projector}
    return {
        f"{part}.{name}": parameter.grad
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def of(found: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if name.startswith(f"{part}.")}


def reached(found: dict[str, Tensor]) -> set[str]:
    """The modules with a gradient, the SiT's blocks apart."""
    names = (name.split(".") for name, gradient in found.items() if bool(gradient.abs().max() > 0))
    return {".".join(parts[: 3 if "transformer_blocks" in parts else 1]) for parts in names}


def test_each_loss_trains_its_networks_alone() -> None:
    plain = gradients({"kl": 1e-6})
    assert reached(plain) == {"autoencoder"}
    for term, networks in {
        "diffusion": {"sit", "sit.transformer_blocks.0", "sit.transformer_blocks.1", "autoencoder"},
        "alignment": {"sit", "sit.transformer_blocks.0", "projector", "autoencoder"},  # the aligned block is the first
        "latent_alignment": {"autoencoder"},
    }.items():
        found = gradients({"kl": 1e-6, term: 1.0})
        assert reached(found) == networks, term
        same = all(torch.equal(found[name], plain[name]) for name in plain)
        assert same == (term != "latent_alignment"), term


def test_diffusion_loss_never_changes_the_gradients_of_the_autoencoder() -> None:
    with_all = of(gradients(WEIGHTS), "autoencoder")
    without = of(gradients({k: w for k, w in WEIGHTS.items() if k not in ("diffusion", "alignment")}), "autoencoder")
    assert with_all.keys() == without.keys()
    assert all(torch.equal(with_all[name], without[name]) for name in without)
    decoder = [name for name in without if name.startswith("autoencoder.decoder")]
    plain = gradients({"kl": 1e-6})
    assert all(torch.equal(without[name], plain[name]) for name in decoder)  # it has the reconstruction's alone
    assert not any(torch.equal(without[name], plain[name]) for name in without if ".encoder.conv_in" in name)


def test_terms_and_gradients_equal_two_textbook_passes() -> None:
    """Two forward passes through the SiT, as the paper writes the losses: with the latents' graph, and without it."""
    _, regularizer = joint()
    regularizer.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
    regularizer.running_var.copy_(torch.tensor([1.5, 0.5, 1.0, 2.0]))
    latents = torch.randn(4, 4, 8, 8, requires_grad=True)
    posterior = GaussianPosterior(torch.cat([latents, torch.zeros_like(latents)], dim=1))
    found = regularizer(posterior, latents, IMAGES, Draws(range(4), REGULARIZER))
    assert found.latents is latents
    assert found.target is IMAGES
    draws = Draws(range(4), REGULARIZER)
    noise, s = draws.normal(4, 8, 8), draws.uniform().view(-1, 1, 1, 1)
    mean, std = (t.view(1, -1, 1, 1) for t in (regularizer.running_mean, (regularizer.running_var + 1e-4).sqrt()))

    def textbook(z: Tensor) -> tuple[Tensor, Tensor]:
        z = (z - mean) / std
        captured: list[Tensor] = []
        hook = regularizer.sit.transformer_blocks[0].register_forward_hook(lambda *a: captured.append(a[2]))
        noisy, labels = (1 - s) * z + s * noise, torch.full((4,), NO_CLASS)
        predicted = regularizer.sit(noisy, s.flatten() * 1000, class_labels=labels).sample
        hook.remove()
        features = F.interpolate(regularizer.features(IMAGES)[-1], size=(4, 4), mode="bilinear", antialias=True)
        cosines = F.cosine_similarity(regularizer.projector(captured[0]), features.flatten(2).mT, dim=-1)
        return (predicted - (noise - z)).square().mean(dim=(1, 2, 3)), -cosines.mean(dim=1)

    diffusion, alignment = textbook(latents.detach())
    through = textbook(latents)[1]
    expected = {"diffusion": diffusion, "alignment": alignment, "latent_alignment": through}
    count = latents[0].numel()
    for name, value in expected.items():
        assert torch.allclose(found.terms[name], value * count, rtol=1e-5, atol=1e-4), name
    parameters = [*regularizer.sit.parameters(), *regularizer.projector.parameters()]
    # The same operations in another order of sums, in float32.
    for name, value in list(expected.items())[:2]:
        ours = torch.autograd.grad(found.terms[name].sum(), parameters, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(value.sum() * count, parameters, retain_graph=True, allow_unused=True)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or torch.allclose(mine, other, rtol=1e-4, atol=1e-3), name
    ours = torch.autograd.grad(found.terms["latent_alignment"].sum(), latents)[0]
    theirs = torch.autograd.grad(through.sum() * count, latents)[0]
    assert theirs.abs().max() > 0
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
def test_training_on_a_fixed_batch_decreases_each_loss() -> None:
    model, regularizer = joint(momentum=0.3)
    weights = WEIGHTS | {"kl": 1e-2}  # so that latents and statistics, from which the SiT learns, do not run away
    losses = TrainingLosses(model, ObjectiveConfig(regularization_weights=weights), regularizer=regularizer)
    optimizer = torch.optim.Adam(losses.generator_parameters(), 3e-3)

    def mean_logs(seeds: Sequence[int]) -> dict[str, float]:
        total: dict[str, float] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            for name, value in losses.generator_loss(IMAGES, 0).logs.items():
                total[name] = total.get(name, 0.0) + float(value) / len(seeds)
        return total

    def train(step: int) -> None:
        torch.manual_seed(step)
        loss = losses.generator_loss(IMAGES, step)
        optimizer.zero_grad()
        loss.loss.backward()
        losses.learn(loss)
        optimizer.step()

    train(0)  # the statistics are those of a batch
    before = mean_logs(range(100, 104))
    for step in range(1, 50):
        train(step)
    after = mean_logs(range(100, 104))
    assert after["rec_loss"] < 0.9 * before["rec_loss"]
    assert after["diffusion_loss"] < 0.9 * before["diffusion_loss"]
    assert after["alignment_loss"] < before["alignment_loss"] - 0.2 * 256  # a cosine, times the 256 latents
    assert after["latent_alignment_loss"] == pytest.approx(after["alignment_loss"])


def test_average_follows_its_formula_and_no_optimizer() -> None:
    _, regularizer = joint(ema_decay=0.5)
    assert not any(name.startswith("average.") for name, _ in regularizer.named_parameters())
    posterior = GaussianPosterior(torch.randn(2, 8, 4, 4))
    expected = {name: value.detach().double() for name, value in regularizer.sit.named_parameters()}
    for step in range(9):
        with torch.no_grad():
            for parameter in regularizer.sit.parameters():
                parameter.add_(torch.randn_like(parameter))
        regularizer.learn([posterior])
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in regularizer.sit.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
    for name, value in expected.items():
        assert torch.allclose(regularizer.average.get_buffer(name.replace(".", "/")).double(), value, atol=1e-5), name
    state = regularizer.state_dict()
    assert {name.split(".")[0] for name in state} == {
        "running_mean", "running_var", "updates", "sit", "projector", "average",
    }  # fmt: skip
    _, other = joint()
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())


def test_half_precision_keeps_the_gradient_of_the_latents() -> None:
    _, regularizer = joint()
    latents = torch.randn(4, 4, 8, 8, requires_grad=True)
    posterior = GaussianPosterior(torch.cat([latents, torch.zeros_like(latents)], dim=1))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = regularizer(posterior, latents, IMAGES, Draws(range(4), REGULARIZER)).terms
        found.append(torch.autograd.grad(terms["latent_alignment"].sum(), latents)[0].flatten())
    assert F.cosine_similarity(*found, dim=0) > 0.98  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 48}, "expected a width that is a multiple of 32"),
        ({"depth": 0}, "a depth and a projector_width of at least 1"),
        ({"aligned_block": 3}, "expected aligned_block from 1 to 2, got 3"),
        ({"ema_decay": 1.0}, r"expected ema_decay in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EndToEnd(**{"features": nn.Identity(), "width": 32, "depth": 2, **arguments})  # type: ignore[arg-type]


def test_images_that_are_not_square_are_refused() -> None:
    _, regularizer = joint()
    latents = torch.randn(1, 4, 8, 4)
    posterior = GaussianPosterior(torch.cat([latents, latents], dim=1))
    with pytest.raises(UserError, match=r"expected square images.*got 16x8"):
        regularizer(posterior, latents, IMAGES[:1, :, :, :8], Draws([0], REGULARIZER))
