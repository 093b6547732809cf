"""The quantizers, one per file. A new quantizer is a new file with a `Quantizer` class in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ldm_ae.core.deprecation import old_export
from ldm_ae.core.errors import UserError, reason
from ldm_ae.core.registry import Registry, export
from ldm_ae.quantizers.bsq import BSQ
from ldm_ae.quantizers.codebook import CodebookCare, ManagedCodebook
from ldm_ae.quantizers.cosine import CosineVQ
from ldm_ae.quantizers.ema import EMAVQ
from ldm_ae.quantizers.fsq import FSQ
from ldm_ae.quantizers.gumbel import GumbelVQ
from ldm_ae.quantizers.ibq import IBQ
from ldm_ae.quantizers.interface import Quantized, Quantizer
from ldm_ae.quantizers.lfq import LFQ
from ldm_ae.quantizers.nearest import nearest_codes
from ldm_ae.quantizers.residual import ResidualVQ
from ldm_ae.quantizers.simvq import SimVQ
from ldm_ae.quantizers.vq import VQ

__all__ = [
    "BSQ",
    "EMAVQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "QUANTIZERS",
    "VQ",
    "CodebookCare",
    "CosineVQ",
    "GumbelVQ",
    "ManagedCodebook",
    "Quantized",
    "Quantizer",
    "ResidualVQ",
    "SimVQ",
    "build_quantizer",
    "describe_quantizer",
    "nearest_codes",
]

QUANTIZERS: Registry[Quantizer] = Registry(__name__, Quantizer, "quantizer")  # type: ignore[type-abstract]
"""Every quantizer by its name. Files can refer to a quantizer only by this name."""


def describe_quantizer(quantizer: Quantizer) -> dict[str, Any]:
    """Return `class_name` and `init_args` as JSON values, from which `build_quantizer` rebuilds it without state."""
    arguments: dict[str, Any] = {}
    for name, value in quantizer.init_args.items():
        if isinstance(value, Quantizer):
            value = describe_quantizer(value)
        elif isinstance(value, CodebookCare):
            value = asdict(value)
        arguments[name] = value
    return {"class_name": type(quantizer).__name__, "init_args": arguments}


def build_quantizer(description: dict[str, Any]) -> Quantizer:
    """Build the quantizer of a description.

    Raises:
        UserError: It names an unknown quantizer, or arguments that the quantizer does not accept.
    """
    name, arguments = str(description.get("class_name")), description.get("init_args")
    kind = QUANTIZERS[name]
    if not isinstance(arguments, dict):
        raise UserError(f"quantizer {name} needs a mapping as its init_args")
    try:
        built = {key: _read_argument(key, value) for key, value in arguments.items()}
        return kind(**built)
    except TypeError as error:
        raise UserError(f"quantizer {name} does not accept these arguments: {reason(error)}") from error


def _read_argument(name: str, value: Any) -> Any:
    if name == "quantizer":
        return build_quantizer(value)
    if name == "care":
        return CodebookCare(**value)
    return value


if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        if (new := old_export(__name__, name, {"CaredTable": "ManagedCodebook"})) is not None:
            return globals()[new]
        return export(__name__, name, QUANTIZERS)
