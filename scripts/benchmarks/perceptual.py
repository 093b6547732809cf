"""LPIPS (vgg), forward and backward to the reconstruction: ours against the `lpips` package, same trunk weights.

The trunk's weights are random: speed does not depend on them, and both sides compute the same function. With
`--losses`, the other perceptual losses at their published sizes, as multiples of our LPIPS's time in the precision of
training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import measuring
import torch
from measuring import Variant
from torch import Tensor, nn

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import FAST, bfloat16_speed, choose_convolutions, training_placement
from ldm_ae.features import DINO, VGG16, ConvNeXt, DINOv2, EfficientNetLite0, ResNet50
from ldm_ae.images.similarity import SMALLEST_SIDE
from ldm_ae.losses import (
    LPIPS,
    DeepFeatures,
    GramDistance,
    LogitDistance,
    MSSSIMDistance,
    PerceptualLoss,
    SSIMDistance,
)
from ldm_ae.models import pick_device

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
"""ViT-S, the size of facebook/dinov2-small and of facebook/dino-vits16."""
CONVNEXT_SMALL = {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768], "num_labels": 1000}
RESNET50 = {"num_labels": 1000}
LOSSES: dict[str, Callable[[], PerceptualLoss]] = {
    "DINOv2-S/14, 12 blocks": lambda: DeepFeatures(
        features=DINOv2(weights=None, architecture=SMALL | {"patch_size": 14, "image_size": 518}, layers=range(12))
    ),
    "DINO-S/16, 4 blocks": lambda: DeepFeatures(
        features=DINO(weights=None, architecture=SMALL | {"patch_size": 16, "image_size": 224})
    ),
    "ConvNeXt-S, features": lambda: DeepFeatures(features=ConvNeXt(weights=None, architecture=CONVNEXT_SMALL)),
    "ConvNeXt-S, logits at 224": lambda: LogitDistance(
        features=ConvNeXt(weights=None, architecture=CONVNEXT_SMALL, image_size=224)
    ),
    "ResNet-50, logits at 224": lambda: LogitDistance(
        features=ResNet50(weights=None, architecture=RESNET50, image_size=224)
    ),
    "VGG-16, Gram of 4 layers": lambda: GramDistance(features=VGG16(weights=None, layers=[0, 1, 2, 3])),
    "EfficientNet-Lite0, features": lambda: DeepFeatures(features=EfficientNetLite0(weights=None)),
    "1 - SSIM": SSIMDistance,
    "1 - MS-SSIM": MSSSIMDistance,
}
"""The other losses, with random weights."""


def images(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return reconstructions and pixel_values, (B, 3, size, size): blurred noise, and the same with errors of 0.1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, size // 8, size // 8, generator=generator) * 2 - 1
    pixel_values = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)
    reconstructions = pixel_values + 0.1 * torch.randn(pixel_values.shape, generator=generator)
    return reconstructions.to(device), pixel_values.to(device)


def ours(net: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return our distance with a seeded random trunk, computed as in training."""
    torch.manual_seed(0)
    loss = LPIPS(net=net, pretrained=False).to(device).set_precision(dtype)
    choose_convolutions(loss, training_placement(device, dtype))
    return loss


def package(net: str, device: torch.device) -> nn.Module:
    """Return the lpips package's distance, with the same trunk."""
    theirs = measuring.quiet_lpips(net)
    measuring.copy_trunk(ours(net, torch.float32, torch.device("cpu")), theirs.net)
    return theirs.to(device)


def distance_and_gradient(loss: nn.Module, reconstructions: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean distance, and its gradient at the reconstructions."""
    leaf = reconstructions.detach().requires_grad_()
    distance = loss(leaf, pixel_values).mean()
    return distance.detach(), torch.autograd.grad(distance, leaf)[0]


def variants(net: str, batch: int, size: int, device: torch.device) -> list[Variant]:
    """Return the package and ours on one batch."""

    def build_ours(dtype: torch.dtype) -> Callable[[], object]:
        keep_freed_memory(device)  # as in `ldm-ae train`
        return build(partial(ours, net, dtype, device))

    def build(make: Callable[[], nn.Module]) -> Callable[[], object]:
        return partial(distance_and_gradient, make(), *images(batch, size, device))

    shape = f"{batch}x{size}²"
    base = f"package fp32 {shape}"
    found = [
        Variant(base, lambda: build(partial(package, net, device))),
        Variant(f"ours fp32 {shape}", partial(build_ours, torch.float32), base, target=1.25),
    ]
    if bfloat16_speed(device) >= FAST:
        found.append(Variant(f"ours bf16 {shape}", partial(build_ours, torch.bfloat16), base,
                             target=2.2))  # fmt: skip
    return found


def variants_of_losses(batch: int, size: int, device: torch.device) -> list[Variant]:
    """Return LPIPS and the other losses on one batch, in the precision of training; MS-SSIM from 176 pixels on."""
    dtype = torch.bfloat16 if bfloat16_speed(device) >= FAST else torch.float32
    shape = f"{'bf16' if dtype == torch.bfloat16 else 'fp32'} {batch}x{size}²"
    base = f"LPIPS, VGG-16 {shape}"

    def build(make: Callable[[], nn.Module]) -> Callable[[], object]:
        keep_freed_memory(device)
        return partial(distance_and_gradient, make(), *images(batch, size, device))

    def placed(make: Callable[[], PerceptualLoss]) -> nn.Module:
        loss = make().to(device).set_precision(dtype)
        choose_convolutions(loss, training_placement(device, dtype))
        return loss

    found = [Variant(base, lambda: build(partial(ours, "vgg", dtype, device)))]
    for name, make in LOSSES.items():
        if make is not MSSSIMDistance or size >= SMALLEST_SIDE:
            found.append(Variant(f"{name} {shape}", partial(build, partial(placed, make)), base, cost=True))
    return found


def bfloat16_error(net: str, size: int, device: torch.device) -> tuple[float, float]:
    """Return the relative error of the distance and the cosine of the gradient, bf16 against fp32."""
    pair = images(1, size, device)
    distance, gradient = distance_and_gradient(ours(net, torch.float32, device), *pair)
    near, near_gradient = distance_and_gradient(ours(net, torch.bfloat16, device), *pair)
    cosine = nn.functional.cosine_similarity(gradient.flatten(), near_gradient.flatten(), dim=0)
    return float((near - distance).abs() / distance), float(cosine)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--net", choices=["vgg", "alex", "squeeze"], default="vgg")
    parser.add_argument("--shapes", nargs="+", default=["1x128", "4x128", "1x256"], help="batch x image size")
    parser.add_argument("--losses", action="store_true", help="measure the other perceptual losses instead")
    options = parser.parse_args()
    device = pick_device(options.device)
    if options.losses:
        shapes = (map(int, shape.split("x")) for shape in options.shapes)
        measuring.run("Perceptual losses", [v for shape in shapes for v in variants_of_losses(*shape, device)], options)
        return
    found = [v for shape in options.shapes for v in variants(options.net, *map(int, shape.split("x")), device)]
    measuring.run(f"Perceptual loss, {options.net}", found, options)
    if options.serve is None:
        error, cosine = bfloat16_error(options.net, 256, device)
        print(f"\nbf16 against fp32 at 256²: loss {100 * error:.2f} % off, cosine of the gradients {cosine:.4f}")


if __name__ == "__main__":
    sys.exit(exit_status(main, "perceptual"))
