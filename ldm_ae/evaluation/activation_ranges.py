"""The size of a model's activations, and so whether it is safe in fp16.

The largest float16 is 65504; larger outputs of a module become infinite and result in a black image. Stable Diffusion
XL's autoencoder is the known case. The largest value of each module's output is measured in float32 over some images,
so that the problem is visible before anyone runs the model in fp16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ldm_ae.models import Autoencoder
from ldm_ae.models.wrappers.overflow import tensors_in

FP16_LIMIT = 65504.0
"""The largest float16."""

SAFETY_MARGIN = 2.0
"""The largest activation times this must stay within the limit: other images can exceed the measured values, and a
module's intermediate sums can exceed its output."""

MEASURED_IMAGES = 16
"""Number of images that commands measure on; another float32 pass over all of a large set would double its time."""

LATENTS, RECONSTRUCTIONS = "latents", "reconstructions"
"""Names of the values between encoder and decoder, and of the output; every model has these, whatever its modules."""


class PixelBatch(Protocol):
    """The part of a loader's batch that is needed here."""

    @property
    def pixel_values(self) -> Tensor:
        """Images, (B, 3, H, W) float32 in [-1, 1]."""


_Batch = TypeVar("_Batch", bound=PixelBatch)


@dataclass(frozen=True, kw_only=True)
class ActivationRanges:
    """The largest |activation| of each module over some images."""

    modules: dict[str, float]
    """Values by the module's name in the network, the largest first; infinite where a value was not finite in float32.
    Modules that only pass on another module's output are omitted."""
    images: int

    @property
    def worst(self) -> str:
        """The module with the largest activation."""
        return next(iter(self.modules))

    @property
    def largest(self) -> float:
        return self.modules[self.worst]

    @property
    def safe_in_fp16(self) -> bool:
        """Whether the largest activation, `SAFETY_MARGIN` times as large, is within float16's range."""
        return self.largest * SAFETY_MARGIN <= FP16_LIMIT

    def line(self) -> str:
        """The verdict in one line."""
        found = f"largest activation {self.largest:.4g} in {self.worst}: "
        found += "safe in fp16" if self.safe_in_fp16 else "not safe in fp16; use bf16 or fp32"
        return f"{found} (limit {FP16_LIMIT:.0f}, margin {SAFETY_MARGIN:g}, {_images(self.images)})"

    def describe(self) -> dict[str, Any]:
        """Return everything, with the conditions of the measurement, as JSON values; None means not finite."""
        modules = {name: value if math.isfinite(value) else None for name, value in self.modules.items()}
        return {
            "safe_in_fp16": self.safe_in_fp16,
            "largest": modules[self.worst],
            "module": self.worst,
            "protocol": {
                "measured": "largest absolute value of each module's output; encoded, and decoded from the mode",
                "images": self.images,
                "precision": "fp32",
                "limit": FP16_LIMIT,
                "safety_margin": SAFETY_MARGIN,
            },
            "modules": modules,
        }


def first_batches(batches: Iterable[_Batch], images: int = MEASURED_IMAGES) -> tuple[list[_Batch], Iterator[_Batch]]:
    """Return the batches with the first `images` images, and all batches; the first ones are read only once."""
    remaining = iter(batches)
    first: list[_Batch] = []
    count = 0
    while count < images and (batch := next(remaining, None)) is not None:
        first.append(batch)
        count += len(batch.pixel_values)
    return first, itertools.chain(first, remaining)


@torch.no_grad()
def activation_ranges(model: Autoencoder, batches: Iterable[PixelBatch]) -> ActivationRanges:
    """Encode and decode the images and record the largest |value| in the output of each module of the network.

    Args:
        model: A model in float32 and eval mode, on the device to run on, not compiled; it is not changed.
        batches: At least one batch; `pixel_values` (B, 3, H, W) in [-1, 1].
    """
    largest: dict[str, Tensor] = {}
    previous: list[Tensor] = []

    def note(name: str, output: object) -> None:
        tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]
        # A container returns its last child's output; the child's name is more specific.
        if len(tensors) == len(previous) and all(a is b for a, b in zip(tensors, previous, strict=True)):
            return
        previous[:] = tensors
        for tensor in tensors:
            value = torch.stack(torch.aminmax(tensor)).abs().max()  # NaN stays NaN
            largest[name] = torch.maximum(largest[name], value) if name in largest else value

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: object) -> None:
            note(name, output)

        return hook

    # A model without parameters runs on the device of its images.
    parameter = next(model.parameters(), None)
    assert parameter is None or parameter.dtype == torch.float32, "ranges are measured in float32"
    device = None if parameter is None else parameter.device
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in model.net.named_modules() if name]
    images = 0
    try:
        for batch in batches:
            # One image at a time: the batch size was chosen for a precision that may need half the memory.
            for pixel_values in batch.pixel_values.split(1):
                latents = model.encode(pixel_values.to(device)).mode()
                note(LATENTS, latents)
                note(RECONSTRUCTIONS, model.decode(latents))
            images += len(batch.pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    assert images > 0, "ranges need at least one image"
    found = {name: float(value.nan_to_num(nan=math.inf)) for name, value in largest.items()}
    return ActivationRanges(modules=dict(sorted(found.items(), key=lambda item: -item[1])), images=images)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
