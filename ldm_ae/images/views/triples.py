"""Random triples of channels as red, green and blue, of which distances and scores are averaged.

No published loss of images of many channels does it in exactly this way; it is the mean over all ordered triples of
different channels, by a sample of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import derive_seed
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views.interface import View


class Triples(View):
    """Ordered triples of different channels, drawn at random.

    Scores have the same triples for all images, drawn from the seed. In training each sample draws its own, which are
    the same for the image and its reconstruction.

    Args:
        triples: Number of triples for each image. A perceptual loss costs as many passes.
        seed: Seed of the triples of scores.
    """

    short_names = ("triples",)

    def __init__(self, *, triples: int = 4, seed: int = 0):
        if triples < 1:
            raise UserError(f"Triples: expected triples of at least 1, got {triples}")
        self.triples, self.seed = triples, seed

    def check(self, pixels: PixelSpec) -> None:
        if pixels.channels < 3:
            raise UserError(f"the view Triples needs images of at least 3 channels, got {pixels}; choose bands")

    @property
    def count(self) -> int:
        return self.triples

    @property
    def words(self) -> str:
        return f"{self.triples} random triples of channels, seed {self.seed}"

    def fixed(self) -> Tensor:
        """Return the channels of the triples of scores, (V, 3) int64."""
        assert self.pixels is not None, "of comes before the first call"
        generator = torch.Generator().manual_seed(derive_seed("triples", self.seed))
        orders = [torch.randperm(self.pixels.channels, generator=generator)[:3] for _ in range(self.triples)]
        return torch.stack(orders)

    def __call__(self, *images: Tensor, draws: Draws | None = None) -> tuple[Tensor, ...]:
        if draws is None:
            return super().__call__(*images)
        numbers = draws.uniform(self.triples, images[0].shape[1])
        chosen = numbers.argsort(dim=-1)[..., :3].to(images[0].device)
        return tuple(_channels(each, chosen) for each in images)

    def single(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        if draws is None:
            return images[:, self.fixed()[0].to(images.device)]
        chosen = draws.uniform(1, images.shape[1]).argsort(dim=-1)[..., :3].to(images.device)
        return _channels(images, chosen)

    def rgb(self, images: Tensor) -> Tensor:
        return _channels(images, self.fixed().to(images.device).expand(len(images), -1, -1))


def _channels(images: Tensor, chosen: Tensor) -> Tensor:
    """Return channels (B, V, 3) of images (B, C, H, W) as (B * V, 3, H, W)."""
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    return images[rows, chosen].flatten(0, 1)
