"""The first stage of latent diffusion: train, measure and use image autoencoders.

model = ldm_ae.load()  # the model that ships with ldm_ae; or ldm_ae.load("runs/mine")
latents = model.encode(ldm_ae.load_image("photo.jpg", size=256)).mode()
image = model.decode(latents)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm_ae.core.resources import DEFAULT_MODEL
from ldm_ae.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ldm_ae.models import Autoencoder

__all__ = ["__version__", "load", "load_image"]


def load(path: str | Path = DEFAULT_MODEL, *, device: str | torch.device = "cpu") -> Autoencoder:
    """Load the autoencoder of a diffusers folder, a run directory, a checkpoint (also by name: `runs/mine@best`), a
    name on the Hub (`hf:owner/name`) or the name of a shipped model (`kl-f8c4-small`, `vq-f8-small`), in float32.

    Raises:
        UserError: No autoencoder is found, or it does not load.
    """
    from ldm_ae.models import load_autoencoder

    return load_autoencoder(path, device=device)


def load_image(path: str | Path, *, size: int) -> torch.Tensor:
    """Load an image file as `pixel_values` (1, 3, size, size) in [-1, 1], resized and center-cropped to the square.

    Raises:
        UserError: The image does not exist or cannot be decoded.
    """
    from ldm_ae.core.errors import UserError
    from ldm_ae.data import BadImage, ImageTransform, decode_image, open_source

    try:
        return ImageTransform(size=size)(decode_image(open_source(path)[0].data)).pixel_values[None]
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error
