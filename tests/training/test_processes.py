"""Two gloo processes against one at the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import assert_close, gradients, make_batches, make_parts, step_gradients
from tests.training.processes import run_processes


def take_both_steps(rank: int, count: int, accumulations: tuple[int, ...], folder: str) -> None:
    """Gradients of both networks and the logged scalars of one step, written by each rank."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count
    for accumulation in accumulations:
        parts = make_parts(accelerator)
        # Micro-batch j of rank r is part j * count + r of the global batch of 8.
        batches = make_batches(count * accumulation, 8 // (count * accumulation))[rank::count]
        reconstructions, logs = generator_step(parts, batches, step=0)
        discriminator_logs = discriminator_step(parts, batches, reconstructions, step=0)
        assert discriminator_logs is not None
        assert parts.plain_discriminator is not None
        found = step_gradients(parts) | {f"d.{k}": v for k, v in gradients(parts.plain_discriminator).items()}
        found |= {f"log.{k}": accelerator.reduce(v, reduction="mean") for k, v in (logs | discriminator_logs).items()}
        # λ must be the same on every rank, not only on average.
        found["log.own_adaptive_weight"] = logs["adaptive_weight"]
        path = Path(folder) / f"{count}-{accumulation}-{rank}.safetensors"
        save_file({k: v.contiguous() for k, v in found.items()}, path)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    run_processes(take_both_steps, 1, 1, (1,), str(tmp_path))
    run_processes(take_both_steps, 2, 2, (1, 2), str(tmp_path))
    expected = load_file(tmp_path / "1-1-0.safetensors")
    for accumulation in (1, 2):
        for rank in (0, 1):
            found = load_file(tmp_path / f"2-{accumulation}-{rank}.safetensors")
            # Float32 sums in another order, and with another number of threads; biases are sums that nearly cancel.
            assert_close(found, expected, 5e-5)
