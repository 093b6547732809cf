"""Preparation of a model for fast inference: device, dtype, memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import arrange, inference_numerics
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.wrappers.interface import Wrapper
from ldm_ae.models.wrappers.overflow import OverflowGuard


def for_inference(
    model: Autoencoder,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    slow_remedy: str = "--precision fp32",
) -> Autoencoder:
    """Change the model in place for inference: eval mode, no gradients, the precision's dtype and memory layout.

    Args:
        model: Any autoencoder.
        device: Device to run on; `auto` picks an accelerator if there is one.
        precision: `auto`, `fp32`, `bf16` or `fp16`. Posteriors and reconstructions are float32 in every precision.
        compiled: Compile encoder and decoder with torch.compile.
        slow_remedy: What the warning of a slow precision suggests.

    Returns:
        The model; for fp16 in an `OverflowGuard`, which recomputes a batch that overflows, so that no result is lost.

    Raises:
        UserError: An unavailable precision or device, or `compiled` for a network that declares no parts to compile.
    """
    device = pick_device(device) if isinstance(device, str) else device
    numerics = inference_numerics(precision, device, slow_remedy=slow_remedy)
    model = _unguarded(model)
    if numerics.precision == "fp16":
        model = OverflowGuard(model)
    model = model.eval().requires_grad_(False).to(device=device, dtype=numerics.dtype)
    arrange(model, numerics.memory_format)
    if compiled:
        if not model.compilable_parts():
            raise UserError(f"{type(model.net).__name__} declares no parts to compile; run it without compilation")
        model.compile_parts()
    return model


def _unguarded(model: Autoencoder) -> Autoencoder:
    """Return the model without the guards among its wrappers."""
    if isinstance(model, OverflowGuard):
        return _unguarded(model.unguarded())
    if isinstance(model, Wrapper):
        model.model = _unguarded(model.model)
    return model


@contextmanager
def in_eval_mode(model: Autoencoder) -> Iterator[None]:
    """Put every module of a model in eval mode within the context, and restore its own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
