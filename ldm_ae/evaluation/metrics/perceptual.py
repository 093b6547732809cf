"""Distance of deep features of each pair of images: LPIPS, shift-tolerant LPIPS, or the caller's network."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from ldm_ae.evaluation.metrics.interface import ImageMetric, Setting
from ldm_ae.evaluation.network_sizes import require_size
from ldm_ae.images.missing import fill
from ldm_ae.images.pixels import RGB
from ldm_ae.images.views import View, view_for
from ldm_ae.losses import LPIPS, ShiftTolerantLPIPS
from ldm_ae.losses.perceptual.interface import PerceptualLoss, try_size


class PerceptualDistance(Protocol):
    """A feature network that compares images, like those of `ldm_ae.losses`."""

    @property
    def name(self) -> str:
        """Name of a score by this network, for example `lpips_vgg`."""

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor, /) -> Tensor:
        """Return distances (B,) of reconstructions and pixel values, each (B, 3, H, W) in [-1, 1]."""


LABELS = {
    f"{family}_{net}": f"{title} ({network})"
    for family, title in (("lpips", "LPIPS"), ("stlpips", "ST-LPIPS"))
    for net, network in (("alex", "AlexNet"), ("vgg", "VGG"), ("squeeze", "SqueezeNet"))
}
"""Display names of the distances by the networks of `ldm_ae.losses`."""


class Perceptual(ImageMetric):
    """Mean distance by a network, under the network's name.

    Args:
        network: None uses shift-tolerant LPIPS over VGG16.
    """

    name = "perceptual"
    direction = "lower"
    explanation = "Perceptual distance of deep features; closer to human perception than PSNR."

    def __init__(self, network: PerceptualDistance | None = None):
        self.network: Any = ShiftTolerantLPIPS() if network is None else network
        self.name = self.network.name
        self.label = LABELS.get(self.name, self.name)
        self.pixels = getattr(self.network, "pixels", RGB)
        self._view: View | None = None
        self._fills = False

    def require(self, shape: tuple[int, ...]) -> None:
        """Run the network on this shape."""
        if isinstance(self.network, PerceptualLoss):
            require_size(self.network, try_size, shape)

    def prepare(self, setting: Setting) -> None:
        """Move the network to the device, and take the view of alpha for a distance of any channels."""
        self._view = view_for(None, setting.pixels, setting.view, self.name) if self.pixels is None else None
        self._fills = self.pixels is None and setting.pixels.missing is not None
        if isinstance(self.network, nn.Module):
            self.network.to(setting.device)

    def protocol(self) -> dict[str, object]:
        """Return the weights of the network, where its name does not determine them."""
        identity = getattr(self.network, "identity", self.name)
        return {} if identity == self.name else {f"{self.name}_network": identity}

    def per_image(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (B,) distances."""
        if self._fills:
            reconstructions, pixel_values = fill(reconstructions, pixel_values)
        if self._view is None:
            return self._distances(reconstructions, pixel_values)
        count = len(pixel_values)
        return self._distances(*self._view(reconstructions, pixel_values)).view(count, -1).mean(dim=1)

    def _distances(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        distances: Tensor = self.network(reconstructions, pixel_values)
        return distances.float()


class LPIPSAlex(Perceptual):
    """LPIPS over AlexNet, which papers report most often."""

    name = "lpips_alex"

    def __init__(self) -> None:
        super().__init__(LPIPS(net="alex"))


class LPIPSVGG(Perceptual):
    """LPIPS over VGG16."""

    name = "lpips_vgg"

    def __init__(self) -> None:
        super().__init__(LPIPS(net="vgg"))


class LPIPSSqueeze(Perceptual):
    """LPIPS over SqueezeNet."""

    name = "lpips_squeeze"

    def __init__(self) -> None:
        super().__init__(LPIPS(net="squeeze"))


class ShiftTolerantAlex(Perceptual):
    """Shift-tolerant LPIPS over AlexNet."""

    name = "stlpips_alex"

    def __init__(self) -> None:
        super().__init__(ShiftTolerantLPIPS(net="alex"))


class ShiftTolerantVGG(Perceptual):
    """Shift-tolerant LPIPS over VGG16."""

    name = "stlpips_vgg"

    def __init__(self) -> None:
        super().__init__(ShiftTolerantLPIPS(net="vgg"))
