"""The spectral-norm PatchGAN: a logit for each element of a feature map, and no normalization of activations.

Source: Yu et al., Free-Form Image Inpainting with Gated Convolution, arXiv 1806.03589, section 3.3 ("SN-PatchGAN"),
without its mask channel; spectral normalization is that of Miyato et al., arXiv 1802.05957, with one power iteration
per forward pass. The last convolution has no activation, so that logits are not bounded on one side.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View


class SpectralPatchDiscriminator(Discriminator):
    """Strided 5x5 convolutions of spectral norm 1 with LeakyReLU(0.2) between; widths ndf, 2 ndf, then 4 ndf.

    No image's logits depend on another image of the batch. The estimate of the norms improves with each forward pass,
    so that k micro-batches equal one batch k times as large once the estimate has converged. It takes the channels of
    the model's images.

    Args:
        n_layers: Number of convolutions, each with stride 2. The paper has 6, for images of 256 pixels.
        ndf: Number of output channels of the first convolution.
    """

    short_names = ("spectral-patchgan", "sn-patchgan")

    def __init__(self, *, n_layers: int = 6, ndf: int = 64):
        super().__init__()
        if n_layers < 1 or ndf < 1:
            raise UserError(
                f"SpectralPatchDiscriminator: expected n_layers and ndf of at least 1, got {n_layers} and {ndf}"
            )
        widths = [self.pixels.channels, *(ndf * min(2**i, 4) for i in range(n_layers))]
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1])

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:  # noqa: ARG002 - it sees all channels
        if pixels.channels != self.pixels.channels:
            old = self.layers[0]
            assert isinstance(old, nn.Conv2d)
            self.layers[0] = spectral_norm(nn.Conv2d(pixels.channels, old.out_channels, 5, stride=2, padding=2))
        self.pixels = pixels

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixel_values)
        return logits
