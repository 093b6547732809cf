"""The update of averages of KL-f8's weights after each step, against the training step itself.

`power EMA` updates two power-function averages, as `training.power_ema true` does; `EMA` updates the one average of
`training.ema_decay`; `a loop of PyTorch` updates two averages parameter by parameter. The step is that of
`training_step.py` with its optimizers. `snapshot` is the pause of the loop every `power_ema_every` steps: the copy of
both averages to the host, after which a thread writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import count

import measuring
import torch
from measuring import Variant
from torch import Tensor
from training_step import KL_F8, Setting, make_autoencoder, own

from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import place
from ldm_ae.models import KLAutoencoder, pick_device
from ldm_ae.training.averages.power import PowerEMA
from ldm_ae.training.averages.profiles import decay
from ldm_ae.training.ema import EMA

LENGTHS = (0.05, 0.1)
SNAPSHOT_EVERY = 1000


def placed(setting: Setting) -> KLAutoencoder:
    """Return the trained network on its device, in its memory layout."""
    autoencoder = make_autoencoder(setting).train()
    place(autoencoder, setting.device, setting.placement)
    return autoencoder


class Loop:
    """Two averages, updated one parameter at a time."""

    def __init__(self, setting: Setting):
        self.current = [parameter.detach() for parameter in placed(setting).parameters()]
        self.averages: dict[float, list[Tensor]] = {n: [p.clone() for p in self.current] for n in LENGTHS}
        self.updates = count(1000)

    @torch.no_grad()
    def __call__(self) -> None:
        update = next(self.updates)
        for length, averaged in self.averages.items():
            beta = decay(length, update)
            for mine, theirs in zip(averaged, self.current, strict=True):
                mine.mul_(beta).add_(theirs, alpha=1 - beta)


def variants(setting: Setting) -> list[Variant]:
    """Return the step and each update against it."""
    step = "training step"

    def power() -> Callable[[], object]:
        averages, steps = PowerEMA(placed(setting), LENGTHS, None), count(1000)
        return lambda: averages.update(next(steps))

    def ema() -> Callable[[], object]:
        autoencoder, steps = placed(setting), count(1000)
        average = EMA(autoencoder, 0.999)
        place(average.model, setting.device, setting.placement)
        return lambda: average.update(autoencoder, next(steps))

    return [
        Variant(step, lambda: own(setting)[1]),
        Variant("power EMA, two lengths", power, step, cost=True, target=0.02),
        Variant("EMA", ema, step, cost=True),
        Variant("a loop of PyTorch, two lengths", partial(Loop, setting), step, cost=True),
        Variant(f"snapshot, every {SNAPSHOT_EVERY} steps", lambda: PowerEMA(placed(setting), LENGTHS, None).copied,
                step, cost=True),
    ]  # fmt: skip


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    options = parser.parse_args()
    setting = Setting(KL_F8, options.size, options.batch, pick_device(options.device), options.precision)
    words = f"kl_f8 widths, {options.size}², batch {options.batch}, precision {options.precision}"
    measuring.run(f"Averages of weights: {words}", variants(setting), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "averages"))
