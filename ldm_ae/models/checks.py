"""Checks of the tensors that a model is given."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError


def require_latents(values: Tensor, name: str, channels: int, *, hint: str = "") -> None:
    """Raise UserError unless `values` is a floating-point tensor (B, channels, h, w).

    Args:
        values: The latents.
        name: Their name in messages.
        channels: The number of channels.
        hint: The end of the message about another type.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{name} must be a floating-point tensor, got {got}{hint}")
    if values.ndim != 4 or values.shape[1] != channels:
        raise UserError(f"{name} must be (B, {channels}, h, w), got {tuple(values.shape)}")


def require_device(tensor: Tensor, name: str, device: torch.device) -> None:
    """Raise UserError unless the tensor is on the model's device."""
    if tensor.device != device:
        raise UserError(
            f"{name} must be on the model's device {device}, got {tensor.device}; move them by {name}.to(model.device)"
        )


def require_indices(indices: Tensor, size: int, levels: int | None, *, device: torch.device) -> Tensor:
    """Return indices (B, h, w), or (B, levels, h, w), as int64 on the device.

    Raises:
        UserError: They have another shape, or are not in [0, size).
    """
    shape = "(B, h, w)" if levels is None else f"(B, {levels}, h, w)"
    if indices.ndim != (3 if levels is None else 4) or (levels is not None and indices.shape[1] != levels):
        raise UserError(f"indices must be {shape}, got {tuple(indices.shape)}")
    indices = indices.to(device, torch.int64)
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise UserError(f"indices must be in [0, {size}), got {int(indices.min())} to {int(indices.max())}")
    return indices
