"""The cost of a model on this machine: speed and memory of encoding and decoding, and its size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.core.peak_memory import peak_memory
from ldm_ae.core.precision import DTYPES, machine_name
from ldm_ae.evaluation.metrics.interface import CannotScoreError, Metric, ScoreInfo, Scores, Setting
from ldm_ae.models import Autoencoder, Posterior

CALLS, MOST_CALLS, ENOUGH_SECONDS = 3, 15, 1.0
"""Timed calls of each direction: at least `CALLS`, and more, up to `MOST_CALLS`, while they take less than
`ENOUGH_SECONDS` together."""
_MEMORY = (
    "tensors and workspaces that exist at the same time, in addition to weights and to the images or latents passed in"
)


class Cost(Metric):
    """Images per second and peak memory of `encode` and `decode`, in the evaluation's precision, and the model's size.

    The first batch is measured: of each direction one call, which is also the warm-up, for its memory, then a few timed
    ones. Times are those of this machine at this moment; the protocol states it with the batch, size and precision.
    """

    name = "cost"
    group = "cost"
    label = "Cost"
    explanation = "Speed and memory on this machine, and the model's size."
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        **{
            f"{part}_images_per_second": ScoreInfo(
                label=f"{part.capitalize()} speed", unit="images/s", direction="higher", decimals=2,
                explanation=f"Images per second of {part} alone: batch size / median time of a batch.",
            )
            for part in ("encode", "decode")
        },
        **{
            f"{part}_peak_mib": ScoreInfo(
                label=f"Peak memory of {part}", unit="MiB", direction="lower", decimals=1,
                explanation=f"For a batch: {_MEMORY}.",
            )
            for part in ("encode", "decode")
        },
        "encoder_parameters": ScoreInfo(
            label="Encoder parameters", direction="lower", decimals=0,
            explanation="Numbers in the weights that determine latents, a codebook included.",
        ),
        "decoder_parameters": ScoreInfo(
            label="Decoder parameters", direction="lower", decimals=0,
            explanation="Numbers in the weights that turn latents into images.",
        ),
        "latents_per_image": ScoreInfo(
            label="Latent numbers per image", decimals=0,
            explanation="Elements of the latents of an image of the measured size.",
        ),
    }  # fmt: skip
    compares_images = False

    def __init__(self) -> None:
        self._model: Autoencoder | None = None
        self.reset()

    def prepare(self, setting: Setting) -> None:
        """Keep the model."""
        self._model = setting.model

    def reset(self) -> None:
        """Discard the measurement."""
        self._found: dict[str, float] = {}
        self._protocol: dict[str, object] = {}

    def update(
        self, reconstructions: Tensor, pixel_values: Tensor, posterior: Posterior | None = None
    ) -> Mapping[str, Tensor]:
        """Measure the first batch; ignore others.

        Raises:
            CannotScoreError: There is no model.
        """
        if self._model is None or posterior is None:
            raise CannotScoreError(f"{self.label} needs a model")
        if not self._found:
            self._measure(self._model, pixel_values, posterior.mode())
        return {}

    def compute(self) -> Scores:
        """Return the numbers; peak memory is missing on devices where it is unknown."""
        return self._found

    def protocol(self) -> dict[str, object]:
        """Return the machine, the precision, the batch and the number of timed calls."""
        return {self.name: self._protocol} if self._protocol else {}

    def _measure(self, model: Autoencoder, pixel_values: Tensor, latents: Tensor) -> None:
        device = pixel_values.device
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: model.encode(pixel_values).mode(), "decode": partial(model.decode, latents),
        }  # fmt: skip
        counts: dict[str, int] = {}
        for part, call in calls.items():
            if (peak := peak_memory(call, device)) is None:
                call()
            else:
                self._found[f"{part}_peak_mib"] = peak / 2**20
            seconds = _times(call, device)
            counts[part] = len(seconds)
            self._found[f"{part}_images_per_second"] = len(pixel_values) / median(seconds)
        total = sum(parameter.numel() for parameter in model.net.parameters())
        encoder = sum(parameter.numel() for parameter in model.encoder_parameters().values())
        self._found |= {
            "encoder_parameters": encoder, "decoder_parameters": total - encoder,
            "latents_per_image": latents[0].numel(),
        }  # fmt: skip
        self._found = {key: self._found[key] for key in self.scores if key in self._found}
        known = any(key.endswith("_peak_mib") for key in self._found)
        height, width = pixel_values.shape[-2:]
        self._protocol = {
            "machine": machine_name(device),
            "precision": next((name for name, dtype in DTYPES.items() if dtype == model.dtype), str(model.dtype)),
            "batch_size": len(pixel_values),
            "size": f"{width}x{height}",
            "time": "median of calls after a warm-up, one direction after the other",
            "calls": counts,
            "memory": _MEMORY if known else f"not measured: torch has no peak memory of {device.type}",
        }


def _times(call: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of several calls, each with all of its work on the device."""
    found: list[float] = []
    while len(found) < CALLS or (len(found) < MOST_CALLS and sum(found) < ENOUGH_SECONDS):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
