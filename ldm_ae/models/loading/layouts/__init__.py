"""The layouts of single files of weights, one file each; the keys below a prefix determine which one a file has."""

from ldm_ae.core.registry import Registry
from ldm_ae.models.loading.layouts.interface import Layout

LAYOUTS: Registry[Layout] = Registry(__name__, Layout, "single-file layout")  # type: ignore[type-abstract]
"""Every layout by its name."""
