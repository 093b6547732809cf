"""The error that repeats with the decoder's strides, where the image is flat: what the metric `lattice` measures.

A decoder that enlarges by 2 at each stage leaves patterns of periods up to its downsample factor (Odena et al.,
Deconvolution and Checkerboard Artifacts, Distill 2016, doi 10.23915/distill.00003). They are weak beside the errors of
edges and texture, so that L1 hardly sees them, and on a smooth area the eye sees nothing else. This term is ours.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ldm_ae.core.errors import UserError
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss

PERIODS = 4
"""Periods in a window's side: an error that does not repeat is averaged over the square of this number."""


class LatticeError(ReconstructionLoss):
    """|mean of x - x̂ over the places of one phase|, in windows of four periods, less where the window is not flat.

    The mean of a window is left out: it is not a pattern. A window whose plain root mean square is `flat` counts half,
    one of twice that a fifth. A border that fills no window has no error. As a term of `WeightedReconstruction`, beside
    an error of every pixel.

    Args:
        period: Length of the pattern in pixels, the model's downsample factor.
        flat: Root mean square of a half-flat window, of images in [-1, 1].

    Raises:
        UserError: A period below 2, `flat` that is not above 0, or images smaller than a window.
    """

    short_names = ("lattice",)

    def __init__(self, *, period: int = 8, flat: float = 0.03):
        if period < 2:
            raise UserError(f"LatticeError: expected a period of at least 2 pixels, got {period}")
        if not 0 < flat < float("inf"):
            raise UserError(f"LatticeError: expected flat above 0, got {flat}")
        self._period, self._flat = period, flat

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[-2:]
        side = PERIODS * self._period
        if min(height, width) < side:
            raise UserError(f"LatticeError needs images of at least {side}x{side} pixels, got {height}x{width}")
        windows = self._windows(pixel_values)
        activity = (windows - windows.mean(dim=(-4, -3, -2, -1), keepdim=True)).square()
        activity = activity.mean(dim=(1, -4, -3, -2, -1), keepdim=True)  # one for all colours
        pattern = self._windows(reconstructions - pixel_values).mean(dim=(-4, -2), keepdim=True)
        pattern = pattern - pattern.mean(dim=(-3, -1), keepdim=True)
        error = pattern.abs() / (1 + activity / self._flat**2)
        batch, channels, rows, columns = windows.shape[:4]
        whole = error.expand(*windows.shape).permute(0, 1, 2, 4, 5, 3, 6, 7)
        whole = whole.reshape(batch, channels, rows * side, columns * side)
        return functional.pad(whole, (0, width - columns * side, 0, height - rows * side))

    def _windows(self, images: Tensor) -> Tensor:
        """Return (B, C, rows, columns, PERIODS, period, PERIODS, period)."""
        side = PERIODS * self._period
        rows, columns = images.shape[-2] // side, images.shape[-1] // side
        cut = images[..., : rows * side, : columns * side]
        shape = (*cut.shape[:2], rows, PERIODS, self._period, columns, PERIODS, self._period)
        return cut.reshape(shape).permute(0, 1, 2, 5, 3, 4, 6, 7)
