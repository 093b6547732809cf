"""A model made ready for fast inference: device, dtype, memory layout."""

from __future__ import annotations

import torch

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.wrappers.overflow import OverflowGuard


def for_inference(
    model: Autoencoder, *, device: str | torch.device = "auto", precision: str = "fp32", compiled: bool = False
) -> Autoencoder:
    """The model, changed in place: eval mode, no gradients, weights of the precision's dtype and memory layout.

    Args:
        model: Any autoencoder.
        device: Where to run; `auto` picks an accelerator if there is one.
        precision: `auto`, `fp32`, `bf16` or `fp16`. Posteriors and reconstructions are float32 whatever it is.
        compiled: Compile encoder and decoder with torch.compile.

    Returns:
        The model; for fp16 in an `OverflowGuard`, so that what overflows is computed again and no result is lost.

    Raises:
        UserError: a precision or device that is not there, or `compiled` and the network declares no parts to compile.
    """
    device = pick_device(device) if isinstance(device, str) else device
    numerics = inference_numerics(precision, device)
    if isinstance(model, OverflowGuard):
        model = model.unguarded()
    if numerics.precision == "fp16":
        model = OverflowGuard(model)
    model = model.eval().requires_grad_(False).to(device=device, dtype=numerics.dtype)
    model = model.to(memory_format=numerics.memory_format)
    if compiled:
        if not model.compilable_parts():
            raise UserError(f"{type(model.net).__name__} declares no parts to compile; run it without compilation")
        model.compile_parts()
    return model
