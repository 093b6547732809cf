"""Small quantizers of every kind, found by themselves, and latents that reach all of their codes."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_ae.quantizers import FSQ, QUANTIZERS, VQ, CodebookCare, CosineVQ, Quantized, Quantizer, ResidualVQ

SMALL = {
    "codebook_size": 8,
    "codebook_dim": 8,
    "levels": (4, 3, 3),
    "group_bits": 3,
    # Every piece of state that a quantizer may have.
    "care": CodebookCare(kmeans_iterations=2, restart_below=0.5, usage_decay=0.5),
    "orthogonal": True,
    "entropy_temperature": 0.5,
}
"""Small values of arguments that several quantizers have."""


def small(name: str, **more: object) -> Quantizer:
    """The quantizer of that name with small arguments."""
    if name == "ResidualVQ":
        return ResidualVQ(small("VQ"), 2)
    arguments = {key: SMALL[key] for key in inspect.signature(QUANTIZERS[name]).parameters if key in SMALL}
    return QUANTIZERS[name](**{**arguments, **more})  # type: ignore[arg-type]


def variants() -> dict[str, Callable[[], Quantizer]]:
    """Every quantizer, and residual ones over each way that gradients go."""
    found: dict[str, Callable[[], Quantizer]] = {name: lambda name=name: small(name) for name in QUANTIZERS}  # type: ignore[misc]
    return found | {
        "ResidualVQ of FSQ": lambda: ResidualVQ(FSQ((5, 3)), 2),
        "ResidualVQ of GumbelVQ": lambda: ResidualVQ(small("GumbelVQ"), 2),
        "CosineVQ alone": lambda: CosineVQ(8, 4),
        "VQ alone": lambda: VQ(8, 4),
    }


VARIANTS = variants()


def all_indices(quantizer: Quantizer) -> Tensor:
    """(N, 1, 1) or (N, Q, 1, 1): every value at every level."""
    values = torch.arange(quantizer.codebook_size)
    if isinstance(quantizer, ResidualVQ):
        return values.view(-1, 1, 1, 1).expand(-1, len(quantizer.levels), 1, 1)
    return values.view(-1, 1, 1)


def wide_latents(quantizer: Quantizer, count: int = 4096) -> Tensor:
    """(count + K, D, 1, 1): the codes themselves, and random vectors from near zero to far out."""
    random = torch.randn(count, quantizer.codebook_dim, 1, 1) * torch.logspace(-2, 1, count).view(-1, 1, 1, 1)
    return torch.cat([quantizer.codes(all_indices(quantizer)).detach(), random])


def some_latents(quantizer: Quantizer, batch: int = 4, seed: int = 5) -> Tensor:
    """(batch, D, 3, 2), the same for a seed however the batch is split later."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.codebook_dim, 3, 2, generator=generator)


def train_a_little(quantizer: Quantizer, steps: int = 3) -> list[Quantized]:
    """Steps of `learn` over two micro-batches each; the last one's."""
    quantizer.train()
    batches: list[Quantized] = []
    for step in range(steps):
        latents = some_latents(quantizer, seed=step)
        batches = [quantizer.quantize(part, noise=part) for part in latents.split(2)]
        quantizer.learn(batches)
    return batches


def state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in quantizer.state_dict().items()}


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
