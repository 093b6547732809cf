"""The options of encoding, from the command line to the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.latents.store.format import DTYPES, StoredOptions


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(StoredOptions):
    """The options of `encode_images` and of `ldm-ae encode`.

    To add an option, write three things: a field with its docstring here, or in `StoredOptions` if the bytes of a store
    follow from it (it is then recorded in store.json, and a store made with another value is not resumed); one
    `add_argument` in `ldm_ae/commands/encode.py` whose `dest` is the field's name; and the code that uses it, which
    finds the value as `config.NAME` in this process and as `job.config.NAME` in an engine's.

    Raises:
        UserError: A value is not among those that its field takes.
    """

    flips: bool | None = None
    """Also store the mirror images' latents and moments. None keeps the choice of an existing store; a new one
    gets them if the source's labels hold for them (`Source.labels_hold_mirrored`). The store records the choice."""
    source_name: str = ""
    """The origin of the images, for the index."""
    classes: Sequence[str] | None = None
    """The names of the labels 0, 1, ...; None for those of the existing store, with new ones last, or else those of the
    source in its order."""
    workers: int = 0
    """Number of processes that decode images."""
    device: str | torch.device = "auto"
    """The device that encodes; `auto` picks an accelerator if there is one."""
    max_bad_fraction: float = 0.01
    """Fraction of unusable images above which encoding ends with an error, after keeping all valid images."""
    check: bool = True
    """Read the images of finished files, and the files of a complete store, to check that they are unchanged; otherwise
    only the files of an unfinished store are read."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype '{self.dtype}' is not one of {', '.join(DTYPES)}")
        if self.content not in ("full", "samples", "lean"):
            raise UserError(f"content is '{self.content}'; it must be full, samples or lean")
        if self.shard_size < 1:
            raise UserError(f"shard_size is {self.shard_size}; it must be at least 1")

    def stored(self) -> dict[str, Any]:
        """Return the options that a store records, by name."""
        return {field.name: getattr(self, field.name) for field in fields(StoredOptions)}
