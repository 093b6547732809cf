from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


@pytest.fixture
def make_accelerator() -> Iterator[Callable[[str], Accelerator]]:
    """Accelerate on the CPU in a precision; its process-wide state is forgotten afterwards."""

    def make(precision: str = "no") -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        if precision != "fp16":
            return Accelerator(cpu=True, mixed_precision=precision)
        # Accelerate refuses fp16 without a GPU; torch's autocast and scaler both work on a CPU, so it is told it may.
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # sums over an image: gradients are large
        assert accelerator.mixed_precision == "fp16"
        return accelerator

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def accelerator(make_accelerator: Callable[[str], Accelerator]) -> Accelerator:
    return make_accelerator("no")
