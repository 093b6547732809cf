"""The nearest of K codes for N latent vectors: ours against the ways of taming and vector-quantize-pytorch.

All three compare Euclidean distances and choose the same codes. taming-transformers computes the whole N x K matrix of
squared distances and takes the smallest. vector-quantize-pytorch (1.32, `cdist` and `gumbel_sample`) takes its square
root and the maximum of its negative, and makes the one-hot matrix of the choice, which its averages need. Both are
written here from their formulas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import measuring
import torch
import torch.nn.functional as F
from measuring import Variant
from torch import Tensor

from ldm_ae.core.errors import exit_status
from ldm_ae.models import pick_device
from ldm_ae.quantizers import nearest_codes


def latents_and_codes(rows: int, codes: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (N, D) and (K, D), standard normal."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, dim), (codes, dim))
    latents, table = (torch.randn(size, generator=generator).to(device) for size in sizes)
    return latents, table


def squared_distances(latents: Tensor, table: Tensor) -> Tensor:
    """Return |z|^2 + |e|^2 - 2 z e, (N, K)."""
    products = torch.einsum("nd,kd->nk", latents, table)
    return latents.square().sum(dim=1, keepdim=True) + table.square().sum(dim=1) - 2 * products


def taming(latents: Tensor, table: Tensor) -> Tensor:
    """Return the indices as taming-transformers' `VectorQuantizer2` does."""
    return squared_distances(latents, table).argmin(dim=1)


def vector_quantize_pytorch(latents: Tensor, table: Tensor) -> Tensor:
    """Return the indices as vector-quantize-pytorch's `EuclideanCodebook` does."""
    distances = -squared_distances(latents, table).clamp(min=1e-8).sqrt()
    indices = distances.argmax(dim=1)
    F.one_hot(indices, len(table)).type(distances.dtype)  # It is made at every call, even if it is not used.
    return indices


SEARCHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": nearest_codes,
    "taming": taming,
    "vector-quantize-pytorch": vector_quantize_pytorch,
}
TARGETS = {"taming": {8: 1.8, 256: 1.4}, "vector-quantize-pytorch": {8: 5.0, 256: 4.0}}
"""Target ratios by width of the codes, with N = K = 16384."""


def variants(rows: int, codes: int, dim: int, device: torch.device) -> list[Variant]:
    """Return one variant of each, the others beside ours."""

    def build(search: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return partial(search, *latents_and_codes(rows, codes, dim, device))

    base = f"ours D={dim}"
    found = []
    for name, search in SEARCHES.items():
        against = None if name == "ours" else base
        target = TARGETS.get(name, {}).get(dim)
        variant = Variant(f"{name} D={dim}", partial(build, search), against, cost=True, others=True, target=target)
        found.append(variant)
    return found


def differing(rows: int, codes: int, dim: int, device: torch.device) -> dict[str, int]:
    """Return for how many vectors the others choose another code than ours: those that are as near within rounding."""
    pair = latents_and_codes(rows, codes, dim, device)
    own = nearest_codes(*pair)
    return {name: int((search(*pair) != own).sum()) for name, search in SEARCHES.items() if name != "ours"}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=16384, help="N, number of latent vectors")
    parser.add_argument("--codes", type=int, default=16384, help="K")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 256], help="D")
    options = parser.parse_args()
    device = pick_device(options.device)
    found = [v for dim in options.dims for v in variants(options.rows, options.codes, dim, device)]
    measuring.run(f"Nearest code, N={options.rows}, K={options.codes}", found, options)
    if options.serve is None:
        for dim in options.dims:
            counts = differing(options.rows, options.codes, dim, device)
            words = ", ".join(f"{count} by {name}" for name, count in counts.items())
            print(f"\nD={dim}: number of {options.rows} vectors with a different code than ours: {words}")


if __name__ == "__main__":
    sys.exit(exit_status(main, "nearest_code"))
