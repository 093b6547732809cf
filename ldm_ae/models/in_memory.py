"""Encoding and decoding of images that a program holds in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from ldm_ae.images.in_memory import Images, Range


class InMemoryImages:
    """The methods of an `Autoencoder` that take and give images in memory, a class of their own for their length."""

    @torch.no_grad()
    def encode_images(
        self: Any,
        images: Images,
        *,
        size: int | tuple[int, int] | None = None,
        value_range: Range | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Encode PIL images, paths, NumPy arrays or tensors, without gradients.

        Args:
            images: One image, a batch or a list: PIL images and paths, read as the commands read them (upright by EXIF,
                in sRGB, transparency over white); arrays (H, W, C) or (N, H, W, C) of uint8 or of floating point in
                [0, 1]; tensors (C, H, W) or (N, C, H, W) of uint8 or of floating point in [-1, 1]. C is 1 or 3, of
                uint8 also 4. For a model of other images: paths of their files; arrays as stored, (C, H, W) or
                (H, W, C); tensors (C, H, W) or (N, C, H, W) in [-1, 1].
            size: Side of a square, or (height, width), to which images of 8 bits are resized and center-cropped.
            value_range: Range of floating-point images, where it is another one. A tensor without negative values must
                give it.
            sample: Draw from the posterior instead of taking its mode.
            generator: Source of the draws; None is the global one.
            batch_size: Images that are encoded at a time; limits memory.

        Returns:
            Latents (N, C, h, w), float32, unscaled, on the model's device.

        Raises:
            UserError: another type, shape, dtype or range, images of different sizes, or a size that is not divisible
                by the downsample factor.
        """
        from ldm_ae.images.in_memory import batches_of_one_size, pixel_values_of
        from ldm_ae.images.in_memory_samples import pixel_values_of_samples
        from ldm_ae.images.pixels import RGB

        if self.pixel_spec == RGB:
            parts = pixel_values_of(images, size=size, value_range=value_range)
        else:
            parts = pixel_values_of_samples(images, self.pixel_spec, size=size, value_range=value_range)
        batches = batches_of_one_size(parts, batch_size)
        try:
            self.latent_spec.latent_size(*parts[0].shape[-2:])
        except UserError as error:
            raise UserError(f"{error}, or give size={self.sample_size} to resize and crop") from None
        posteriors = (self.encode(batch.to(self.device)) for batch in batches)
        return torch.cat([(p.sample(generator) if sample else p.mode()).float() for p in posteriors])

    @torch.no_grad()
    def decode_to_pil(self: Any, latents: Tensor, *, batch_size: int = 8) -> list[Image.Image]:
        """Decode unscaled latents (B, C, h, w) to B images of 8 bits, RGB, grey or RGBA, without gradients.

        Args:
            latents: What `encode_images` returns; `unscale` what a diffusion model gives first.
            batch_size: Latents that are decoded at a time; limits memory.

        Raises:
            UserError: another shape, a decoded image that is not finite, or a model of other images.
        """
        import numpy as np

        from ldm_ae.images.writing import picture

        pixels = self.pixel_spec
        if pixels.meaning == "channels" or pixels.dtype != np.uint8:
            raise UserError(f"images that are {pixels} are no PIL images of 8 bits; call decode_to_arrays")
        return [picture(planes) for planes in self.decode_to_arrays(latents, batch_size=batch_size)]

    @torch.no_grad()
    def decode_to_arrays(self: Any, latents: Tensor, *, batch_size: int = 8) -> list[NDArray[Any]]:
        """Decode unscaled latents (B, C, h, w) to B arrays (C, H, W) of the samples that files hold.

        Args:
            latents: What `encode_images` returns; `unscale` what a diffusion model gives first.
            batch_size: Latents that are decoded at a time; limits memory.

        Raises:
            UserError: another shape, or a decoded image that is not finite.
        """
        from ldm_ae.images.in_memory import batches_of_one_size

        self.require_latents(latents, on_device=False)
        if not latents.isfinite().all():
            raise UserError("latents must be finite, and some values are not")
        images: list[NDArray[Any]] = []
        for part in batches_of_one_size(latents.unbind(), batch_size):
            for image in self.decode(part.to(self.device)):
                if not image.isfinite().all():
                    where = f"the image decoded from latents[{len(images)}] is not finite in {self.dtype}"
                    raise UserError(f"{where}; check that the latents are unscaled, or load the model in fp32")
                images.append(self.pixel_spec.denormalize(image).cpu().numpy())
        return images
