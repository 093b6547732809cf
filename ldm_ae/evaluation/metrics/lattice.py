"""Whether the decoder lays a lattice over flat areas: power at the periods of its strides, beside the original's.

A decoder that enlarges by 2 at each of its stages leaves patterns of periods 2, 4, 8... up to its downsample factor
(Odena et al., Deconvolution and Checkerboard Artifacts, Distill 2016, doi 10.23915/distill.00003), which are seen where
the image is flat. Both images' periodograms are taken over the same flat windows of the original, each without its
plane and under a Hann window, so that ramps and slow curves do not reach these frequencies. The sides of the windows
are multiples of all the periods: each is one coefficient, of which the Hann window leaks to direct neighbours alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics.interface import JSON, CannotScoreError, Metric, Needs, ScoreInfo, Scores, Setting
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import to_levels
from ldm_ae.models import Posterior

SMALLEST_WINDOW = 32
"""Smallest side of a window in pixels."""
PERIODS_IN_WINDOW = 4
"""Smallest number of the largest period in a window; fewer are not apart from slow changes."""
FLAT = 2.0
"""Largest root mean square of a flat window without its plane, in 8-bit levels, over the three colours. In photos these
are sky, walls and blurred backgrounds; at 4 levels faint texture has most of the power and hides a visible lattice."""
FEWEST_WINDOWS = 64
"""Fewest flat windows whose mean power is compared: its standard error is then about 0.5 dB at most."""
ROUNDING_POWER = 1 / 12
"""Power of one coefficient of the noise of rounding to levels, in squared levels: no spectrum counts as lower."""
WITHOUT_MODEL = 8
"""Downsample factor where images are compared without a model; it is also the block of JPEG."""
DIRECTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "horizontal": ((0, 1),), "vertical": ((1, 0),), "diagonal": ((1, 1), (1, -1))
}  # fmt: skip
"""Frequencies (vertical, horizontal) of a direction in which the pattern changes, in cycles per period."""


class Lattice(Metric):
    """Largest excess over periods and directions, and the largest by which one stands out of its neighbourhood.

    Powers are means over flat windows and colours. There is no score where the images have few or no flat windows. What
    bleeds into a flat area from its borders counts too.
    """

    name = "lattice"
    label = "Lattice"
    direction = "lower"
    explanation = "Power of the reconstruction at the periods of the decoder's strides in flat areas."
    pixels = RGB
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "lattice_db": ScoreInfo(
            label="Lattice in flat areas", direction="lower", unit="dB", decimals=1,
            explanation="Largest excess of power over the original's at the periods of the decoder's strides, in flat "
            "areas; noise at these periods counts too.",
        ),
        "lattice_contrast_db": ScoreInfo(
            label="Lattice in flat areas, above its neighbourhood", direction="lower", unit="dB", decimals=1,
            explanation="Largest difference of this excess from the mean excess at neighbouring frequencies; about 0 "
            "for noise, which changes both.",
        ),
    }  # fmt: skip

    def __init__(self) -> None:
        self._factor = WITHOUT_MODEL
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Take the downsample factor of the model.

        Raises:
            CannotScoreError: The model does not downsample.
        """
        self._factor = WITHOUT_MODEL if setting.model is None else setting.model.latent_spec.downsample_factor
        if self._factor == 1:
            raise CannotScoreError(f"{self.label} needs a model with strides; this one's latents have the images' size")
        self.needs = Needs(side=window_side(self._factor))

    def reset(self) -> None:
        """Discard all images."""
        side = window_side(self._factor)
        self._power = torch.zeros(2, side, side, dtype=torch.float64)
        self._windows = self._images = 0

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Add the flat windows of a batch."""
        side = window_side(self._factor)
        found, reference = (_windows(to_levels(images), side) for images in (reconstructions, pixel_values))
        flat = reference.square().mean(dim=(2, 3, 4)) <= FLAT**2  # (B, windows)
        if flat.any():
            for number, windows in enumerate((found, reference)):
                self._power[number] += power(windows[flat]).sum(dim=0).double().cpu()
            self._windows += int(flat.sum())
            self._images += int(flat.any(dim=1).sum())
        return {}

    def compute(self) -> Scores:
        """Return both numbers.

        Raises:
            CannotScoreError: There are too few flat windows.
        """
        if self._windows < FEWEST_WINDOWS:
            side = window_side(self._factor)
            raise CannotScoreError(
                f"{self.label} needs at least {FEWEST_WINDOWS} flat windows of {side}x{side} pixels in these images, "
                f"got {self._windows}"
            )
        lines = self._lines()
        return {
            "lattice_db": max(line["excess_db"] for line in lines.values()),
            "lattice_contrast_db": max(line["contrast_db"] for line in lines.values()),
        }

    def details(self) -> Mapping[str, JSON]:
        """Return the numbers of flat windows and of images that have some, and each period and direction: power of
        reconstruction and original in squared levels, the excess and its contrast."""
        return {"flat_windows": self._windows, "images_with_flat_windows": self._images, "lines": self._lines()}

    def protocol(self) -> dict[str, object]:
        """Return what a flat window is."""
        side = window_side(self._factor)
        return {
            "lattice": {
                "windows": f"{side}x{side} pixels every {side // 2}, flat up to an RMS of {FLAT:g} levels without "
                "their plane",
                "floor": "power of 8-bit rounding, 1/12 squared level",
            }
        }

    def _lines(self) -> dict[str, dict[str, float]]:
        mean = self._power / self._windows
        decibels = 10 * mean.clamp(min=ROUNDING_POWER).log10()
        excess, side = decibels[0] - decibels[1], len(mean[0])
        lines = {}
        for period in periods(self._factor):
            for direction, frequencies in DIRECTIONS.items():
                places = [(y * side // period % side, x * side // period % side) for y, x in frequencies]
                above = [float(excess[y, x]) for y, x in places]
                around = [_around(excess, y, x) for y, x in places]
                worst = max(range(len(places)), key=above.__getitem__)
                lines[f"{direction}_{period}"] = {
                    "power": round(float(mean[0][places[worst]]), 4),
                    "original_power": round(float(mean[1][places[worst]]), 4),
                    "excess_db": above[worst],
                    "contrast_db": max(one - other for one, other in zip(above, around, strict=True)),
                }
        return lines


def periods(factor: int) -> list[int]:
    """Return the periods of a decoder's strides in pixels, smallest first: powers of two up to its factor."""
    return [2**k for k in range(1, factor.bit_length()) if 2**k <= factor]


def window_side(factor: int) -> int:
    """Return the side of the windows in pixels, a multiple of all periods."""
    return max(SMALLEST_WINDOW, PERIODS_IN_WINDOW * factor)


def power(windows: Tensor) -> Tensor:
    """Return the periodogram under a Hann window, mean over colours, of windows (N, C, S, S): (N, S, S).

    It is normalized so that white noise of variance v has the power v at each frequency.
    """
    side = windows.shape[-1]
    hann = torch.hann_window(side, periodic=True, dtype=windows.dtype, device=windows.device)
    weights = hann[:, None] * hann[None]
    return torch.fft.fft2(windows * weights).abs().square().mean(dim=1) / weights.square().sum()


def _windows(levels: Tensor, side: int) -> Tensor:
    """Return windows of images (B, C, H, W), every half side, without their planes: (B, windows, C, side, side)."""
    windows = levels.unfold(2, side, side // 2).unfold(3, side, side // 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    windows = windows - windows.mean(dim=(-2, -1), keepdim=True)
    ramp = torch.arange(side, dtype=levels.dtype, device=levels.device) - (side - 1) / 2
    for slope in (ramp[:, None], ramp[None]):  # orthogonal to each other and to the constant
        plane = slope.expand(side, side)
        windows = windows - (windows * plane).sum(dim=(-2, -1), keepdim=True) / plane.square().sum() * plane
    return windows


def _around(excess: Tensor, y: int, x: int) -> float:
    """Return the mean of the 16 coefficients at a distance of two, to which the Hann window does not leak."""
    square = excess.roll((2 - y, 2 - x), dims=(0, 1))[:5, :5]
    return float((square.sum() - square[1:4, 1:4].sum()) / 16)
