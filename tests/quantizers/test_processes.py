"""Two gloo processes against one at the same global batch, for every quantizer in one spawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_ae.quantizers import Quantizer
from tests.quantizers.common import VARIANTS, assert_same_state, some_latents, state
from tests.training.processes import run_processes

STEPS = 5


def learn(quantizer: Quantizer, rank: int, count: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state after some steps, and the summed gradients of terms and reconstruction at the last.

    Of the global batch of 8, micro-batch j of process r is part j * count + r.
    """
    statistics: dict[str, Tensor] = {}
    for step in range(STEPS):
        parts = some_latents(quantizer, batch=8, seed=step).chunk(2 * count)[rank::count]
        batches = [quantizer.quantize(part.clone().requires_grad_(), noise=part) for part in parts]
        for batch in batches:
            # Losses are means over images: each process has half of them, as DistributedDataParallel averages.
            terms = [term.mean() for name, term in batch.losses.items() if name != "entropy"]
            (batch.quantized.square().mean() + sum(terms)).div(len(batches)).backward()
        statistics = quantizer.learn(batches)
    gradients = {name: p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
    return state(quantizer) | {f"learned.{name}": value for name, value in statistics.items()}, gradients


def batch_entropy_gradient(quantizer: Quantizer, rank: int, count: int) -> Tensor:
    """Gradient at all 8 latents of the mean `entropy` over images, averaged over processes, in one micro-batch."""
    latents = some_latents(quantizer, batch=8).requires_grad_()
    found = quantizer.quantize(latents.split(8 // count)[rank])
    return torch.autograd.grad(found.losses["entropy"].mean() / count, latents)[0]


def run_all(rank: int, count: int, folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count
    for name, make in VARIANTS.items():
        torch.manual_seed(0)
        quantizer = make()
        found = {}
        if "entropy" in quantizer.quantize(some_latents(quantizer)).losses:
            found["gradient.entropy"] = accelerator.reduce(batch_entropy_gradient(quantizer, rank, count))
        learned, gradients = learn(quantizer, rank, count)
        found |= learned
        # In the processes' mean, as DistributedDataParallel leaves them.
        found |= {f"gradient.{key}": accelerator.reduce(value, reduction="mean") for key, value in gradients.items()}
        save_file({key: value.contiguous() for key, value in found.items()}, Path(folder) / f"{count}-{rank}-{name}")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_all(0, 1, str(tmp_path))
    run_processes(run_all, 2, 2, str(tmp_path))
    for name in VARIANTS:
        expected = load_file(tmp_path / f"1-0-{name}")
        gradients = {key: expected.pop(key) for key in list(expected) if key.startswith("gradient.")}
        for rank in (0, 1):
            found = load_file(tmp_path / f"2-{rank}-{name}")
            for key, value in gradients.items():
                # Float32 sums in another order.
                assert torch.allclose(found.pop(key), value, rtol=1e-4, atol=1e-6), f"{name}: {key}"
            # Codes, counts, draws: sums in float64, so equal to the last bit.
            assert_same_state(found, expected)
