"""Base class of a wrapper around an autoencoder: members that it does not define are the wrapped model's."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

from ldm_ae.models.interface import Autoencoder

OWN = frozenset({"forward", "draw", "encode_images", "decode_to_pil"})
"""The public members of `Autoencoder` that a wrapper does not forward: they call other members (`encode` and `decode`),
which must be the wrapper's."""


def interface_members() -> frozenset[str]:
    """Return the names of all public members of `Autoencoder`, including those that are only annotated."""
    ours = [cls for cls in Autoencoder.__mro__ if cls.__module__.startswith("ldm_ae.")]
    names = {name for cls in ours for name in (*vars(cls), *vars(cls).get("__annotations__", ()))}
    return frozenset(name for name in names if not name.startswith("_"))


def _forwarded(name: str) -> property:
    def member(wrapper: Wrapper) -> Any:
        return getattr(wrapper.model, name)

    member.__doc__ = f"`{name}` of the wrapped model."
    return property(member)


# A separate base class, so that a wrapper can define any member and call the wrapped model's through super().
_Forwarding: Any = type("_Forwarding", (Autoencoder,), {name: _forwarded(name) for name in interface_members() - OWN})


class Wrapper(_Forwarding):
    """Base class that forwards every member of `Autoencoder`, including future ones, to the wrapped model.

    A subclass has a constructor with its options and overrides the members that it changes, such as `encode` and
    `decode`. It is a module around the model: `to`, `eval` and `requires_grad_` reach the model's weights.

    Args:
        model: The model to wrap.
    """

    model: Autoencoder

    @abc.abstractmethod
    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model


def wrappers_of(model: Autoencoder) -> Iterator[Wrapper]:
    """Yield the wrappers around a model, the outermost first."""
    while isinstance(model, Wrapper):
        yield model
        model = model.model


def unwrapped(model: Autoencoder) -> Autoencoder:
    """Return the model inside all its wrappers."""
    for wrapper in wrappers_of(model):
        model = wrapper.model
    return model
