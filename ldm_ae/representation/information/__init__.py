"""Information in latents: about the image, beyond the prior, and in which latents.

Functions take the means and log-variances of the Gaussian posteriors of N images, each (N, D), for D latents of an
image; `rate_distortion` takes a model.
"""

from ldm_ae.representation.information.active_units import ACTIVE_VARIANCE, active_units
from ldm_ae.representation.information.aggregate_posterior import Information, information
from ldm_ae.representation.information.collapse import Collapse, collapse
from ldm_ae.representation.information.rate_distortion import Point, rate_distortion, rate_distortion_figure
from ldm_ae.representation.information.total_correlation import total_correlation

__all__ = [
    "ACTIVE_VARIANCE",
    "Collapse",
    "Information",
    "Point",
    "active_units",
    "collapse",
    "information",
    "rate_distortion",
    "rate_distortion_figure",
    "total_correlation",
]
