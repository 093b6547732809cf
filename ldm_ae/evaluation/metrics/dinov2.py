"""The Fréchet distance over features of DINOv2, rFDD, which agrees with people's judgement better than over Inception.

Source: Stein et al., Exposing Flaws of Generative Model Evaluation Metrics and Their Unfair Treatment of Diffusion
Models, arXiv 2306.04675, and its code (github.com/layer6ai-labs/dgm-eval, dgm_eval/models/dinov2.py): the normalized
class token of ViT-L/14 without registers, of images resized to 224x224 (bicubic with antialiasing, rounded to 8 bits)
and normalized as ImageNet's. The network is that of transformers, which interpolates the positions to 16x16 patches
without the original's offset of 0.1.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.evaluation.metrics.frechet import Frechet
from ldm_ae.features import DINOv2
from ldm_ae.features._transformers import cached_folder
from ldm_ae.images.uint8 import from_levels, rounded, to_levels

WEIGHTS = "facebook/dinov2-large"
"""Name on the hub of the network in the definition."""
SIZE = 224
_NAMES = {384: "vits", 768: "vitb", 1024: "vitl", 1536: "vitg"}
"""Names of the published networks by their width."""


class DINOv2Features(nn.Module):
    """The normalized class token of a DINOv2.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, or a name on the hub, which is downloaded once.
            None takes `WEIGHTS`, from the hub's cache where that has it.
        network: A network to use instead.

    Raises:
        UserError: transformers is missing, or the weights are missing or belong to another network.
    """

    preprocessing = f"8-bit RGB; resized to {SIZE}x{SIZE}, bicubic with antialiasing; normalized as ImageNet's"

    def __init__(self, weights: str | Path | None = None, *, network: DINOv2 | None = None):
        super().__init__()
        if network is None:
            network = DINOv2(weights=str(weights or cached_folder(WEIGHTS) or WEIGHTS), image_size=SIZE)
        self.network = network
        config = network.network.config
        registers = "_reg" if getattr(config, "num_register_tokens", 0) else ""
        self.name = f"dinov2_{_NAMES.get(config.hidden_size, f'{config.hidden_size}x')}{config.patch_size}{registers}"
        self.dim: int = config.hidden_size
        self.identity = network.identity
        """Name and hash of the weights."""
        self.eval().requires_grad_(False)

    @staticmethod
    def at_hand() -> bool:
        """Return whether the hub's cache has the network of the definition."""
        return cached_folder(WEIGHTS) is not None

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, D) float32 of images (B, 3, H, W) in [-1, 1]."""
        return self.network.class_token(self.resized(pixel_values))

    def resized(self, pixel_values: Tensor) -> Tensor:
        """Resize images (B, 3, H, W) in [-1, 1] to the network's input (B, 3, 224, 224), of 8-bit levels."""
        images = from_levels(to_levels(pixel_values))
        return rounded(F.interpolate(images, size=(SIZE, SIZE), mode="bicubic", antialias=True))


class RFDD(Frechet):
    """Distance over the class token of DINOv2, under the network's name, such as `frechet_dinov2_vitl14`.

    Args:
        weights: As in `DINOv2Features`.
    """

    name = "rfdd"

    def __init__(self, weights: str | Path | None = None, *, features: DINOv2Features | None = None) -> None:
        features = DINOv2Features(weights) if features is None else features
        super().__init__(features)
        self.label = f"rFDD, {features.name}"
        self.explanation = "Fréchet distance over DINOv2's features between originals and reconstructions."

    def protocol(self) -> dict[str, object]:
        """Return the network's name, its weights and its preprocessing of the images."""
        features = self.features
        return {
            "rfdd": {
                "network": features.name, "dim": features.dim, "weights": features.identity,
                "preprocessing": features.preprocessing,
            }
        }  # fmt: skip
