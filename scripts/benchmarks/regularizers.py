"""A training step with each regularizer, relative to the step of LDM's KL-f8 recipe without one.

The step is the whole one, both updates. Its random numbers are others in each round, so that methods that work on
smaller images in some steps are measured over all of them: take the mean over 20 rounds or more for these. `alignment`
is over EfficientNet-Lite0; its weight is adaptive, at the encoder's last layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from measuring import Variant
from training_step import Setting, measure_parts, own

from ldm_ae.core.errors import exit_status
from ldm_ae.features import EfficientNetLite0
from ldm_ae.regularizers import (
    EQVAE,
    AdditiveNoise,
    Alignment,
    ChannelPrefixMask,
    FreeBits,
    GaussianNoise,
    NormalizedLatents,
    Regularizer,
    ScaleEquivariance,
)

BASE = "none"
REGULARIZERS: dict[str, tuple[Callable[[], Regularizer], dict[str, float]]] = {
    "eq-vae": (EQVAE, {}),
    "scale-equivariance": (ScaleEquivariance, {}),
    "noise": (GaussianNoise, {}),
    "additive-noise": (AdditiveNoise, {}),
    "prefix-mask": (ChannelPrefixMask, {}),
    "free-bits": (FreeBits, {"free_bits_kl": 1e-6}),
    "normalized-latents": (NormalizedLatents, {}),
    "alignment": (lambda: Alignment(features=EfficientNetLite0()), {"alignment": 0.1}),
}
"""How each is made, and the weights of its terms, by name."""


def variants(setting: Setting) -> list[Variant]:
    """Return the step without a regularizer and with each."""

    def step(build: Callable[[], Regularizer], weights: dict[str, float]) -> Callable[[], object]:
        return own(setting, regularizer=build(), **weights)[1]

    return [
        Variant(BASE, lambda: own(setting)[1], images=setting.batch),
        *(
            Variant(name, partial(step, build, weights), against=BASE, cost=True, images=setting.batch)
            for name, (build, weights) in REGULARIZERS.items()
        ),
    ]


def main() -> None:
    """Run the benchmark from the command line."""
    measure_parts(__doc__, "Regularizers", variants, runs=20)


if __name__ == "__main__":
    sys.exit(exit_status(main, "regularizers"))
