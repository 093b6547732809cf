"""Networks and a textbook implementation that the tests of the steps compare with."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_ae.discriminators import Discriminator, DiscriminatorPass, PatchDiscriminator
from ldm_ae.io.files import sha256
from ldm_ae.losses import L1, FeatureDistance, Objective, ObjectiveConfig
from ldm_ae.models import KLAutoencoder
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.run import train
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.training_pass import TrainingPass


def small_perceptual(seed: int = 7) -> FeatureDistance:
    """Two layers of random features: the arithmetic of LPIPS without its weights."""
    generator = torch.Generator().manual_seed(seed)
    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
    ]
    for stage in stages:
        for parameter in stage.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return FeatureDistance("small", stages, [torch.rand(8, generator=generator) for _ in stages])


def small_model(seed: int = 1) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )


def make_parts(
    accelerator: Accelerator, *, discriminator: bool | Discriminator = True, precision: torch.dtype = torch.float32,
    regularizer: Regularizer | None = None, **objective: object,
) -> StepParts:  # fmt: skip
    """Model, objective and a discriminator without batch normalization, prepared by Accelerate."""
    defaults = {
        "reduction": "ldm", "perceptual": small_perceptual(), "regularization_weights": {"kl": 1e-4},
        "learned_log_variance": True, "gan_weight": 0.8,
    }  # fmt: skip
    config = ObjectiveConfig(**{**defaults, **objective})  # type: ignore[arg-type]
    if config.perceptual is not None:
        config.perceptual.set_precision(precision)
    model = small_model()
    torch.manual_seed(2)
    if discriminator is True:
        discriminator = PatchDiscriminator(n_layers=1, ndf=8, norm="group")
    pair = DiscriminatorPass(discriminator) if discriminator else None
    return StepParts(
        accelerator, accelerator.prepare_model(TrainingPass(model, regularizer)), Objective(config),
        None if pair is None else accelerator.prepare_model(pair),
    )  # fmt: skip


def make_batches(count: int, size: int, seed: int = 3, step_seed: int = 0) -> list[MicroBatch]:
    """`count` micro-batches of `size` 16-pixel images; the same images however they are split."""
    generator = torch.Generator().manual_seed(seed)
    total = count * size
    coarse = torch.rand(total, 3, 4, 4, generator=generator) * 2 - 1
    pixel_values = F.interpolate(coarse, size=16, mode="bilinear")
    noise = torch.randn(total, 4, 8, 8, generator=generator)
    seeds = tuple(range(seed, seed + total))
    parts = [slice(i * size, (i + 1) * size) for i in range(count)]
    return [MicroBatch(pixel_values[part], noise[part], seeds[part], step_seed) for part in parts]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def textbook_generator_gradients(parts: StepParts, batch: MicroBatch) -> tuple[dict[str, Tensor], Tensor]:
    """One graph, `autograd.grad` twice through everything for λ, one sum, one backward: as papers write it.

    Written for the `ldm` reduction with L1. Leaves no gradients behind.
    """
    model, objective = parts.plain_autoencoder, parts.objective
    config = objective.config
    assert isinstance(config.reconstruction, L1)
    assert config.reduction == "ldm"
    x = batch.pixel_values
    mean, log_variance = model.net.quant_conv(model.net.encoder(x)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    z = mean + torch.exp(0.5 * log_variance) * batch.noise
    x_hat = model.net.decoder(model.net.post_quant_conv(z))
    rec = (x - x_hat).abs()
    if config.perceptual is not None:
        rec = rec + config.perceptual_weight * config.perceptual(x_hat, x)[:, None, None, None]
    if objective.log_variance is not None:
        rec = rec / torch.exp(objective.log_variance) + objective.log_variance
    nll = rec.sum() / len(x)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / len(x)
    gan = -parts.plain_discriminator(x_hat).mean()
    last = model.last_layer
    nll_norm = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
    gan_norm = torch.autograd.grad(gan, last, retain_graph=True)[0].norm()
    weight = (nll_norm / (gan_norm + 1e-4)).clamp(0, 1e4).detach()
    loss = nll + config.gan_weight * weight * gan + config.regularization_weights["kl"] * kl
    named = dict(model.named_parameters()) | {f"objective.{n}": p for n, p in objective.named_parameters()}
    named = {name: p for name, p in named.items() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)), weight


def step_gradients(parts: StepParts) -> dict[str, Tensor]:
    found = gradients(parts.plain_autoencoder)
    return found | {f"objective.{name}": grad for name, grad in gradients(parts.objective).items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every gradient within `tolerance` of the largest entry of its expected one."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
        assert error < tolerance, f"{name}: {error:.2e}"


def whole(batches: list[MicroBatch]) -> MicroBatch:
    pixel_values, noise, seeds, step_seeds = zip(*batches, strict=True)
    assert len(set(step_seeds)) == 1
    return MicroBatch(torch.cat(pixel_values), torch.cat(noise), tuple(chain.from_iterable(seeds)), step_seeds[0])


def replace_objective(parts: StepParts, **changes: object) -> None:
    parts.objective.config = dataclasses.replace(parts.objective.config, **changes)  # type: ignore[arg-type]


TINY = {
    "model": {
        "class_path": "ldm_ae.models.KLAutoencoder",
        "init_args": {
            "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
            "mid_block_add_attention": False,
        },
    },
    "data": {"resolution": 16, "workers": 0, "validation_images": 3},
    "objective": {"discriminator_start": 1, "discriminator_warmup_steps": 1, "learned_log_variance": True},
    "discriminator": {
        "class_path": "ldm_ae.discriminators.PatchDiscriminator",
        "init_args": {"n_layers": 1, "ndf": 8, "norm": "batch"},
    },
    "optimizer": {"schedule": "cosine", "warmup_steps": 2},
    "training": {
        "max_steps": 6, "batch_size": 2, "accumulation": 2, "precision": "no", "ema_decay": 0.9, "log_every": 2,
        "sample_every": 3, "validate_every": 3, "checkpoint_every": 3, "max_grad_norm": 1.0,
    },
}  # fmt: skip
"""A run with every optional part, at some milliseconds a step; `data.train` is not set."""


def run(config: Path, out: Path, *more: str) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(["--config", str(config), "--out", str(out), *more])


def files(folder: Path) -> dict[str, str]:
    """Digests by name: pytest would spend minutes on the difference of the bytes themselves."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def parameters() -> dict[str, nn.Parameter]:
    """The parameters of the small model's network by name."""
    return dict(small_model().net.named_parameters())


def stepped(optimizer: Optimizer, named: dict[str, nn.Parameter], steps: int, seed: int = 0) -> None:
    """Take steps with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def as_dictionary(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """The group of each parameter by its name."""
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}
