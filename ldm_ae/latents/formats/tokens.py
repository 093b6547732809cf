"""Sequences of codes for autoregressive trainers. It is not any trainer's own format, so this is the contract:

    OUT/tokens_00000.safetensors, tokens_00001.safetensors, ...      to be read in the order of their names
        tokens      (S, L)          uint16, or uint32 if the codebook has more than 65,536 codes; one sequence per row
        labels      (S,) int64      class of the sequence's image, -1: none
        images      (S,) int64      the image: its row in ldm_ae.parquet, which has keys and captions
        flipped     (S,) uint8      1 for the mirror image, else 0

or, with --files npy, each array in a separate file:

    OUT/tokens_00000.npy, labels_00000.npy, images_00000.npy, flipped_00000.npy, tokens_00001.npy, ...

A sequence has L = h w Q tokens, for latents of h rows and w columns, in raster order: row by row from the top, from
left to right in a row, and at each position the Q levels of residual quantization, the first one first (Q = 1 without
levels). So `tokens.reshape(S, h, w, Q)` are the indices; token i is level i % Q of column i // Q % w of row i // (Q w).
A token is an index into its level's codebook, in [0, codebook_size): levels are not offset, and no token marks begin or
end. The sequence of a hierarchical model has its `maps` one after the other, the coarsest first, each in raster order:
h and w are those of the coarsest map, Q = 1 + 4 + ... the codes at a place of it, and map i is the next 2^i h rows of
2^i w codes. Each image has one sequence; if the store has mirror images, the mirror image's sequence follows it, unless
--no-flips is given.

Under `tokens` in ldm_ae.json, and as strings in the header of each safetensors file: codebook_size, levels (Q), height
(h), width (w), order, and maps where a model is hierarchical.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.latents.formats.interface import FLIP, EncodedImages, Format, Samples, npy
from ldm_ae.latents.store.files import write_bytes, write_safetensors

_TOKENS = 1 << 25
"""Number of tokens per shard, unless a single sequence has more."""
_ORDER = "raster: row by row from the top, left to right, the levels of a place one after the other"
_ORDER_OF_MAPS = "maps: one after the other, the coarsest first, each row by row from the top, left to right"


class Tokens(Format):
    """Shards of flat sequences."""

    name = "tokens"
    trainer = "an autoregressive trainer"
    tensors = ("indices", "indices_flip")
    takes = frozenset({"files", "no_flips"})

    def check(self, samples: Samples) -> Iterator[str]:
        """See `Format.check`."""
        if "indices" not in samples.names:
            raise UserError(
                f"the format tokens holds indices, and {samples.store.path} has none; encode with a discrete model, "
                "not --store samples"
            )
        if _codebook_size(samples) > 2**32:
            raise UserError(f"the format tokens has 32 bits, but the codebook has {_codebook_size(samples)} codes")
        yield from ()

    def metadata(self, samples: Samples) -> dict[str, Any]:
        """See `Format.metadata`."""
        height, width = samples.store.spec.latent_size(*samples.size())
        levels, maps = samples.store.spec.codebook_levels or 1, samples.store.spec.codebook_maps
        return {
            "tokens": {
                "codebook_size": _codebook_size(samples), "levels": levels, "height": height, "width": width,
                "order": _ORDER if maps is None else _ORDER_OF_MAPS, **({} if maps is None else {"maps": maps}),
            }
        }  # fmt: skip

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        header = {name: str(value) for name, value in self.metadata(samples)["tokens"].items()}
        views = ("", FLIP) if samples.flips and not self.options.no_flips else ("",)
        dtype = np.uint16 if _codebook_size(samples) <= 2**16 else np.uint32
        spec = samples.store.spec
        rows: list[tuple[Tensor, int, int, int]] = []
        shard = 0
        for sample in samples:
            for view in views:
                indices = sample.tensors[f"indices{view}"]
                if spec.codebook_maps is not None:
                    sequence = torch.cat([one.flatten() for one in spec.index_maps(indices[None])])
                else:
                    sequence = (indices.movedim(0, -1) if indices.ndim == 3 else indices).flatten()
                rows.append((sequence, sample.label, sample.number, int(view == FLIP)))
            full = (len(rows) + len(views)) * len(rows[0][0]) > _TOKENS
            if full or sample.number == len(samples) - 1:
                sequences, *others = zip(*rows, strict=True)
                labels, numbers, flipped = (np.array(other) for other in others)
                self._write_shard(out, shard, header, {
                    "tokens": torch.stack(sequences).numpy().astype(dtype), "labels": labels.astype(np.int64),
                    "images": numbers.astype(np.int64), "flipped": flipped.astype(np.uint8),
                })  # fmt: skip
                rows, shard = [], shard + 1

    def _write_shard(self, out: Path, shard: int, header: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
        if self.options.files == "npy":
            for name, array in arrays.items():
                write_bytes(out / f"{name}_{shard:05d}.npy", npy(array))
            return
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_safetensors(out / f"tokens_{shard:05d}.safetensors", tensors, header)


def _codebook_size(samples: Samples) -> int:
    size = samples.store.spec.codebook_size
    assert size is not None, "a store with indices has a codebook"
    return size
