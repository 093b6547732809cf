"""Saving a run of LDM's KL-f8 recipe: ours against Accelerate's `save_state` of the same networks and optimizers.

The state: autoencoder, its average, PatchGAN, both Adam optimizers with their moments, random generators. Accelerate
writes it without flushing or hashing, and removes the old checkpoint first; ours flushes, hashes, renames and removes
the old one last. `in the background` is the time that the training loop waits while the writer thread does the
remainder; its copies are made while the next batch is computed, and the last variant is the time that they take if the
next update follows at once. After every call all data are flushed, untimed, so that no variant pays for another.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import measuring
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from measuring import Variant
from torch import nn
from torch.optim import Adam, Optimizer

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import place, training_placement
from ldm_ae.discriminators import PatchDiscriminator
from ldm_ae.models import KLAutoencoder, pick_device
from ldm_ae.training import TrainingConfig
from ldm_ae.training.checkpoints.saver import Progress, Saver
from ldm_ae.training.checkpoints.snapshot import AVERAGED
from ldm_ae.training.ema import EMA

KL_F8 = (128, 256, 512, 512)


class Parts(NamedTuple):
    """The objects to save."""

    autoencoder: KLAutoencoder
    average: KLAutoencoder
    discriminator: PatchDiscriminator
    optimizers: list[Optimizer]


def make_parts(widths: tuple[int, ...], device: torch.device) -> Parts:
    """Return networks in the layout in which they are trained in bfloat16, and optimizers that have made one step."""
    autoencoder, discriminator = KLAutoencoder(block_out_channels=widths), PatchDiscriminator()
    for network in (autoencoder, discriminator):
        place(network, device, training_placement(device, torch.bfloat16))
    optimizers: list[Optimizer] = []
    for network in (autoencoder, discriminator):
        for parameter in network.parameters():
            parameter.grad = torch.rand_like(parameter)
        optimizers.append(Adam(network.parameters(), fused=True))
        optimizers[-1].step()
        optimizers[-1].zero_grad()
    average = EMA(autoencoder, 0.9).model
    assert isinstance(average, KLAutoencoder)
    return Parts(autoencoder, average, discriminator, optimizers)


class OwnSave:
    """One checkpoint per call; with `update`, up to the point where the update of the next step may begin."""

    def __init__(
        self, widths: tuple[int, ...], device: torch.device, folder: Path, *, background: bool, update: bool = False
    ):
        parts = make_parts(widths, device)
        config = TrainingConfig(keep_checkpoints=1, background_saves=background)
        self.saver = Saver(
            folder, Accelerator(cpu=device.type == "cpu"), config, {},
            models={"model": parts.autoencoder, AVERAGED: parts.average}, others={"discriminator": parts.discriminator},
            optimizers=parts.optimizers,
        )  # fmt: skip
        self.step, self.update = 0, update

    def __call__(self) -> None:
        self.step += 1
        self.saver.save(Progress(self.step, self.step, None, 0))
        if self.update:
            self.saver.before_update()

    def settle(self) -> None:
        """Finish the background's work, and flush everything to the disk."""
        self.saver.wait()
        os.sync()


class AcceleratesSave:
    """One `save_state` per call; the newest one is kept."""

    def __init__(self, widths: tuple[int, ...], device: torch.device, folder: Path):
        project = ProjectConfiguration(str(folder), automatic_checkpoint_naming=True, total_limit=1)
        self.accelerator = Accelerator(cpu=device.type == "cpu", project_config=project)
        parts = make_parts(widths, device)
        networks: list[nn.Module] = [parts.autoencoder, parts.average, parts.discriminator]
        self.prepared = self.accelerator.prepare(*networks, *parts.optimizers)

    def __call__(self) -> None:
        self.accelerator.save_state()

    def settle(self) -> None:
        """Flush everything to the disk."""
        os.sync()


def variants(widths: tuple[int, ...], device: torch.device, folder: Path) -> list[Variant]:
    """Return Accelerate's, ours in the loop, ours in the background, and the latter until all is copied."""
    base, own = "accelerate save_state", "ours"

    def ours(name: str, *, background: bool, update: bool = False) -> OwnSave:
        return OwnSave(widths, device, folder / name, background=background, update=update)

    return [
        Variant(base, lambda: AcceleratesSave(widths, device, folder / "accelerate")),
        Variant(own, lambda: ours("own", background=False), base, cost=True, target=1.5),
        Variant("ours, in the background", lambda: ours("background", background=True), own, cost=True, target=0.1),
        Variant("ours, all copies", lambda: ours("copies", background=True, update=True), own, cost=True),
    ]


def main() -> None:
    """Run the benchmark from the command line."""
    options = measuring.arguments(__doc__).parse_args()
    keep_freed_memory(pick_device(options.device))  # as in training, for both sides
    with tempfile.TemporaryDirectory() as folder:
        measuring.run(
            "Saving a checkpoint: kl_f8 widths", variants(KL_F8, pick_device(options.device), Path(folder)), options
        )


if __name__ == "__main__":
    sys.exit(exit_status(main, "checkpoint"))
