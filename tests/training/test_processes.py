"""Two gloo processes against one at the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ldm_ae.discriminators import (
    DISCRIMINATOR_AIDS,
    AidedDiscriminator,
    DINODiscriminator,
    Discriminator,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    ProjectedDiscriminator,
    SpectralPatchDiscriminator,
    StyleGAN2Discriminator,
)
from ldm_ae.features import EfficientNetLite0
from ldm_ae.losses import DiscretizedLogistic, Gaussian
from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import assert_close, gradients, make_batches, make_parts, step_gradients
from tests.training.doubles import ADAPTIVE, CHAIN_TERMS, TERMS, Adaptive, Backboned, Turn, every_kind
from tests.training.processes import run_processes


def take_both_steps(rank: int, count: int, accumulations: tuple[int, ...], folder: str) -> None:
    """Gradients of both networks and the logged scalars of one step, written by each rank."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count
    for which, accumulation in product(VARIANTS, accumulations):
        parts = make_parts(accelerator, **VARIANTS[which]())
        # Micro-batch j of rank r is part j * count + r of the global batch of 8.
        batches = make_batches(count * accumulation, 8 // (count * accumulation))[rank::count]
        reconstructions, logs = generator_step(parts, batches, step=0)
        discriminator_logs = discriminator_step(parts, batches, reconstructions, step=0)
        assert discriminator_logs is not None
        assert parts.plain_discriminator is not None
        found = step_gradients(parts) | {f"r.{k}": v for k, v in gradients(parts.plain_pass.regularizer).items()}
        found |= {f"b.{k}": v for k, v in parts.plain_discriminator.named_buffers() if v.is_floating_point()}
        found |= {f"d.{k}": v for k, v in gradients(parts.plain_discriminator).items()}
        found |= {f"n.{k}": v for k, v in parts.plain_pass.regularizer.named_buffers() if v.is_floating_point()}
        found |= {f"log.{k}": accelerator.reduce(v, reduction="mean") for k, v in (logs | discriminator_logs).items()}
        # λ must be the same on every rank, not only on average.
        found |= {f"log.own_{k}": v for k, v in logs.items() if k.endswith("adaptive_weight")}
        path = Path(folder) / f"{which}-{count}-{accumulation}-{rank}.safetensors"
        save_file({k: v.contiguous() for k, v in found.items()}, path)


# Each process has its own copy of a learned scale, which stays the same if its gradient is.
LIKELIHOOD: dict[str, Any] = {"learned_log_variance": False, "perceptual": None}
VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "gaussian": lambda: LIKELIHOOD | {"reconstruction": Gaussian()},
    "logistic": lambda: LIKELIHOOD | {"reconstruction": DiscretizedLogistic()},
    "hooks": lambda: {"discriminator": Backboned(), "regularizer": Turn(), "regularization_weights": TERMS},
    "aids": lambda: {"discriminator": with_every_aid()},
    "adaptive": lambda: {"discriminator": Backboned(), "regularizer": Adaptive(), "regularization_weights": ADAPTIVE},
    "stylegan2": lambda: {"discriminator": seeded(StyleGAN2Discriminator, image_size=16, width=8, deviation_group=1)},
    "multi-scale": lambda: {"discriminator": seeded(MultiScaleDiscriminator, scales=2, n_layers=1, ndf=8)},
    "spectral": lambda: {"discriminator": seeded(SpectralPatchDiscriminator, n_layers=3, ndf=8)},
    "dino": lambda: {"discriminator": seeded(DINODiscriminator.example)},
    "projected": lambda: {"discriminator": seeded(projected)},
    "chain": lambda: {"regularizer": every_kind(), "regularization_weights": CHAIN_TERMS},
}


def with_every_aid() -> AidedDiscriminator:
    torch.manual_seed(4)
    network = PatchDiscriminator(n_layers=1, ndf=8, norm="group")
    aided = AidedDiscriminator(network, [cls.example() for cls in DISCRIMINATOR_AIDS.classes()])
    aided.learn(torch.tensor(0.1), torch.tensor(-0.1))  # moving averages of an earlier step
    return aided


def projected() -> ProjectedDiscriminator:
    """Of real features: random ones hardly differ between images, and gradients are then sums that nearly cancel."""
    features = EfficientNetLite0(layers=(1, 2), image_size=64)
    return ProjectedDiscriminator(features=features, channels=8, norm="group")


def seeded(build: Callable[..., Discriminator], **arguments: Any) -> Discriminator:
    torch.manual_seed(4)
    return build(**arguments)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_processes(take_both_steps, 1, 1, (1,), str(tmp_path))
    run_processes(take_both_steps, 2, 2, (1, 2), str(tmp_path))
    for which, accumulation, rank in product(VARIANTS, (1, 2), (0, 1)):
        if which in ("spectral", "dino", "projected") and accumulation == 2:
            continue  # twice as many passes, each of which improves the estimate of the norms
        expected = load_file(tmp_path / f"{which}-1-1-0.safetensors")
        assert (which in ("gaussian", "logistic")) == any("likelihood" in name for name in expected)
        found = load_file(tmp_path / f"{which}-2-{accumulation}-{rank}.safetensors")
        # Float32 sums in another order, and with another number of threads; biases are sums that nearly cancel.
        assert_close(found, expected, 5e-5)
