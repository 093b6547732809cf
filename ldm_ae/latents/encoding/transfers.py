"""Transfers of batches to the device and of results back, while the model runs on other batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Transfers:
    """Copies that the model does not wait for: on CUDA between pinned memory and the device, with one stream per
    direction; on other devices ordinary copies.

    Args:
        device: The model's device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if device.type == "cuda" else None

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor to the device, for work that is issued after this call."""
        if self._streams is None:
            return tensor.to(self._device)
        stream, current = self._streams[0], torch.cuda.current_stream(self._device)
        pinned = tensor.pin_memory()
        with torch.cuda.stream(stream):
            moved = pinned.to(self._device, non_blocking=True)
        current.wait_stream(stream)
        moved.record_stream(current)  # Its memory was allocated on the other stream.
        return moved

    def download(self, tensors: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Start to copy results to the host; the returned function waits for them and returns them."""
        if self._streams is None:
            copied = {name: tensor.cpu() for name, tensor in tensors.items()}
            return lambda: copied
        stream = self._streams[1]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        host: dict[str, Tensor] = {}
        with torch.cuda.stream(stream):
            for name, tensor in tensors.items():
                pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
                host[name] = pinned.copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
        done = stream.record_event()

        def wait() -> dict[str, Tensor]:
            done.synchronize()
            # Without the copy a whole shard would hold pinned memory, which other allocations need.
            return {name: tensor.clone() for name, tensor in host.items()}

        return wait
