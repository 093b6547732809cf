"""Imports what commands import when they need it, and parses a recipe as each run does, for processes that are then
forked: a fork has the modules and the parsers of the classes for nothing.

A process that imports this must compute nothing with torch before it forks.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import pkgutil

import diffusers

from ldm_ae.training.configuration.full_names import REGISTRIES
from ldm_ae.training.configuration.parsing import parse_config

MODULES = (
    "pyarrow.dataset", "ldm_ae.cli", "ldm_ae.training.run", "ldm_ae.latents", "ldm_ae.latents.conversion.convert",
    "ldm_ae.latents.conversion.import_store", "ldm_ae.evaluation", "ldm_ae.interop",
)  # fmt: skip
_PACKAGES = {registry.package for registry in REGISTRIES.values() if registry.package.startswith("ldm_ae.")}
PACKAGES = sorted({"ldm_ae.data.sources", "ldm_ae.evaluation.metrics", *_PACKAGES})
"""Packages whose files registries find by name."""
WHERE_INSTALLED = ("attrs", "docstring_parser", "pandas")
"""What jsonargparse and pyarrow import if it is there."""
NETWORKS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
"""Classes of diffusers, which imports a class when it is looked up."""

for module in (*MODULES, *(name for name in WHERE_INSTALLED if importlib.util.find_spec(name) is not None)):
    importlib.import_module(module)
for network in NETWORKS:
    getattr(diffusers, network)
for package in PACKAGES:
    for item in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{item.name}")
parse_config(["--config", "kl_f16", "--data.train", "images", "--out", "run"])
for registry in REGISTRIES.values():
    registry._others = None  # a fork may have plugins that this process has not
gc.collect()
gc.freeze()  # a collection in a fork would copy every page that holds an object
