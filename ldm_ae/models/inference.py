"""A model made ready for fast inference: device, dtype, memory layout."""

from __future__ import annotations

import torch

from ldm_ae.errors import UserError
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.overflow import OverflowGuard

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of weights and activations, by the name that commands take."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU; UserError for one that is not there."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used here: {str(error).strip().splitlines()[0][:120]}") from error
    return device


def for_inference(
    model: Autoencoder, *, device: str | torch.device = "auto", precision: str = "fp32", compiled: bool = False
) -> Autoencoder:
    """The model, changed in place: eval mode, no gradients, channels-last weights of the precision's dtype.

    Args:
        model: Any autoencoder.
        device: Where to run; `auto` picks an accelerator if there is one.
        precision: `fp32`, `bf16` or `fp16`. Posteriors and reconstructions are float32 whatever it is.
        compiled: Compile encoder and decoder with torch.compile.

    Returns:
        The model; for fp16 in an `OverflowGuard`, so that what overflows is computed again and no result is lost.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    device = pick_device(device) if isinstance(device, str) else device
    if isinstance(model, OverflowGuard):
        model = model.unguarded()
    if precision == "fp16":
        model = OverflowGuard(model)
    model = model.eval().requires_grad_(False).to(device=device, dtype=PRECISIONS[precision])
    model = model.to(memory_format=torch.channels_last)
    if compiled:
        model.compile_parts()
    return model
