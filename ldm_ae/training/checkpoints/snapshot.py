"""The contents of a checkpoint, copied to the host, so that they can be written while training continues."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_ae.models import Autoencoder
from ldm_ae.training.checkpoints.tree import map_tensors, split_tensors

AVERAGED = "ema"
"""The name of the averaged model."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run at one step."""

    step: int
    """Number of updates done."""
    models: dict[str, Autoencoder]
    """The models, each saved as a diffusers folder: `model`, and `AVERAGED` if it exists."""
    networks: dict[str, dict[str, Tensor]]
    """State dicts by name, saved as one safetensors file each."""
    state: Any
    """A tree of dicts, lists, tuples, tensors and JSON values."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors, each with a name for messages."""
        for name, model in self.models.items():
            yield from ((f"{name}: {key}", tensor) for key, tensor in model.net.state_dict().items())
        for name, weights in self.networks.items():
            yield from ((f"{name}: {key}", tensor) for key, tensor in weights.items())
        yield from ((f"state{path}", tensor) for path, tensor in split_tensors(self.state)[1].items())

    def size(self) -> int:
        """Return the number of bytes of all tensors."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    def not_finite(self) -> str | None:
        """Return the name of a tensor that holds a value that is not finite; None if there is none."""
        for name, tensor in self.tensors():
            # One fast pass: a sum of finite numbers may overflow, but a sum with a non-finite number is never finite.
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                return name
        return None


class HostCopy:
    """Copies of snapshots in host memory that is allocated once and reused each time.

    The next copy overwrites the returned one.
    """

    def __init__(self) -> None:
        self._models: dict[str, Autoencoder] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}
        self._tensors: list[Tensor] = []
        self._devices: set[torch.device] = set()

    def begin(self, snapshot: Snapshot) -> Callable[[], Snapshot]:
        """Copy everything that the next forward pass may change, such as running statistics: the trained networks.

        Returns:
            A function that copies the remainder, which only an update changes: `state` and the averaged model. It may
            run in another thread and must end before that update; it returns the copy, which shares no memory with the
            original.
        """
        self._place = 0
        models = {name: self._model(name, model) for name, model in snapshot.models.items() if name != AVERAGED}
        networks = map_tensors(snapshot.networks, self._tensor)
        self._synchronize()

        def finish() -> Snapshot:
            if AVERAGED in snapshot.models:
                models[AVERAGED] = self._model(AVERAGED, snapshot.models[AVERAGED])
            state = map_tensors(snapshot.state, self._tensor)
            self._synchronize()
            return Snapshot(step=snapshot.step, models=models, networks=networks, state=state)

        return finish

    def _synchronize(self) -> None:
        """Wait for copies to pinned memory, which return before they are done."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def _model(self, name: str, model: Autoencoder) -> Autoencoder:
        if name not in self._models:
            self._models[name] = copy.deepcopy(model).to("cpu")
            self._weights[name] = self._models[name].net.state_dict()
        self._models[name].net.register_to_config(**model.net.config)  # a regularizer may have changed the scale
        for key, tensor in model.net.state_dict().items():
            self._copy(self._weights[name][key], tensor)
        return self._models[name]

    def _tensor(self, tensor: Tensor) -> Tensor:
        if self._place == len(self._tensors):
            # The same strides, so that the copy is one pass over memory.
            self._tensors.append(torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda))
        mine = self._tensors[self._place]
        if mine.shape != tensor.shape or mine.dtype != tensor.dtype or mine.stride() != tensor.stride():
            mine = self._tensors[self._place] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._place += 1
        return self._copy(mine, tensor)

    def _copy(self, mine: Tensor, theirs: Tensor) -> Tensor:
        if theirs.is_cuda:
            self._devices.add(theirs.device)
        with torch.no_grad():
            return mine.copy_(theirs, non_blocking=True)
