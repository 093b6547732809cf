"""Selection of devices by name."""

from __future__ import annotations

import torch

from ldm_ae.core.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device; `auto` is the accelerator if there is one, else the CPU. UserError if it is unavailable."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' is not available: {str(error).strip().splitlines()[0][:120]}") from error
    return device
