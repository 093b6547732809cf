"""The precision and the memory layout that fit a machine. All such decisions are made here.

A processor's name does not show whether bfloat16 is fast: with AVX512-bf16 or AMX it takes half the time of float32,
with AVX2 alone fifty times as long. `auto` therefore times one small convolution both ways, forward and backward, once
a process and in under half a second. On CUDA, torch documents a capability, which is read instead.

A memory layout changes the order of sums and with it the last bits of a result. For training it is measured too, and
recorded with the run, so that a resumed run keeps it. For inference it is the same everywhere: shards of a latent store
must not depend on the load of the machine when a command started.
`docs/PERFORMANCE.md` has the measurements behind the rules.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm_ae.core import convolutions
from ldm_ae.core.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Values in commands and configurations; `auto` is bf16 where it is fast. Accelerate's `no` for fp32 is deprecated."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of activations, by the name of a precision."""
PRECISIONS = ("auto", *DTYPES)
"""Names that commands accept."""
Layout = Literal["channels_last", "contiguous"]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
"""torch's name of each layout of 4D tensors."""
Convolutions = Literal["torch", "winograd"]
"""Implementation of training convolutions: torch's, or that of `core/convolutions.py`."""
INFERENCE_LAYOUT: Layout = "channels_last"
"""Layout of networks whose weights are not trained; `docs/PERFORMANCE.md` compares it with contiguous layout on both
kinds of CPU."""

FAST = 1.1
"""Speed-up from which `auto` selects bfloat16."""
SLOW = 0.9
"""Speed-up below which an explicit bf16 causes a warning."""
HOPELESS = 1 / 20
"""Ratio of speeds below which no further call is measured: bfloat16 is emulated, and a call may take seconds."""
CLEARLY = 1.4
"""Factor by which two measurements in a row must contradict the usual placement, so that two runs of one machine agree
even under load."""
SPEED_VARIABLE = "LDM_AE_BF16_SPEED"
"""Environment variable with the speed of bfloat16 relative to float32. It replaces the measurement."""
_log = logging.getLogger("ldm_ae")


class Placement(NamedTuple):
    """The layout and the convolutions of a network that is trained."""

    layout: Layout
    convolutions: Convolutions = "torch"


PLAIN = Placement("contiguous")
"""Contiguous layout and torch's convolutions."""


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """The numerics of networks, and the reason for them."""

    precision: Literal["fp32", "bf16", "fp16"]
    """Precision of activations; in training, parameters stay float32."""
    layout: Layout
    """Layout of 4D activations and weights."""
    convolutions: Convolutions = "torch"
    """Convolutions of networks that are trained or that gradients pass through."""
    machine: str
    """The kind of device, as `machine_name` returns it."""
    reason: str
    """Reason for the selected precision, as readable text."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations."""
        return DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """torch's name of the layout."""
        return LAYOUTS[self.layout]

    @property
    def placement(self) -> Placement:
        """Placement of networks that are trained."""
        return Placement(self.layout, self.convolutions)

    @property
    def mixed_precision(self) -> str:
        """Accelerate's name of the precision."""
        return "no" if self.precision == "fp32" else self.precision

    def describe(self) -> dict[str, str]:
        """Return JSON values, from which `training_numerics` restores a recorded choice."""
        return {
            "precision": self.precision,
            "layout": self.layout,
            "convolutions": self.convolutions,
            "machine": self.machine,
            "reason": self.reason,
        }

    def line(self) -> str:
        """Return one line for a terminal."""
        kind = " with Winograd convolutions" if self.convolutions == "winograd" else ""
        return f"{self.precision}, {self.layout.replace('_', '-')}{kind} on {self.machine}: {self.reason}"


def training_numerics(
    requested: str, device: torch.device, recorded: dict[str, Any] | None = None, *, compiled: bool = False
) -> Numerics:
    """Select the numerics of a run.

    Args:
        requested: auto, fp32, bf16, fp16, or no (fp32).
        device: Device of the run.
        recorded: `Numerics.describe` from an earlier start of the run. `auto` keeps its precision on every machine; its
            placement is kept on the same kind of machine.
        compiled: Whether torch.compile will compile the networks.

    Raises:
        UserError: The precision is unknown, or is fp16 on a CPU.
    """
    check_precision(requested)
    machine = machine_name(device)
    if requested == "auto" and recorded is not None:
        precision, reason = recorded["precision"], "as when this run was started"
        if recorded["machine"] != machine:
            reason += f", on {recorded['machine'] or 'a machine that was not recorded'}"
    else:
        precision, reason = _resolve(requested, device)
    if precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision fp16 needs an accelerator; use auto, bf16 or fp32 on a CPU")
    _warn_if_slow(precision, device, "--training.precision fp32")
    placement = training_placement(device, DTYPES[precision], compiled=compiled)
    if recorded is not None and (recorded["machine"], recorded["precision"]) == (machine, precision):
        kept = Placement(recorded["layout"], recorded.get("convolutions", "torch"))
        placement = placement if compiled and kept.convolutions == "winograd" else kept
    return Numerics(precision=cast(Any, precision), machine=machine, reason=reason, **placement._asdict())


def agreed_numerics(
    requested: str, device: torch.device, recorded: dict[str, Any] | None = None, *, compiled: bool = False
) -> Numerics:
    """Return `training_numerics` of the main process, in every process that Accelerate manages."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # Accelerate assigns torchrun's processes to one GPU each; without `cpu` they would not form a group.
    state = PartialState(cpu=device.type == "cpu")
    found: list[Any] = [None]
    if state.is_main_process:
        try:
            found = [training_numerics(requested, device, recorded, compiled=compiled)]
        except UserError as error:
            found = [error]
    (result,) = broadcast_object_list(found)
    if isinstance(result, UserError):
        raise result
    return cast(Numerics, result)


def inference_numerics(requested: str, device: torch.device, *, slow_remedy: str = "--precision fp32") -> Numerics:
    """Select the numerics of encoding, decoding or scoring.

    Args:
        requested: auto, fp32, bf16, fp16, or no (fp32).
        device: Device of the model.
        slow_remedy: What the warning of a slow precision suggests.

    Raises:
        UserError: The precision is unknown.
    """
    check_precision(requested)
    precision, reason = _resolve(requested, device)
    _warn_if_slow(precision, device, slow_remedy)
    return Numerics(
        precision=cast(Any, precision), layout=INFERENCE_LAYOUT, machine=machine_name(device), reason=reason
    )


def check_precision(requested: str) -> None:
    """Raise UserError for an unknown precision."""
    if requested not in (*PRECISIONS, "no"):
        raise UserError(f"precision '{requested}' is not one of {', '.join(PRECISIONS)}")


def _resolve(requested: str, device: torch.device) -> tuple[str, str]:
    if requested != "auto":
        return "fp32" if requested == "no" else requested, "as requested"
    speed = bfloat16_speed(device)
    words = f"bfloat16 has {speed:.2g} times the speed of float32 here"
    if device.type == "cuda":
        words = f"this GPU computes {'in' if speed >= FAST else 'without'} bfloat16"
    return ("bf16" if speed >= FAST else "fp32"), words


@lru_cache(maxsize=16)
def _warn_if_slow(precision: str, device: torch.device, remedy: str) -> None:
    """Warn about a slow precision, once a process."""
    if precision == "bf16" and (speed := bfloat16_speed(device)) < SLOW:
        _log.warning(
            "bf16 is slow on %s: it has %.2g times the speed of fp32. Use %s, or auto to select the faster one",
            machine_name(device), speed, remedy,
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- bfloat16


def bfloat16_speed(device: torch.device) -> float:
    """Return the speed of bfloat16 relative to float32 for one convolution, forward and backward. Measured once."""
    return _bfloat16_speed(device.type, device.index, os.environ.get(SPEED_VARIABLE))


@lru_cache(maxsize=16)
def _bfloat16_speed(kind: str, index: int | None, given: str | None) -> float:
    if given is not None:
        try:
            return float(given)
        except ValueError:
            raise UserError(f"{SPEED_VARIABLE} is '{given}'; it must be a number, such as 2 or 0.1") from None
    device = torch.device(kind) if index is None else torch.device(kind, index)
    if device.type == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.5
    try:
        # Where bfloat16 is emulated, the convolution of the second measurement would take seconds.
        small = _least_disturbed(_convolutions(device, 64, 32), enough=1 / 3)
        if small < 1 / 3:
            return small
        return _least_disturbed(_convolutions(device, 128, 64), enough=FAST, hopeless=HOPELESS)
    except (RuntimeError, TypeError):  # torch raises these for a dtype that a device does not support
        return 0.0


def _convolutions(device: torch.device, channels: int, size: int) -> list[Callable[[], None]]:
    return [_convolution(device, dtype, channels, size) for dtype in (torch.float32, torch.bfloat16)]


def _least_disturbed(calls: list[Callable[[], None]], enough: float, hopeless: float = 0.0) -> float:
    """Return the largest of up to three ratios of the calls' times; stop at `enough`, or below `hopeless`.

    Another process on the same cores can delay every call in bfloat16 of one measurement, which would give a machine
    with fast bfloat16 another precision on a busy day.
    """
    found = 0.0
    for _ in range(3):
        found = max(found, _ratio(calls, 3, hopeless))
        if found >= enough or found < hopeless:
            break
    return found


# -------------------------------------------------------------------------------------------------------- placement


def training_placement(device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> Placement:
    """Select the placement of training: channels-last on accelerators. On a CPU it is usually channels-last too, in
    float32 with our own convolutions, and contiguous with torch's where a measurement clearly shows that those are
    faster. torch.compile uses torch's convolutions, whose float32 weight gradients are slow channels-last."""
    if device.type != "cpu":
        return Placement("channels_last")
    if dtype != torch.float32:
        usual = Placement("channels_last")
    elif compiled:
        return PLAIN
    else:
        usual = Placement("channels_last", "winograd")
    return usual if SPEED_VARIABLE in os.environ else _measured_placement(dtype, usual)


@lru_cache(maxsize=4)
def _measured_placement(dtype: torch.dtype, usual: Placement) -> Placement:
    """Measure the placement of training on the CPU."""
    channels, size = (128, 64) if dtype != torch.float32 else (256, 48)
    calls = [_convolution(torch.device("cpu"), dtype, channels, size, way) for way in (usual, PLAIN)]
    return PLAIN if all(_ratio(calls, 3) > CLEARLY for _ in range(2)) else usual


def place(module: nn.Module, device: torch.device, placement: Placement) -> None:
    """Move a module to a device, in place, with its 4D weights in a layout."""
    arrange(module.to(device), LAYOUTS[placement.layout])
    choose_convolutions(module, placement)


def arrange(module: nn.Module, layout: torch.memory_format) -> None:
    """Put a module's 4D parameters and buffers in a layout, in place.

    `module.to(memory_format=torch.channels_last)` fails where a module has 5D weights, those of video; they stay as
    they are.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)


def choose_convolutions(module: nn.Module, placement: Placement) -> None:
    """Replace a module's convolutions, in place, by those of `core/convolutions.py` where the placement has them."""
    if placement.convolutions == "winograd":
        convolutions.speed_up(module)


# ------------------------------------------------------------------------------------------------------ measurement


def _convolution(
    device: torch.device, dtype: torch.dtype, channels: int, size: int, placement: Placement = PLAIN
) -> Callable[[], None]:
    """Return a normalization, an activation and a convolution of one image as in autoencoders, forward and backward.

    The numbers come from a separate generator, so that a seeded run does not change.
    """
    generator = torch.Generator().manual_seed(0)

    @torch.inference_mode(False)  # a tensor made in inference mode has no gradient outside of it either
    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).to(device, dtype)
        return values.contiguous(memory_format=LAYOUTS[placement.layout]).requires_grad_()

    inputs, weight = draw(1, channels, size, size), draw(channels, channels, 3, 3)
    convolve: Callable[[Tensor, Tensor], Tensor] = partial(functional.conv2d, padding=1)
    if placement.convolutions == "winograd":
        convolve = convolutions.conv2d

    def call() -> None:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            hidden = functional.silu(functional.group_norm(inputs, 32))
            torch.autograd.grad(convolve(hidden, weight).float().sum(), (inputs, weight))
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

    return call


def _ratio(calls: list[Callable[[], None]], rounds: int, hopeless: float = 0.0) -> float:
    """Return least time of the first call / least time of the second; they alternate after one warm-up call each, and
    stop early at a ratio below `hopeless`."""
    least = [float("inf")] * len(calls)
    for attempt in range(rounds + 1):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if attempt > 0:
                least[i] = min(least[i], time.perf_counter() - started)
        if least[0] < hopeless * least[1]:  # False during the warm-up calls, which compile kernels.
            break
    return least[0] / least[1]


# ---------------------------------------------------------------------------------------------------------- machine


def machine_name(device: torch.device) -> str:
    """Return what results and times depend on, such as `cpu: AMD EPYC, AVX512, 2 threads` or `cuda: NVIDIA H200`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        kernels = torch.backends.cpu.get_cpu_capability()
        return f"cpu: {processor_name()}, {kernels}, {torch.get_num_threads()} threads"
    return str(device)


@lru_cache(maxsize=1)
def processor_name() -> str:
    """Return the CPU's name as its vendor gives it, or its architecture."""
    found = None
    if sys.platform == "linux":
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1].strip() if found else platform.processor() or platform.machine()
