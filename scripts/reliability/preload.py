"""Imports what commands import when they need it, for processes that are then forked: a fork has it for nothing.

A process that imports this must compute nothing with torch before it forks.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util

import diffusers

from ldm_ae.training.configuration.full_names import REGISTRIES

MODULES = (
    "pyarrow.dataset", "ldm_ae.cli", "ldm_ae.training.run", "ldm_ae.latents", "ldm_ae.latents.conversion.convert",
    "ldm_ae.latents.conversion.import_store", "ldm_ae.evaluation", "ldm_ae.interop",
)  # fmt: skip
WHERE_INSTALLED = ("attrs", "docstring_parser", "pandas")
"""What jsonargparse and pyarrow import if it is there."""
NETWORKS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
"""Classes of diffusers, which imports a class when it is looked up."""

for module in (*MODULES, *(name for name in WHERE_INSTALLED if importlib.util.find_spec(name) is not None)):
    importlib.import_module(module)
for network in NETWORKS:
    getattr(diffusers, network)
for registry in REGISTRIES.values():
    registry.classes()
gc.collect()
gc.freeze()  # a collection in a fork would copy every page that holds an object
