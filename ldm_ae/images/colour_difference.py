"""CIELAB of sRGB images, and the colour difference CIEDE2000 between two of them.

Source: Sharma, Wu, Dalal, The CIEDE2000 Color-Difference Formula: Implementation Notes, Supplementary Test Data, and
Mathematical Observations, Color Research & Application 30(1), 2005; k_L = k_C = k_H = 1. sRGB is IEC 61966-2-1, whose
white is D65; CIELAB is CIE 15.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""IEC 61966-2-1: XYZ of linear RGB. White is the image of (1, 1, 1), so that greys have no chroma."""
_DELTA = 6 / 29
_POWER_25_7 = 25.0**7


def srgb_to_lab(pixel_values: Tensor) -> Tensor:
    """Return CIELAB of sRGB images.

    Args:
        pixel_values: (B, 3, H, W) in [-1, 1].

    Returns:
        (B, 3, H, W): lightness L* from 0 to 100, a* and b*.
    """
    encoded = (pixel_values + 1) / 2
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded.clamp(min=0.0) + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_TO_XYZ, dtype=linear.dtype, device=linear.device)
    matrix = matrix / matrix.sum(dim=1, keepdim=True)
    ratios = torch.einsum("ij,bjhw->bihw", matrix, linear)
    cubic = ratios > _DELTA**3
    f = torch.where(cubic, ratios.clamp(min=_DELTA**3) ** (1 / 3), ratios / (3 * _DELTA**2) + 4 / 29)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def chroma(lab: Tensor) -> Tensor:
    """Return C*ab of CIELAB images (B, 3, H, W), (B, H, W): the distance from grey."""
    return torch.hypot(lab[:, 1], lab[:, 2])


def ciede2000(lab: Tensor, reference: Tensor) -> Tensor:
    """Return the difference CIEDE2000 of each pixel. It is symmetric.

    Args:
        lab: (B, 3, H, W), CIELAB.
        reference: CIELAB of the same shape, dtype and device.

    Returns:
        (B, H, W), at least 0. About 1 is just noticeable between large patches side by side.
    """
    lightness, other_lightness = lab[:, 0], reference[:, 0]
    # Equations 2 to 7: the chroma of greys is raised.
    mean_chroma_7 = ((chroma(lab) + chroma(reference)) / 2) ** 7
    gain = 1.5 - 0.5 * torch.sqrt(mean_chroma_7 / (mean_chroma_7 + _POWER_25_7))
    a, other_a = gain * lab[:, 1], gain * reference[:, 1]
    c, other_c = torch.hypot(a, lab[:, 2]), torch.hypot(other_a, reference[:, 2])
    h, other_h = _hue(a, lab[:, 2]), _hue(other_a, reference[:, 2])
    # Equations 8 to 11. The hue of a grey has no effect.
    coloured = c * other_c > 0
    turn = other_h - h
    turn = torch.where(turn > 180, turn - 360, torch.where(turn < -180, turn + 360, turn))
    delta_hue = 2 * torch.sqrt(c * other_c) * torch.sin(torch.deg2rad(torch.where(coloured, turn, 0.0)) / 2)
    # Equations 12 to 14.
    mean_l, mean_c, sum_h = (lightness + other_lightness) / 2, (c + other_c) / 2, h + other_h
    wrapped = torch.where(sum_h < 360, sum_h + 360, sum_h - 360)
    mean_h = torch.where((h - other_h).abs() <= 180, sum_h, wrapped) / 2
    mean_h = torch.where(coloured, mean_h, sum_h)
    # Equations 15 to 22.
    t = 1 - 0.17 * _cos(mean_h - 30) + 0.24 * _cos(2 * mean_h) + 0.32 * _cos(3 * mean_h + 6)
    t = t - 0.20 * _cos(4 * mean_h - 63)
    from_50 = (mean_l - 50) ** 2
    scale_l = 1 + 0.015 * from_50 / torch.sqrt(20 + from_50)
    scale_c, scale_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    mean_c_7 = mean_c**7
    angle = 60 * torch.exp(-(((mean_h - 275) / 25) ** 2))
    rotation = -2 * torch.sqrt(mean_c_7 / (mean_c_7 + _POWER_25_7)) * torch.sin(torch.deg2rad(angle))
    by_l, by_c = (other_lightness - lightness) / scale_l, (other_c - c) / scale_c
    by_h = delta_hue / scale_h
    squares = by_l**2 + by_c**2 + by_h**2 + rotation * by_c * by_h
    return torch.sqrt(squares.clamp(min=0.0))  # rounding may be below 0


def _hue(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle in degrees, from 0 to below 360."""
    degrees = torch.rad2deg(torch.atan2(b, a))
    return torch.where(degrees < 0, degrees + 360, degrees)


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(degrees * (math.pi / 180))
