"""How images become pixels: the arguments that several functions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ldm_ae.core.errors import UserError
from ldm_ae.data import ImageTransform, WholeTransform
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.models import Autoencoder

Size = int | Literal["native"] | None
"""Side of the central square crop in pixels, each image's own size, or the default."""
Crop = Literal["center", "adm"]
ColourProfiles = Literal["convert", "ignore"]
Pixels = Autoencoder | PixelSpec | str | Mapping[str, Any] | None
"""A model, whose images are meant; a specification; what `model.init_args.pixels` takes; or None for RGB in 8 bits."""


def chosen_pixels(pixels: Pixels) -> PixelSpec:
    """Return the images that an argument `pixels` means; UserError for a value that is not possible."""
    if pixels is None:
        return RGB
    if isinstance(pixels, Autoencoder):
        return pixels.pixel_spec
    return pixels if isinstance(pixels, PixelSpec) else PixelSpec.from_json(pixels)


def transform_options(
    *,
    size: Size,
    resize: int | Literal["none"] | None,
    crop: Crop,
    colour_profiles: ColourProfiles,
    max_pixels: int | None,
) -> dict[str, Any]:
    """Return the arguments of an `ImageTransform` except for its size, or of a `WholeTransform` for `size="native"`.

    Raises:
        UserError: A crop that is unknown, a size that is no number, or a crop or resizing that does not go with
            `size="native"`.
    """
    if crop not in ("center", "adm"):
        raise UserError(f'crop is {crop!r}; it must be "center" or "adm"')
    options: dict[str, Any] = {"colour_profiles": colour_profiles}
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    if size == "native":
        for name, value in (("crop", crop if crop != "center" else None), ("resize", resize)):
            if value is not None:
                raise UserError(f"size='native' and {name}={value!r} exclude each other; remove one of them")
        return options
    if size is not None and not isinstance(size, int):
        raise UserError(f"size must be a number of pixels or 'native', got {size!r}")
    return {"resize": resize, "crop": crop, **options}


def image_transform(model: Autoencoder, size: Size, options: dict[str, Any]) -> ImageTransform | WholeTransform:
    """Return the transform of a model's images, of its own size by default; `options` are `transform_options`.

    Raises:
        UserError: The size does not fit the model.
    """
    if size == "native":
        return WholeTransform(None, multiple=model.latent_spec.image_multiple, pixels=model.pixel_spec, **options)
    return square_transform(model, size, options)


def square_transform(model: Autoencoder, size: int | None, options: dict[str, Any]) -> ImageTransform:
    """Return the transform of crops of one size; see `image_transform`."""
    side = model.sample_size if size is None else size
    model.latent_spec.latent_size(side, side)
    return ImageTransform(size=side, pixels=model.pixel_spec, **options)
