"""MaskDiT (Anima-Lab/MaskDiT, `ImageNetLatentDataset`).

    OUT/train/      an LMDB
        z-{i}       the bytes of (2C, h, w) float32: mean and log-variance, unscaled
        y-{i}       the label in ASCII
        length      2N in ASCII

For N images, z-0 to z-{N-1} are the images and z-{N} to z-{2N-1} their mirror images: the reader takes half of
`length` as the number of images. It multiplies its samples by 0.18215.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_ae.latents.fold import Constants
from ldm_ae.latents.formats.interface import EncodedImages, Format, Options, Sample, Samples, library

_PAGE = 4096
_AT_ONCE = 256
"""Number of images per transaction."""


class MaskDiT(Format):
    """An LMDB of moments."""

    name = "maskdit"
    trainer = "MaskDiT"
    tensors = ("moments", "moments_flip")
    needs_flips = True
    needs_labels = True
    square = True
    channels = 4
    constants = Constants(factor=(0.18215,))

    def __init__(self, options: Options):
        super().__init__(options)
        self._lmdb = library("lmdb", self.name)

    def write(self, samples: Samples, out: Path, images: EncodedImages | None) -> None:  # noqa: ARG002
        """See `Format.write`."""
        height, width = samples.store.spec.latent_size(*samples.size())
        size = 4 * 2 * samples.store.spec.channels * height * width
        # An upper bound that reserves no space: each value in its own pages, twice for the tree around them.
        room = 2 * len(samples) * 2 * ((size + 16) // _PAGE + 2) * _PAGE + (1 << 24)
        # No lock: no other process uses the folder yet, and the readers open it without one.
        with self._lmdb.open(str(out / "train"), map_size=room, lock=False) as environment:
            batch: list[Sample] = []
            for sample in samples:
                batch.append(sample)
                if len(batch) == _AT_ONCE or sample.number == len(samples) - 1:
                    with environment.begin(write=True) as transaction:
                        for one in batch:
                            _put(transaction, one.number, one.tensors["moments"], one.label)
                            _put(transaction, len(samples) + one.number, one.tensors["moments_flip"], one.label)
                    batch = []
            with environment.begin(write=True) as transaction:
                transaction.put(b"length", str(2 * len(samples)).encode())


def _put(transaction: Any, number: int, moments: Tensor, label: int) -> None:
    transaction.put(f"z-{number}".encode(), moments.numpy().tobytes())
    transaction.put(f"y-{number}".encode(), str(label).encode())
