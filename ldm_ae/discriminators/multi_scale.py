"""Patch discriminators at several scales of an image: fine ones see texture, coarse ones structure.

Source: Wang et al., pix2pixHD, arXiv 1711.11585, section 3.2 and appendix; the convolutions have the padding of LDM's
patch discriminator. The paper adds the losses of the scales; here each scale has the same part in one mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.discriminators.patchgan import Norm, PatchDiscriminator
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View


class MultiScaleDiscriminator(Discriminator):
    """A `PatchDiscriminator` for the image, one for its half, and so on; no weights are shared.

    Args:
        scales: Number of scales.
        n_layers: Number of convolutions with stride 2 at each scale.
        ndf: Number of output channels of the first convolution.
        norm: Normalization, as in `PatchDiscriminator`; `batch` mixes the images of a batch. The paper has `instance`.
        with_spectral_norm: Whether every convolution has spectral normalization.
    """

    short_names = ("multi-scale",)

    def __init__(
        self,
        *,
        scales: int = 3,
        n_layers: int = 3,
        ndf: int = 64,
        norm: Norm = "instance",
        with_spectral_norm: bool = False,
    ):
        super().__init__()
        if scales < 1:
            raise UserError(f"MultiScaleDiscriminator: expected scales of at least 1, got {scales}")
        self.networks = nn.ModuleList(
            PatchDiscriminator(n_layers=n_layers, ndf=ndf, norm=norm, with_spectral_norm=with_spectral_norm)
            for _ in range(scales)
        )

    @classmethod
    def example(cls) -> MultiScaleDiscriminator:
        return cls(n_layers=2, ndf=8)

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:
        for network in self.networks:
            assert isinstance(network, PatchDiscriminator)
            network.prepare(pixels, view)
        self.pixels = pixels

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits (B, scales, h, w); those of coarse scales are repeated."""
        found: list[Tensor] = []
        for network in self.networks:
            if found:
                pixel_values = F.avg_pool2d(pixel_values, 3, stride=2, padding=1, count_include_pad=False)
            logits = network(pixel_values)
            found.append(F.interpolate(logits, size=found[0].shape[-2:]) if found else logits)
        return torch.cat(found, dim=1)
