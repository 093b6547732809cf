"""The latents of a diffusion score: encoded into ordinary stores, and normalized to mean 0 and std 1 per channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_ae.data import Source
from ldm_ae.evaluation.metrics.interface import CannotScoreError
from ldm_ae.latents import EncodeConfig, LatentDataset, LatentStore, encode_images
from ldm_ae.models import Autoencoder, ChannelStatistics, LatentSpec, NotFiniteError
from ldm_ae.models.statistics import NEARLY_CONSTANT
from ldm_ae.training.diffusion.data import Batches, open_latents
from ldm_ae.training.diffusion.score_network import build_network, no_label
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig

TRAIN, HELD_OUT = "train", "held_out"
_READ = 64


def encode(
    model: Autoencoder,
    folder: Path,
    *,
    images: DiffusionImages,
    config: DiffusionScoreConfig,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> None:
    """Encode all images into the stores `train` and `held_out` in a folder, or resume this.

    Raises:
        CannotScoreError: The images' size does not fit the model, or a latent is not finite.
    """
    total = len(images.train) + len(images.held_out)
    done = 0
    parts: list[tuple[str, Source, Any]] = [
        (TRAIN, images.train, "full"),  # with moments, from which each epoch draws anew
        (HELD_OUT, images.held_out, "samples"),
    ]
    for name, source, content in parts:
        options = EncodeConfig(
            source_name=images.name, content=content, flips=False, seed=config.seed, device=device,
            precision=config.model_precision, batch_size=config.model_batch_size, workers=config.workers,
        )  # fmt: skip

        def report(part: int, _: int, before: int = done) -> None:
            progress(before + part, total)

        try:
            encode_images(model, source, folder / name, transform=images.transform, config=options, progress=report)
        except NotFiniteError as error:
            raise CannotScoreError(str(error)) from error
        done += len(source)


class ScoreLatents:
    """The latents of one model, normalized with the statistics of those to train on.

    Args:
        folder: Where `encode` has written both stores.
        spec: The model's latents.
        config: The budget.

    Raises:
        CannotScoreError: No channel varies.
    """

    def __init__(self, folder: Path, spec: LatentSpec, config: DiffusionScoreConfig):
        train, self._held_out = LatentStore(folder / TRAIN), LatentStore(folder / HELD_OUT)
        statistics = packed_statistics(train, spec)
        if len(statistics.constant_channels) == spec.scaled_channels:
            raise CannotScoreError("the latents are the same everywhere, so there is nothing to learn")
        self.spec = normalizing(spec, statistics)
        """Specification whose `scale` normalizes each channel."""
        self.constant_channels = statistics.constant_channels
        """Channels without variation, which become 0 and count in no loss."""
        self.fp32_fallbacks = train.fp32_fallbacks + self._held_out.fp32_fallbacks
        """Batches that overflowed in fp16 and were encoded in float32."""
        self.data = open_latents(train, self.spec, config.seed)
        channels, height, width = self.data[0]["latents"].shape
        self.shape: tuple[int, int, int] = (channels, height, width)
        """(C, h, w) of the normalized latents."""

    @property
    def varying(self) -> Tensor:
        """(C,) bool: the channels that are not constant."""
        found = torch.ones(self.shape[0], dtype=torch.bool)
        found[self.constant_channels] = False
        return found

    def held_out(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized latents (B, C, h, w) of the held-out images, and their labels, (B,) zeros."""
        for latents in _batches(LatentDataset(self._held_out, spec=self.spec)):
            yield latents.to(device), no_label(len(latents), device)


def packed_statistics(store: LatentStore, spec: LatentSpec) -> ChannelStatistics:
    """Return the statistics of the stored latents per channel, packed as for a diffusion model where the model's class
    does that."""
    if spec.patch_size == 1:
        return store.statistics
    statistics = ChannelStatistics(spec.scaled_channels)
    for latents in _batches(LatentDataset(store)):
        statistics.update(spec.pack(latents))
    return statistics


def normalizing(spec: LatentSpec, statistics: ChannelStatistics) -> LatentSpec:
    """Return a specification whose `scale` maps each channel to mean 0 and standard deviation 1.

    A constant channel becomes about 0: it is divided by `NEARLY_CONSTANT` of its mean, so that neither are rounding
    errors scaled up nor does an inexact sample change the channel when `unscale` undoes this.
    """
    mean, std = statistics.channel_mean, statistics.channel_std.clone()
    constant = statistics.constant_channels
    std[constant] = NEARLY_CONSTANT * mean[constant].abs().clamp(min=1.0)
    return replace(
        spec, scaling_factor=1.0, shift_factor=0.0, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist())
    )


def _batches(data: LatentDataset) -> Iterator[Tensor]:
    for start in range(0, len(data), _READ):
        rows = range(start, min(start + _READ, len(data)))
        yield torch.stack([data[row]["latents"] for row in rows])


class ScoreTask:
    """The part of a diffusion run that is the score's: normalized latents, the common network, no classes.

    Args:
        latents: The latents.
        config: The budget.
        image_size: Side of the images in pixels.
        identity: JSON values that a resumed run must share.
    """

    result = "network"

    def __init__(
        self, latents: ScoreLatents, config: DiffusionScoreConfig, *, image_size: int, identity: dict[str, Any]
    ):
        self._latents, self._config, self._image_size, self._identity = latents, config, image_size, identity
        self._batches = Batches(latents.data, config.batch_size, seed=config.seed, rank=0, world_size=1)

    @property
    def global_batch(self) -> int:
        """See `Task`."""
        return self._batches.global_batch

    def build_network(self) -> nn.Module:
        """See `Task`."""
        channels, size, _ = self._latents.shape
        config = self._config
        return build_network(
            channels, size, image_size=self._image_size, width=config.width, depth=config.depth, seed=config.seed
        )

    def batch(self, step: int) -> dict[str, Any]:
        """See `Task`."""
        return self._batches.at(step)

    def labels(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Return the only label."""
        del generator
        return no_label(len(label), label.device)

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        return self._identity

    def export(self, network: Any, folder: Path) -> None:
        """Write the averaged network."""
        network.save_pretrained(folder)
