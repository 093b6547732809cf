"""The interface of layouts: a file's tensors go in, the configuration of a diffusers class and its weights come out."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.scales import Scale
from ldm_ae.models.loading.shapes import LDMNetwork

_RGB, _MOST_NUMBERS, _MOST_DIGITS = 3, 256, 4


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The tensors of a file as a layout sees them."""

    path: Path
    state: dict[str, Tensor]
    """The tensors of the network, by the keys below `prefix`."""
    everything: Mapping[str, Tensor]
    """All tensors of the file."""
    prefix: str
    """Prefix of the network's keys, such as `first_stage_model.`; empty at the top."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Values of a configuration that the user gave; they take precedence over inferred ones."""
    class_name: str | None = None
    """The class of network that the user gave."""
    scale_factor: Tensor | None = None
    """A `scale_factor` of the file that is not one of its tensors."""

    def renamed(self, state: dict[str, Tensor]) -> Contents:
        """Return these contents with the network's tensors under other keys."""
        return replace(self, state=state)

    def axes(self, key: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor; UserError if it is missing or has another number of axes."""
        tensor = self.state.get(key)
        if tensor is None or tensor.ndim != axes:
            got = "none" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise UserError(f"{self.path}: expected a weight {key} of {axes} axes, got {got}")
        if tensor.numel() == 0:
            raise UserError(f"{self.path}: {key} is empty")
        return tuple(tensor.shape)

    def width(self, key: str, axes: int = 4) -> int:
        """Return the number of output channels of a weight."""
        return self.axes(key, axes)[0]

    def numbers(self, pattern: str) -> list[int]:
        """Return the distinct numbers that the group of a pattern matches at the beginning of keys, sorted.

        Raises:
            UserError: There are more than any network has, for which an inference would take minutes.
        """
        found = {match[1] for key in self.state if (match := re.match(pattern, key))}
        if len(found) > _MOST_NUMBERS or any(len(digits) > _MOST_DIGITS for digits in found):
            raise UserError(f"{self.path}: it has more than {_MOST_NUMBERS} numbered parts ({pattern})")
        return sorted({int(digits) for digits in found})

    def count(self, pattern: str) -> int:
        """Return how many `numbers` there are; UserError unless they are 0, 1, 2, ..."""
        found = self.numbers(pattern)
        if not found or found != list(range(len(found))):
            raise UserError(f"{self.path}: the numbers in its keys have gaps ({pattern})")
        return len(found)

    def require_rgb(self, first: str, last: str) -> None:
        """Raise UserError unless the first and last convolution are for images of three channels."""
        for key, axis in ((first, 1), (last, 0)):
            if (found := self.axes(key, 4)[axis]) != _RGB:
                raise UserError(f"{self.path}: {key} is for images of {found} channels; expected 3 (RGB)")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A network inferred from the names and shapes of its weights."""

    class_name: str
    """The class of the network, a name in `AUTOENCODERS`."""
    config: dict[str, Any]
    """Arguments of the class, without those of `scale`."""
    state: dict[str, Tensor]
    """The weights under the keys of the class."""
    description: str
    """One line that describes the network."""
    assumed: str
    """Assumptions on what the weights do not determine; empty if they determine everything."""
    scale: Scale
    scale_keys: tuple[str, ...] = ()
    """The configuration keys, of `scaling_factor` and `shift_factor`, that the scale is written to."""
    network: LDMNetwork | None = None
    """The network in CompVis's terms, where CompVis's code can describe it."""

    def scaled_config(self) -> dict[str, Any]:
        """Return the complete arguments of the class."""
        scale = {"scaling_factor": self.scale.factor, "shift_factor": self.scale.shift}
        return self.config | {key: scale[key] for key in self.scale_keys}


class Layout(abc.ABC):
    """A layout of single files.

    A layout occupies one file of this folder. `tests/models/test_layouts.py` tests each on its `example`.
    """

    keys: ClassVar[str]
    """Whose keys these are, in words, such as `CompVis's keys`."""
    marks: ClassVar[tuple[str, ...]]
    """Keys below the prefix by which the prefix is found: a file of the layout has at least two of them."""
    class_names: ClassVar[tuple[str, ...]]
    """The classes of network that files of this layout may hold; a user's configuration chooses among several."""

    @abc.abstractmethod
    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the keys below a prefix, of which at least two are marks, have this layout."""

    @abc.abstractmethod
    def infer(self, contents: Contents) -> Inference:
        """Infer the network.

        Raises:
            UserError: The first property that no network of `class_names` has.
        """

    @abc.abstractmethod
    def example(self) -> dict[str, dict[str, Tensor]]:
        """Return small random state dicts of this layout by the class of network that each is inferred to be."""

    def with_other_half(self, path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a file, with those of the file beside it where the layout has two; by default alone."""
        del path
        return tensors

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        """Return the name in the file of a key of the class, for messages; `keys` are all keys of the class."""
        del keys
        return key
