"""A training step with each discriminator and each aid, relative to the step of LDM's KL-f8 recipe.

A discriminator's variant is the whole step, both updates, with it in place of the patch discriminator. DINO has random
weights and its published size. An aid's variant is the step with the patch discriminator and the aid; R1 is measured at
a step in which it is computed, which is one of 16. `DiffAug alone` is what it adds: three calls
on a batch and one gradient.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from measuring import Variant
from training_step import Setting, make_batch, make_discriminator, measure_parts, own

from ldm_ae.core.draws import AUGMENTATION
from ldm_ae.core.errors import exit_status
from ldm_ae.discriminators import (
    R1,
    AidedDiscriminator,
    DiffAug,
    DINODiscriminator,
    Discriminator,
    DiscriminatorAid,
    EightBit,
    LeCam,
    MultiScaleDiscriminator,
    ProjectedDiscriminator,
    SpectralPatchDiscriminator,
    StyleGAN2Discriminator,
)
from ldm_ae.features import DINO

BASE = "patchgan"
VITS8 = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 8,
    "image_size": 224,
}  # fmt: skip


def make_dino() -> DINODiscriminator:
    """Make RAE's discriminator with random weights."""
    logging.getLogger("ldm_ae").setLevel(logging.ERROR)  # the weights are random, which is no matter here
    return DINODiscriminator(
        features=DINO(weights=None, architecture=VITS8, layers=[2, 5, 8, 11], normalized=False, image_size=224)
    )


def diffaug_alone(setting: Setting) -> Callable[[], object]:
    """Return what DiffAug does in one step: real images, reconstructions, and the generator's with their gradient."""
    batch, aid = make_batch(setting, 0), DiffAug()
    leaf = batch.pixel_values.clone().requires_grad_()

    def call() -> None:
        with torch.no_grad():
            for _ in range(2):
                aid.augment(batch.pixel_values, batch.draws(AUGMENTATION))
        torch.autograd.grad(aid.augment(leaf, batch.draws(AUGMENTATION)).sum(), leaf)

    return call


def variants(setting: Setting, discriminators: dict[str, Callable[[], Discriminator]]) -> list[Variant]:
    """Return the step with the patch discriminator, those with others, and those with aids."""

    def step(build: Callable[[], Discriminator]) -> Callable[[], object]:
        torch.manual_seed(1)
        return own(setting, build())[1]

    def aided(aids: Sequence[DiscriminatorAid]) -> Discriminator:
        return AidedDiscriminator(make_discriminator(setting), aids)

    relative = partial(Variant, against=BASE, cost=True, images=setting.batch)
    aids: list[DiscriminatorAid] = [DiffAug(), EightBit(), LeCam(), R1()]
    return [
        Variant(BASE, partial(step, partial(make_discriminator, setting)), images=setting.batch),
        *(relative(name, partial(step, build)) for name, build in discriminators.items()),
        *(relative(f"{BASE} with {type(aid).__name__}", partial(step, partial(aided, [aid]))) for aid in aids),
        relative("DiffAug alone", partial(diffaug_alone, setting), target=0.03),
    ]


def others(size: int) -> dict[str, Callable[[], Discriminator]]:
    """Return builders of the other discriminators, at their published sizes, for images of a size."""
    return {
        "sn-patchgan": SpectralPatchDiscriminator,
        "multi-scale": MultiScaleDiscriminator,
        "stylegan2": partial(StyleGAN2Discriminator, image_size=size),
        "projected": ProjectedDiscriminator,
        "dino": make_dino,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    measure_parts(__doc__, "Discriminators", lambda setting: variants(setting, others(setting.size)), runs=5)


if __name__ == "__main__":
    sys.exit(exit_status(main, "discriminators"))
