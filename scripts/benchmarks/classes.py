"""Encoding and decoding of one network class at the widths of its published models, against diffusers as it comes.

    python scripts/benchmarks/classes.py --class AutoencoderKLQwenImage

Both sides have the same random weights. diffusers' model runs under `torch.no_grad()`, in float32 and plain rows; ours
in float32 and channels-last, and in bfloat16 on devices that are fast in it. `--class all` measures all in turn.
`encode.py` measures the networks of VQ, whose convolutions are those of AutoencoderKL.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import measuring
import torch
from measuring import Variant
from torch import Tensor

from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import FAST, bfloat16_speed
from ldm_ae.models import Autoencoder, for_inference, pick_device
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.adapters.video import VideoAutoencoder

PUBLISHED: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {},  # Stable Diffusion's; FLUX.1's and SD3's differ in the latents' channels alone
    "AutoencoderKLFlux2": {},
    "AutoencoderDC": {},
    "AutoencoderTiny": {},
    "AsymmetricAutoencoderKL": {},
    "AutoencoderKLHunyuanImage": {},
    "AutoencoderRAE": {
        "decoder_hidden_size": 1152, "decoder_num_hidden_layers": 28, "decoder_intermediate_size": 4096,
    },
    "AutoencoderKLQwenImage": {},
    "AutoencoderKLWan": {},
}  # fmt: skip
"""Arguments of our class for the widths of a published model, where they are not its defaults."""


def build(name: str) -> Autoencoder:
    """Return a network with random weights."""
    torch.manual_seed(0)
    cls: Any = AUTOENCODERS[name]
    if cls is VideoAutoencoder:
        return VideoAutoencoder(network=name, arguments=PUBLISHED[name]).eval()
    model: Autoencoder = cls(**PUBLISHED[name])
    return model.eval()


def ours(name: str, task: str, size: int, device: torch.device, precision: str) -> Callable[[], Tensor]:
    """Return the call of our model."""
    model = for_inference(build(name), device=device, precision=precision)
    pixel_values, latents = inputs(model, size)

    @torch.inference_mode()
    def encode() -> Tensor:
        return model.encode(pixel_values).mode()

    @torch.inference_mode()
    def decode() -> Tensor:
        return model.decode(latents)

    return {"encode": encode, "decode": decode}[task]


def theirs(name: str, task: str, size: int, device: torch.device) -> Callable[[], object]:
    """Return the call of diffusers' model."""
    model = build(name).to(device)
    net = model.net
    pixel_values, latents = inputs(model, size)
    if isinstance(model, VideoAutoencoder):
        pixel_values, latents = pixel_values[:, :, None], latents[:, :, None]

    @torch.no_grad()
    def encode() -> object:
        return net.encode(pixel_values)

    @torch.no_grad()
    def decode() -> object:
        return net.decode(latents)

    return {"encode": encode, "decode": decode}[task]


def inputs(model: Autoencoder, size: int) -> tuple[Tensor, Tensor]:
    """Return one image in [-1, 1] and its number of latents, of noise."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    spec = model.latent_spec
    latents = torch.randn(1, spec.channels, *spec.latent_size(size, size), generator=generator)
    return pixel_values.to(model.device), latents.to(model.device)


def variants(name: str, size: int, device: torch.device) -> list[Variant]:
    """Return encode and decode by diffusers and by us."""
    found = []
    for task in ("encode", "decode"):
        base = f"{task}: diffusers fp32"
        found.append(Variant(base, partial(theirs, name, task, size, device), images=1))
        for precision in ("fp32", "bf16") if bfloat16_speed(device) >= FAST else ("fp32",):
            call = partial(ours, name, task, size, device, precision)
            found.append(Variant(f"{task}: ours {precision}", call, base, images=1))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__, runs=5)
    parser.add_argument("--class", dest="name", choices=[*PUBLISHED, "all"], required=True)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    if options.name == "all":
        rest = [argument for argument in sys.argv[1:] if argument not in ("--class", "all")]
        for name in PUBLISHED:
            subprocess.run([sys.executable, __file__, "--class", name, *rest], check=True)
        return
    device = pick_device(options.device)
    measuring.run(f"{options.name}, {options.size}²", variants(options.name, options.size, device), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "classes"))
