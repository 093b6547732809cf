"""Comparison of autoencoders: the same images, metrics and budget for each, and one page."""

from ldm_ae.comparison.compare import CompareConfig, Contestant, compare
from ldm_ae.comparison.comparison import Comparison
from ldm_ae.comparison.diffusion import DiffusionPlan
from ldm_ae.comparison.figures import FIGURE_KINDS, require_matplotlib
from ldm_ae.comparison.folder import comparison_folder
from ldm_ae.comparison.names import display_names, split_name
from ldm_ae.comparison.result import ModelResult
from ldm_ae.comparison.write import write_comparison

__all__ = [
    "FIGURE_KINDS",
    "CompareConfig",
    "Comparison",
    "Contestant",
    "DiffusionPlan",
    "ModelResult",
    "compare",
    "comparison_folder",
    "display_names",
    "require_matplotlib",
    "split_name",
    "write_comparison",
]
