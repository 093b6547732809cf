"""An autoencoder around an autoencoder: what it does not define is the wrapped model's."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

from ldm_ae.models.interface import Autoencoder

OWN = frozenset({"forward", "draw"})
"""The public members of `Autoencoder` that a wrapper does not forward: they are made of other members (`forward` and
`draw` of `encode` and `decode`), and those are to be the wrapper's."""


def interface_members() -> frozenset[str]:
    """The names of all public members of `Autoencoder`, those that are only annotated too."""
    names = {*vars(Autoencoder), *Autoencoder.__annotations__}
    return frozenset(name for name in names if not name.startswith("_"))


def _forwarded(name: str) -> property:
    def member(wrapper: Wrapper) -> Any:
        return getattr(wrapper.model, name)

    member.__doc__ = f"`{name}` of the wrapped model."
    return property(member)


# A base of its own, so that a wrapper can define any member and call the wrapped model's as super().
_Forwarding: Any = type("_Forwarding", (Autoencoder,), {name: _forwarded(name) for name in interface_members() - OWN})


class Wrapper(_Forwarding):
    """Forwards every member of `Autoencoder`, whatever will be added to it, to the wrapped model.

    A subclass has a constructor with its options and overrides what it changes, such as `encode` and `decode`. It is a
    module around the model: `to`, `eval` and `requires_grad_` reach the model's weights.

    Args:
        model: What to wrap.
    """

    model: Autoencoder

    @abc.abstractmethod
    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model


def wrappers_of(model: Autoencoder) -> Iterator[Wrapper]:
    """The wrappers around a model, the outermost first."""
    while isinstance(model, Wrapper):
        yield model
        model = model.model


def unwrapped(model: Autoencoder) -> Autoencoder:
    """The model inside all its wrappers."""
    for wrapper in wrappers_of(model):
        model = wrapper.model
    return model
