"""The latents of a diffusion run: which stores it takes, and the batch of each step."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from ldm_ae.core.errors import UserError
from ldm_ae.data import epoch_order
from ldm_ae.diffusion import NO_CLASS
from ldm_ae.latents import LatentDataset, LatentStore
from ldm_ae.models import Autoencoder, LatentSpec


def check_store(store: LatentStore, autoencoder: Autoencoder, kind: str) -> None:
    """Raise `UserError` for a store that this autoencoder, network or pipeline cannot use."""
    store.check_model(autoencoder)
    if "scaling_factor" not in autoencoder.scale_keys:
        raise UserError(
            f"{type(autoencoder.net).__name__} cannot store scaling_factor, the only scale that the pipeline of "
            f"{kind} reads"
        )
    if store.request.indices_alone:
        raise UserError(f"{store.path} holds indices, no latents; encode without --store lean")
    if len(store.statistics.constant_channels) == store.spec.channels:
        raise UserError(f"the latents of {store.path} are constant; encode with a trained autoencoder")
    buckets = store.good()["bucket"].unique().to_pylist()
    if len(buckets) > 1 or len(set(buckets[0].split("x"))) > 1:
        raise UserError(
            f"{store.path} has images of {', '.join(buckets)}; a pipeline needs one square size; encode one"
        )
    if kind == "dit" and (top := max(store.good()["label"].to_pylist())) >= NO_CLASS:
        raise UserError(f"{store.path} has class {top}; DiTPipeline supports classes up to {NO_CLASS - 1}")
    if kind == "dit" and top < 0:
        raise UserError(f"{store.path} has no labels, which dit requires; encode with --labels, or use --model unet")


def open_latents(store: LatentStore, spec: LatentSpec, seed: int) -> LatentDataset:
    """Return the scaled latents; with new samples in every epoch if the store has moments and stores samples."""
    flip: Literal["half", "never"] = "half" if store.request.flips else "never"
    data = LatentDataset(store, flip=flip, seed=seed, spec=spec)
    if "moments" not in data.tensor_names:
        return data
    return LatentDataset(store, draw=store.request.latents, flip=flip, seed=seed, spec=spec)


def hash_latents(data: LatentDataset) -> str:
    """Return the number of items and a hash of the shards and labels, which change if the latents or labels do."""
    shards = {name: entry for name, entry in sorted(data.store.files.items()) if name.endswith(".safetensors")}
    digest = hashlib.sha256(json.dumps(shards, sort_keys=True).encode() + data.labels.tobytes()).hexdigest()
    return f"{len(data)} latents, shards and labels {digest[:16]}"


class Batches:
    """The batch of each step, a function of (seed, step) alone, so that a resumed run needs no state of a loader.

    Every epoch has another order; the images that remain after its last whole batch are dropped.

    Args:
        data: The latents.
        batch_size: Latents per step and process; fewer where the store has fewer.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: There are fewer latents than processes.
    """

    def __init__(self, data: LatentDataset, batch_size: int, *, seed: int, rank: int, world_size: int):
        self.size = min(batch_size, len(data) // world_size)
        if self.size < 1:
            raise UserError(f"{data.store.path} has {len(data)} latents for {world_size} processes; start fewer")
        self.global_batch = self.size * world_size
        self._data, self._seed, self._rank = data, seed, rank
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def positions(self, step: int) -> NDArray[np.int64]:
        """Return the positions of this process's latents in step number `step`, counted from 0."""
        epoch, place = divmod(step, len(self._data) // self.global_batch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(np.arange(len(self._data)), self._seed, epoch)
            self._data.set_epoch(epoch)
        start = place * self.global_batch + self._rank * self.size
        return self._order[start : start + self.size]

    def at(self, step: int) -> dict[str, Any]:
        """Return a step's `latents` (B, C, h, w) float32 and `label` (B,) int64, on the CPU."""
        batch: dict[str, Any] = default_collate(self._data.__getitems__(self.positions(step).tolist()))
        return batch
