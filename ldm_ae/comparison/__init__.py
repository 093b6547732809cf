"""Comparison of autoencoders: the same images, metrics and budget for each, and one page."""

from ldm_ae.comparison.compare import CompareConfig, Contestant, compare
from ldm_ae.comparison.comparison import Comparison
from ldm_ae.comparison.diffusion import DiffusionPlan
from ldm_ae.comparison.names import display_names, split_name
from ldm_ae.comparison.result import ModelResult
from ldm_ae.comparison.write import OWN_FILES, write_comparison

__all__ = [
    "OWN_FILES",
    "CompareConfig",
    "Comparison",
    "Contestant",
    "DiffusionPlan",
    "ModelResult",
    "compare",
    "display_names",
    "split_name",
    "write_comparison",
]
