"""Latents to images that people see."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.exploration.settings import Settings
from ldm_ae.images.uint8 import to_uint8
from ldm_ae.models import Autoencoder, require_finite


def shown_levels(pixel_values: Tensor, settings: Settings) -> Tensor:
    """Return images (B, C, H, W) as people see them, (B, 3, H, W) uint8 on the CPU."""
    rgb = pixel_values if settings.view is None else settings.view.single(pixel_values)
    return to_uint8(rgb).cpu()


def decode_levels(model: Autoencoder, latents: Tensor, settings: Settings, *, what: str) -> Tensor:
    """Decode latents (B, C, h, w), unscaled, as people see them: (B, 3, H, W) uint8 on the CPU.

    Args:
        model: A model that `for_inference` prepared.
        latents: On any device.
        settings: The settings of the page.
        what: Name of the latents, for the message.

    Raises:
        UserError: An image is not finite.
    """
    found = []
    for part in latents.split(settings.batch_size):
        decoded = model.decode(part.to(model.device))
        require_finite(decoded, [what] * len(decoded), settings.precision, what="the image")
        found.append(shown_levels(decoded, settings))
    return torch.cat(found)
