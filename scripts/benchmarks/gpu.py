"""On an accelerator: images per second of training, encoding and decoding at kl_f8 widths, bf16, against diffusers.

Both sides run in bfloat16. diffusers' side is eager and NCHW: the textbook step of `training_step.py` under autocast,
and `encode` and `decode` of a bfloat16 AutoencoderKL. Ours is measured eager, and with `--compile` also compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import encode
import measuring
import torch
from measuring import Variant
from training_step import KL_F8, Setting, Textbook
from training_step import own as own_training

from ldm_ae.core.errors import exit_status
from ldm_ae.models import pick_device

TARGET = 1.5


def variants(training: Setting, inference: Setting, *, compiled: bool) -> list[Variant]:
    """Return training, encoding and decoding: diffusers, ours, and, if requested, ours compiled."""

    def theirs(task: str) -> Callable[[], object]:
        if task == "train":
            return Textbook(training).step
        return encode.diffusers_calls(inference, encode.diffusers(inference, torch.bfloat16))[task]

    def ours(task: str, with_compile: bool) -> Callable[[], object]:
        if task == "train":
            return own_training(training._replace(compiled=with_compile))[1]
        setting = inference._replace(compiled=with_compile)
        return encode.calls(setting, encode.own(setting, "bf16"))[task]

    found = []
    for task in ("train", "encode", "decode"):
        images = (training if task == "train" else inference).batch
        base = f"{task}: diffusers bf16"
        found.append(Variant(base, lambda t=task: theirs(t), images=images))
        for with_compile in (False, True)[: 1 + compiled]:
            name = f"{task}: ours bf16" + (" compiled" if with_compile else "")
            build = lambda t=task, c=with_compile: ours(t, c)  # noqa: E731
            found.append(Variant(name, build, base, target=TARGET, images=images))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="images per training step")
    parser.add_argument("--inference-batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled")
    options = parser.parse_args()
    device = pick_device(options.device)
    if device.type == "cpu":
        raise SystemExit("gpu.py: this machine has no accelerator; the other benchmarks run on the CPU")
    training = Setting(KL_F8, options.size, options.batch, device, "bf16")
    inference = training._replace(batch=options.inference_batch)
    words = f"kl_f8 widths, {options.size}², batch {options.batch} and {options.inference_batch}"
    measuring.run(f"GPU: {words}", variants(training, inference, compiled=options.compile), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "gpu"))
