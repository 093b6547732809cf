"""The PatchGAN discriminator: one logit for each overlapping patch.

Source: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, arXiv 1611.07004, appendix
6.1.2, with the layout that pix2pix, taming-transformers and LDM share; with n_layers=3 a logit covers 70x70 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View

Norm = Literal["batch", "group", "instance", "none"]
GROUPS = 32


class PatchDiscriminator(Discriminator):
    """Strided 4x4 convolutions with LeakyReLU(0.2); widths are ndf, 2 ndf, 4 ndf, at most 8 ndf. It takes the channels
    of the model's images.

    Args:
        n_layers: Number of convolutions with stride 2.
        ndf: Number of output channels of the first convolution.
        norm: Normalization after every convolution except the first and last. `batch` is LDM's; it mixes the images of
            a batch, so that results depend on the number of processes and the accumulation. `group` and `instance`,
            which has no parameters, do not.
        with_spectral_norm: Whether every convolution has spectral normalization (Miyato et al., arXiv 1802.05957).
    """

    short_names = ("patchgan",)

    def __init__(self, *, n_layers: int = 3, ndf: int = 64, norm: Norm = "batch", with_spectral_norm: bool = False):
        super().__init__()
        if n_layers < 1 or ndf < 1:
            raise UserError(f"PatchDiscriminator: expected n_layers and ndf of at least 1, got {n_layers} and {ndf}")
        wrap: Callable[[nn.Module], nn.Module] = spectral_norm if with_spectral_norm else lambda module: module
        widths = [ndf * min(2**i, 8) for i in range(n_layers + 1)]
        first = nn.Conv2d(self.pixels.channels, ndf, 4, stride=2, padding=1)
        layers: list[nn.Module] = [wrap(first), nn.LeakyReLU(0.2)]
        for i in range(1, n_layers + 1):
            stride = 2 if i < n_layers else 1
            # A convolution before normalization of each channel does not need a bias; LDM has none there.
            bias = norm not in ("batch", "instance")
            convolution = nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=bias)
            layers += [wrap(convolution), *_normalization(norm, widths[i]), nn.LeakyReLU(0.2)]
        layers.append(wrap(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)))
        self.layers = nn.Sequential(*layers)
        self.with_spectral_norm = with_spectral_norm
        if not with_spectral_norm:
            self.apply(_initialize)

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:  # noqa: ARG002 - it sees all channels
        if pixels.channels != self.pixels.channels:
            old = self.layers[0]
            assert isinstance(old, nn.Conv2d)
            first = nn.Conv2d(pixels.channels, old.out_channels, 4, stride=2, padding=1)
            self.layers[0] = spectral_norm(first) if self.with_spectral_norm else first.apply(_initialize)
        self.pixels = pixels

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layers(pixel_values)


def _normalization(norm: Norm, channels: int) -> list[nn.Module]:
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "group":
        return [nn.GroupNorm(math.gcd(GROUPS, channels // 2), channels)]
    if norm == "instance":
        return [nn.InstanceNorm2d(channels)]
    return []


def _initialize(module: nn.Module) -> None:
    """Apply pix2pix's initialization, which LDM also uses: N(0, 0.02) weights, normalization around 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
