"""Defaults of configuration fields that are objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

from jsonargparse import lazy_instance

T = TypeVar("T")


def default_of(cls: type[T]) -> Callable[[], T]:
    """Return a default factory of a class without arguments or state; jsonargparse writes its object by class path.

    The object is made once: jsonargparse looks for the module of its caller in the sources of the whole call stack.
    """
    return cache(lambda: lazy_instance(cls))
