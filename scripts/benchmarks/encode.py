"""Encoding and decoding at kl_f8 widths: ours in bfloat16, channels-last, against diffusers' AutoencoderKL as it comes.

Both sides have the same random weights. diffusers' model runs under `torch.no_grad()`, in float32 and NCHW.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import measuring
import torch
from diffusers import AutoencoderKL
from measuring import Variant
from torch import Tensor
from training_step import KL_F8, Setting, make_autoencoder, make_batch

from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import FAST, bfloat16_speed
from ldm_ae.models import Autoencoder, for_inference, pick_device


def own(setting: Setting, precision: str) -> Autoencoder:
    """Return our model, ready for inference."""
    return for_inference(
        make_autoencoder(setting), device=setting.device, precision=precision, compiled=setting.compiled
    )


def diffusers(setting: Setting, dtype: torch.dtype) -> AutoencoderKL:
    """Return diffusers' model with the same weights."""
    return torch.nn.Module.to(make_autoencoder(setting).net.eval(), dtype)  # Its own `to` warns without cause.


def calls(setting: Setting, model: Autoencoder) -> dict[str, Callable[[], Tensor]]:
    """Return `encode`, which returns (B, 4, h, w) latents, and `decode`, (B, 3, H, W) reconstructions of noise."""
    batch = make_batch(setting, 0)

    @torch.inference_mode()
    def encode() -> Tensor:
        return model.encode(batch.pixel_values).mode()

    @torch.inference_mode()
    def decode() -> Tensor:
        return model.decode(batch.noise)

    return {"encode": encode, "decode": decode}


def diffusers_calls(setting: Setting, model: AutoencoderKL) -> dict[str, Callable[[], Tensor]]:
    """Return the same calls with diffusers' methods."""
    batch = make_batch(setting, 0)
    pixel_values, noise = batch.pixel_values.contiguous().to(model.dtype), batch.noise.to(model.dtype)

    @torch.no_grad()
    def encode() -> Tensor:
        return model.encode(pixel_values).latent_dist.mode()

    @torch.no_grad()
    def decode() -> Tensor:
        return model.decode(noise).sample

    return {"encode": encode, "decode": decode}


def variants(setting: Setting) -> list[Variant]:
    """Return encode and decode: diffusers, ours in float32, ours in bfloat16 on devices that are fast in it."""
    found = []
    for task in ("encode", "decode"):

        def build_ours(precision: str, task: str = task) -> Callable[[], object]:
            return calls(setting, own(setting, precision))[task]

        def build_theirs(task: str = task) -> Callable[[], object]:
            return diffusers_calls(setting, diffusers(setting, torch.float32))[task]

        base = f"{task}: diffusers fp32"
        found.append(Variant(base, build_theirs, images=setting.batch))
        found.append(Variant(f"{task}: ours fp32", lambda b=build_ours: b("fp32"), base, images=setting.batch))
        if bfloat16_speed(setting.device) >= FAST:
            target = 2.2 if task == "encode" else None
            found.append(Variant(f"{task}: ours bf16", lambda b=build_ours: b("bf16"), base, target=target,
                                 images=setting.batch))  # fmt: skip
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    setting = Setting(KL_F8, options.size, options.batch, pick_device(options.device))
    words = f"kl_f8 widths, {options.size}², batch {options.batch}"
    measuring.run(f"Encode and decode: {words}", variants(setting), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "encode"))
