"""Autoencoders and images from files and from memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ldm_ae.api._transforms import Pixels, chosen_pixels
from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import DTYPES
from ldm_ae.core.resources import DEFAULT_MODEL
from ldm_ae.data import BadImage, ImageTransform, decode_image, open_source
from ldm_ae.images.in_memory_samples import pixel_values_of_samples
from ldm_ae.images.pixels import RGB
from ldm_ae.models import AUTOENCODERS, Autoencoder, for_inference, load_autoencoder
from ldm_ae.models.loading.other_classes import describe_class
from ldm_ae.models.loading.places import SUBFOLDERS

_PRECISIONS: dict[object, str] = {
    "auto": "auto", None: "fp32", **{name: name for name in DTYPES}, **{dtype: name for name, dtype in DTYPES.items()},
}  # fmt: skip
"""Precisions by the values of `dtype`."""


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Autoencoder:
    """Load an autoencoder for inference: in eval mode and without gradients.

    Args:
        model: A diffusers model or pipeline folder, a single .safetensors file (FLUX.1's `ae.safetensors`), a run
            directory, a checkpoint (also by name: `runs/mine@best`), a name on the Hugging Face hub (`hf:owner/name`),
            or the name of a shipped model (`kl-f8c16-small`, `vq-f8-small`).
        device: Device to run on; `auto` picks an accelerator if there is one.
        dtype: `fp32`, `bf16` or `fp16`, or torch's dtype; `auto` is bf16 on a device that is fast in it and fp32 on
            others; None is fp32. Images, latents and reconstructions are float32 in any dtype. In fp16, a batch that
            overflows is computed again in fp32.
        config: For a single file: values of the network's configuration, which take precedence over those inferred from
            the weights: a dict, a JSON file or a model folder.

    Returns:
        The model. `encode_images` and `decode_to_pil` convert images; `encode`, `decode`, `scale` and `unscale` take
        tensors. For training, call `train()` and `requires_grad_()` on a model in fp32.

    Raises:
        UserError: no model is found, it does not load, or the device or the dtype is not available.
    """
    if not isinstance(model, str | Path):
        raise UserError(f"model must be a path or a name, got a {type(model).__name__}; ldm_ae.wrap takes networks")
    precision = _PRECISIONS.get(dtype) if isinstance(dtype, str | torch.dtype | None) else None
    if precision is None:
        known = ", ".join(("auto", *DTYPES))
        raise UserError(f"dtype must be {known}, None or the dtype of torch for one of these, got {dtype!r}")
    chosen = pick_device(device) if isinstance(device, str) else device
    return for_inference(
        load_autoencoder(model, config=config), device=chosen, precision=precision, slow_remedy="dtype='fp32'"
    )  # fmt: skip


def load_image(path: str | Path | NDArray[Any], *, size: int | None = None, pixels: Pixels = None) -> torch.Tensor:
    """Load an image as `pixel_values` (1, C, H, W) in [-1, 1], resized and center-cropped to a square of `size`.

    Args:
        path: An image file. With `pixels` other than RGB in 8 bits also an array of stored samples, (H, W), (H, W, C)
            or (C, H, W).
        size: Side of the square, which images of RGB in 8 bits need; without it, other images keep their sizes.
        pixels: The images: a model, a `PixelSpec`, or what `model.init_args.pixels` of a recipe takes.

    Raises:
        UserError: The image does not exist, cannot be decoded, or has other channels or values than `pixels`.
    """
    spec = chosen_pixels(pixels)
    if spec != RGB:
        if not isinstance(path, str | Path | np.ndarray):
            raise UserError(f"path must be a file or an array, got {type(path).__name__}")
        return pixel_values_of_samples(path, spec, size=size, name="the image")[0][None]
    if not isinstance(path, str | Path):
        raise UserError(f"path must be a file, got {type(path).__name__}; model.encode_images takes images in memory")
    if size is None:
        raise UserError("size is missing; give the side of the square, such as size=256")
    try:
        return ImageTransform(size=size)(decode_image(open_source(path)[0].data)).pixel_values[None]
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error


def wrap(network: Any) -> Autoencoder:
    """Return an `Autoencoder` around a diffusers autoencoder in memory, such as `pipeline.vae`.

    It shares the network's parameters: training one trains the other, and nothing is copied. Device, dtype, mode and
    gradients stay as they are.

    Args:
        network: An autoencoder of one of the classes that `load` opens.

    Raises:
        UserError: the class is not supported, or the network's images are not.
    """
    if isinstance(network, Autoencoder):
        return network
    for cls in type(network).__mro__:
        if cls.__name__ in AUTOENCODERS and isinstance(network, torch.nn.Module):
            return AUTOENCODERS[cls.__name__].around(network)
    if isinstance(network, str | Path):
        raise UserError(f"a path or a name cannot be wrapped; open it by ldm_ae.load({str(network)!r})")
    # A pipeline holds its autoencoder under the name of the folder that it is saved in.
    held = next((name for name in SUBFOLDERS[1:] if hasattr(network, name)), None)
    if held is not None:
        fix = f"pass its autoencoder, ldm_ae.wrap(pipeline.{held})"
        raise UserError(f"a {type(network).__name__} cannot be wrapped; {fix}")
    raise UserError(f"cannot wrap {describe_class(type(network).__name__, AUTOENCODERS)}")
