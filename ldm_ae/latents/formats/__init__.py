"""The file formats of other trainers, one format per file of this folder.

A new format is one new file with a `Format` class, whose name is the file's name with hyphens for underscores.
"""

from __future__ import annotations

from ldm_ae.core.registry import Registry
from ldm_ae.latents.formats.interface import Foreign, Format, Options, Sample, Samples

__all__ = ["FORMATS", "Foreign", "Format", "Options", "Sample", "Samples"]

FORMATS: Registry[Format] = Registry(__name__, Format, "latent format", key="name", by_file=True)  # type: ignore[type-abstract]
"""Every format by its name. The command line lists the names without importing the formats."""
