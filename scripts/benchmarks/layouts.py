"""Memory layouts, convolutions and precisions side by side: the measurements behind `ldm_ae/core/precision.py`.

Each variant is one autoencoder in training (forward and backward, parameters in float32, autocast) or in inference. To
emulate a CPU without fast bfloat16 on one with it, set ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import measuring
import torch
from measuring import Variant

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.precision import DTYPES, FAST, LAYOUTS, PLAIN, Placement, bfloat16_speed, place
from ldm_ae.models import KLAutoencoder, pick_device

NETWORKS: dict[str, dict[str, object]] = {
    "kl_f8": {"block_out_channels": (128, 256, 512, 512)},
    "quickstart": {
        "block_out_channels": (32, 64, 96), "layers_per_block": 1, "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}  # fmt: skip


def build(
    network: str, size: int, batch: int, device: torch.device, precision: str, placement: Placement, training: bool
) -> Callable[[], object]:
    """Return one pass of a network with seeded weights."""
    keep_freed_memory(device)
    torch.manual_seed(0)
    model = KLAutoencoder(**NETWORKS[network])  # type: ignore[arg-type]
    place(model, device, placement)
    images = (2 * torch.rand(batch, 3, size, size) - 1).to(device).contiguous(memory_format=LAYOUTS[placement.layout])
    autocast = torch.autocast(device.type, DTYPES[precision], enabled=training and precision != "fp32")
    if not training:
        model.eval().requires_grad_(False).to(DTYPES[precision])

    def train() -> None:
        with autocast:
            reconstructions = model(images).reconstructions
        reconstructions.float().abs().mean().backward()

    @torch.inference_mode()
    def infer() -> None:
        model.decode(model.encode(images).mode())

    return train if training else infer


def placements(device: torch.device, precision: str, training: bool) -> dict[str, Placement]:
    """Return the placements to compare, by name; contiguous rows come first."""
    found = {"plain rows": PLAIN, "channels-last": Placement("channels_last")}
    if training and precision == "fp32" and device.type == "cpu":
        found["channels-last, Winograd"] = Placement("channels_last", "winograd")
    return found


def variants(network: str, size: int, batch: int, device: torch.device) -> list[Variant]:
    """Return the placements for each precision in which the device is fast."""
    found = []
    for training in (True, False):
        for precision in ("fp32", "bf16") if bfloat16_speed(device) >= FAST else ("fp32",):
            start = f"{'train' if training else 'infer'} {precision}"
            for name, placement in placements(device, precision, training).items():
                base = None if name == "plain rows" else f"{start} plain rows"
                make = partial(build, network, size, batch, device, precision, placement, training)
                found.append(Variant(f"{start} {name}", make, base, images=batch))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__, runs=5)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="kl_f8")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    found = variants(options.network, options.size, options.batch, pick_device(options.device))
    measuring.run(f"Layouts: {options.network}, {options.size}², batch {options.batch}", found, options)


if __name__ == "__main__":
    main()
