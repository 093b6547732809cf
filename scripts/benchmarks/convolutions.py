"""Training convolutions in float32 on a CPU, forward and backward: torch's in both layouts against the project's own.

These are layers of LDM's KL-f8 network. To see a CPU without AVX512 on one with it, set ONEDNN_MAX_CPU_ISA=AVX2,
ATEN_CPU_CAPABILITY=avx2 and MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import measuring
import torch
from measuring import Variant
from torch import Tensor
from torch.nn import functional

from ldm_ae.core import convolutions
from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import LAYOUTS, PLAIN, Placement

WAYS = {
    "torch, plain rows": PLAIN,
    "torch, channels-last": Placement("channels_last"),
    "ours, channels-last": Placement("channels_last", "winograd"),
}
SHAPES = ["2x128x256", "2x256x128", "2x256x256", "2x512x64", "2x512x32"]


def build(batch: int, channels: int, size: int, placement: Placement) -> Callable[[], tuple[Tensor, ...]]:
    """One 3x3 convolution, its gradients at inputs and weight, and the output."""
    keep_freed_memory(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.contiguous(memory_format=LAYOUTS[placement.layout])

    inputs, weight = draw(batch, channels, size, size), draw(channels, channels, 3, 3) / (9 * channels) ** 0.5
    gradient = draw(batch, channels, size, size)
    leaves = (inputs.requires_grad_(), weight.requires_grad_())
    convolve: Callable[[Tensor, Tensor], Tensor] = partial(functional.conv2d, padding=1)
    if placement.convolutions == "winograd":
        convolve = convolutions.conv2d

    def call() -> tuple[Tensor, ...]:
        output = convolve(*leaves)
        return output.detach(), *torch.autograd.grad(output, leaves, gradient)

    return call


def variants(shapes: list[str]) -> list[Variant]:
    """Each shape, given as batch x channels x size, by each way."""
    found = []
    for shape in shapes:
        for name, placement in WAYS.items():
            base = None if placement == PLAIN else f"{shape} torch, plain rows"
            make = partial(build, *map(int, shape.split("x")), placement)
            found.append(Variant(f"{shape} {name}", make, base))
    return found


def main() -> None:
    """Run it from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="batch x channels x size (default: %(default)s)")
    options = parser.parse_args()
    measuring.run("3x3 convolutions, forward and backward, float32", variants(options.shapes), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "convolutions"))
