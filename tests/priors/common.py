"""Small priors of every kind, found by themselves, with weights far from their initialization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_ae.priors import PRIORS, CausalTransformer, CodePrior, HierarchicalPixelCNN

SIZES = {"width": 32, "depth": 4}


def spread(prior: CodePrior) -> CodePrior:
    """The prior in eval mode, with weights whose logits are far from equal."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return prior.eval()


VARIANTS: dict[str, Callable[..., CodePrior]] = {
    **{name: lambda kind=kind, **more: kind(**{"shape": (4, 5), **SIZES, **more}) for name, kind in PRIORS.items()},
    "CausalTransformer of 2 levels": lambda **more: CausalTransformer(**{**SIZES, **more, "shape": (2, 2, 3)}),
    "HierarchicalPixelCNN": lambda **more: HierarchicalPixelCNN(**{"shape": (5, 2, 2), **SIZES, **more}),
    "HierarchicalPixelCNN of 3 maps": lambda **more: HierarchicalPixelCNN(**{**SIZES, **more, "shape": (21, 1, 1)}),
}
"""Every prior, the one that takes levels with two of them, and that of maps with three; `small` builds them."""


def small(name: str, **more: object) -> CodePrior:
    """The prior of that name, with 5 codes and 3 classes."""
    return spread(VARIANTS[name](**{"codebook_size": 5, "classes": 3, **more}))


def some_indices(prior: CodePrior, count: int = 3) -> Tensor:
    """(count, *shape) int64."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(prior.codebook_size, (count, *prior.shape), generator=generator)
