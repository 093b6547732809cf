"""Files of a class whose configuration the user gives: diffusers' keys below any prefix, without inference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, reason
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.loading.configs import GivenConfig
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.other_classes import describe_class
from ldm_ae.models.loading.scales import Scale

_MOST_PREFIXES = 64


class ByConfig(Layout):
    """diffusers' keys of a class that the user names; it is not in the registry, because it recognizes nothing."""

    keys = "diffusers' keys"
    marks = ()
    class_names = ()

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        del state
        return False

    def infer(self, contents: Contents) -> Inference:
        assert contents.class_name is not None
        return Inference(
            class_name=contents.class_name, config={}, state=contents.state, assumed="",
            description=f"{contents.class_name}, as configured",
            scale=Scale(factor=1.0, shift=None, source="that of the configuration"),
        )  # fmt: skip

    def example(self) -> dict[str, dict[str, Tensor]]:
        return {}


def by_config(given: GivenConfig, everything: Mapping[str, Tensor], path: Path) -> tuple[str, Layout]:
    """Return the prefix below which a file has the keys of the configured class, and the layout.

    Raises:
        UserError: The class is unknown, its configuration cannot be built, or the file does not have its keys.
    """
    name, expected = str(given.class_name), _expected(given)
    first = min(expected)
    prefixes = _prefixes(first, everything)
    if not prefixes:
        raise UserError(f"{path} does not hold the {name} of {given.name}: it has no weight {first}")
    return max(prefixes, key=lambda prefix: sum(f"{prefix}{key}" in everything for key in expected)), ByConfig()


def exactly_by_config(given: GivenConfig, everything: Mapping[str, Tensor]) -> tuple[str, Layout] | None:
    """Return the same where a file has every weight of the configured class in its shape, so that nothing is inferred;
    None where it has not, or where the configuration is not complete."""
    if given.class_name is None or not given.values:
        return None
    try:
        expected = _expected(given)
    except UserError:  # an incomplete configuration, which a layout may complete
        return None
    for prefix in _prefixes(min(expected), everything):
        found = {key: everything.get(f"{prefix}{key}") for key in expected}
        if all(value is not None and value.shape == expected[key].shape for key, value in found.items()):
            return prefix, ByConfig()
    return None


def _expected(given: GivenConfig) -> dict[str, Tensor]:
    """Return the weights of the configured class, without their values."""
    name = str(given.class_name)
    if name not in AUTOENCODERS:
        raise UserError(f"{given.name} is the configuration of {describe_class(name, AUTOENCODERS)}")
    cls = AUTOENCODERS[name].network_class(name)
    try:
        with torch.device("meta"):
            found: dict[str, Tensor] = cls.from_config({"_class_name": name, **given.values}).state_dict()
    except Exception as error:
        raise UserError(f"{given.name} cannot be built as {name}: {reason(error)}") from error
    return found


def _prefixes(key: str, everything: Mapping[str, Tensor]) -> list[str]:
    found = [other.removesuffix(key) for other in everything if other.endswith(key)]
    return [prefix for prefix in found if not prefix or prefix.endswith(".")][:_MOST_PREFIXES]
