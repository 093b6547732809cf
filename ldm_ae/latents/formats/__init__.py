"""The files that other people's trainers read, one file of this folder a format.

A new format is one new file with a `Format` class in it, whose name is the file's with hyphens for underscores.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from ldm_ae.latents.formats.base import Foreign, Format, Options, Sample, Samples

__all__ = ["FORMATS", "Foreign", "Format", "Options", "Sample", "Samples"]


def _find_formats() -> dict[str, type[Format]]:
    """The `Format` classes of this folder's modules by name, in alphabetical order."""
    found: dict[str, type[Format]] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for item in vars(module).values():
            defined_here = isinstance(item, type) and item.__module__ == module.__name__
            if defined_here and issubclass(item, Format) and not inspect.isabstract(item):
                # The command line lists the formats by their files, without importing them.
                assert item.name == module_info.name.replace("_", "-"), f"{item.name} is in {module_info.name}.py"
                found[item.name] = item
    return found


FORMATS: dict[str, type[Format]] = _find_formats()
