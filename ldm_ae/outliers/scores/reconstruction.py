"""The error of the reconstruction. Source: Japkowicz et al., A novelty detection approach to classification, 1995."""

from __future__ import annotations

from torch import Tensor

from ldm_ae.images.missing import fill
from ldm_ae.outliers.encoded import Encoded
from ldm_ae.outliers.scores.interface import OutlierScore


class Reconstruction(OutlierScore):
    """Root of the mean squared error of the posterior's mode."""

    name = "reconstruction"
    label = "Reconstruction error"
    unit = "% of the range"
    explanation = (
        "Root of the mean squared error of the reconstruction. It finds noise and fine detail; smooth images, such as "
        "blurred and black ones, are easy to reconstruct."
    )

    def measure(self, images: Encoded) -> Tensor:
        """Return the error of each image."""
        reconstructions, pixel_values = images.reconstructions, images.pixel_values
        if images.setting.pixels.missing is not None:
            reconstructions, pixel_values = fill(reconstructions, pixel_values)
        squares = (reconstructions.double() - pixel_values.double()).square().flatten(1)
        low, high = images.setting.pixels.range
        return (100.0 / (high - low)) * squares.mean(dim=1).sqrt().cpu()
