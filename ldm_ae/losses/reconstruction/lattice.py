"""The error that repeats with the decoder's strides, where the image is flat. The metric `lattice` counts them.

A decoder that enlarges by 2 at each stage leaves patterns of periods up to its downsample factor (Odena et al.,
Deconvolution and Checkerboard Artifacts, Distill 2016, doi 10.23915/distill.00003). They are weak beside the errors of
edges and texture, so that L1 hardly sees them, and on a smooth area the eye sees nothing else. This term is ours.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss

PERIODS = 4
"""Periods in a window's side: an error that does not repeat is averaged over the square of this number."""
IMAGE = "b c (rows n p) (columns m q)"
WINDOWS = "b c rows columns n p m q"
"""n and m count the periods of a window, p and q are the phases."""
WITHIN, PLACES = (-4, -3, -2, -1), (-4, -2)
"""The axes of a window, and those over which the places of one phase lie."""


class LatticeError(ReconstructionLoss):
    """|mean of x - x̂ over the places of one phase|, in windows of four periods, less where the window is not flat.

    The mean of a window is left out: it is not a pattern. A window whose standard deviation is `flat` counts half, one
    of twice that a fifth. A border that fills no window has no error. As a term of `WeightedReconstruction`, beside an
    error of every pixel.

    Args:
        period: Length of the pattern in pixels, the model's downsample factor.
        flat: Standard deviation of a half-flat window, of images in [-1, 1].

    Raises:
        UserError: A period below 2, `flat` that is not above 0, or images smaller than a window.
    """

    short_names = ("lattice",)

    def __init__(self, *, period: int = 8, flat: float = 0.03):
        if period < 2:
            raise UserError(f"LatticeError: expected a period of at least 2 pixels, got {period}")
        if not 0 < flat < float("inf"):
            raise UserError(f"LatticeError: expected flat above 0, got {flat}")
        self._period, self._side, self._flat = period, PERIODS * period, flat

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[-2:]
        if min(height, width) < self._side:
            raise UserError(
                f"LatticeError needs images of at least {self._side}x{self._side} pixels, got {height}x{width}"
            )
        images, error = (self._windows(each) for each in (pixel_values, reconstructions - pixel_values))
        activity = (images - images.mean(dim=WITHIN, keepdim=True)).square().mean(dim=(1, *WITHIN), keepdim=True)
        pattern = error.mean(dim=PLACES, keepdim=True)
        pattern = (pattern - pattern.mean(dim=WITHIN, keepdim=True)).abs() / (1 + activity / self._flat**2)
        whole = rearrange(pattern.expand(*error.shape), f"{WINDOWS} -> {IMAGE}")
        return F.pad(whole, (0, width - whole.shape[-1], 0, height - whole.shape[-2]))

    def _windows(self, images: Tensor) -> Tensor:
        """Return the windows of images (B, C, H, W), without a border that fills none: the axes of `WINDOWS`."""
        height, width = (length // self._side * self._side for length in images.shape[-2:])
        period = self._period
        return rearrange(
            images[..., :height, :width], f"{IMAGE} -> {WINDOWS}", n=PERIODS, m=PERIODS, p=period, q=period
        )
