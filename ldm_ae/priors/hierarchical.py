"""A PixelCNN for each map of a hierarchical autoencoder, conditioned on the coarser maps.

Source: Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, arXiv 1906.00446, section 3.2. The paper's
prior of the coarsest map also has attention; here every map has the gated PixelCNN of `pixelcnn.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.code_maps import pack_maps, places_of_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.priors.interface import CodePrior, Steps
from ldm_ae.priors.pixelcnn import GatedPixelCNN

MOST_MAPS = 4
BLOCKS = 2
"""Residual blocks that read a map for the next finer one: each reaches two places to every side."""


class HierarchicalPixelCNN(CodePrior):
    """One gated PixelCNN for each map. A convolutional network reads all coarser maps, enlarged to the sides of the
    map, and every layer of the map's PixelCNN receives its features.

    The sequence has the maps one after the other, the coarsest first, and each map in raster order.

    Args:
        codebook_size: K.
        shape: (Q, h, w) with Q = 5, 21 or 85 for two, three or four maps, packed at the h x w places of the coarsest
            (`LatentSpec.codebook_maps`).
        classes: See `CodePrior`.
        width: Number of channels of every network.
        depth: Number of layers of every PixelCNN.
        dropout: Fraction of a PixelCNN layer's activations dropped in training.
    """

    def __init__(
        self, *, codebook_size: int, shape: Sequence[int], classes: int = 0, width: int = 64, depth: int = 10,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            codebook_size=codebook_size, shape=shape, classes=classes, width=width, depth=depth, dropout=dropout
        )
        counts = {places_of_maps(maps): maps for maps in range(2, MOST_MAPS + 1)}
        if len(shape) != 3 or shape[0] not in counts:
            raise UserError(
                f"a hierarchical PixelCNN needs codes (Q, h, w) of maps, Q being one of {[*counts]}, got {tuple(shape)}"
            )
        self.map_count = counts[shape[0]]
        self.lengths = [4**i * self.shape[1] * self.shape[2] for i in range(self.map_count)]
        """Number of codes of each map."""
        self.maps = nn.ModuleList(
            GatedPixelCNN(
                codebook_size=codebook_size, shape=(self.shape[1] << i, self.shape[2] << i), classes=classes,
                width=width, depth=depth, dropout=dropout,
            ) for i in range(self.map_count)
        )  # fmt: skip
        self.readers = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(BLOCKS))) for _ in range(1, self.map_count)
        )
        self.links = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, 4 * width, 1) for _ in range(depth)) for _ in range(1, self.map_count)
        )

    def sequence(self, indices: Tensor) -> Tensor:
        self._require_shape(indices)
        return torch.cat([one.flatten(1) for one in split_maps(indices, self.map_count)], dim=1)

    def images(self, sequence: Tensor) -> Tensor:
        height, width = self.shape[1:]
        parts = sequence.split(self.lengths, dim=1)
        return pack_maps([p.unflatten(1, (1, height << i, width << i)) for i, p in enumerate(parts)])

    def embed(self, sequence: Tensor) -> Tensor:
        parts = zip(self._priors(), sequence.split(self.lengths, dim=1), strict=True)
        return torch.cat([prior.embed(part) for prior, part in parts], dim=1)

    def logits(self, embedded: Tensor, classes: Tensor) -> Tensor:
        found = []
        coarser: Tensor | None = None
        for number, part in enumerate(embedded.split(self.lengths, dim=1)):
            prior = self._priors()[number]
            found.append(prior.logits(part, classes, self._conditions(number, coarser)))
            if number + 1 < self.map_count:
                coarser = self._read(number, part, coarser)
        return torch.cat(found, dim=1)

    def steps(self, classes: Tensor) -> Steps:
        """Run the steps of each map's PixelCNN, one after the other."""
        coarser: Tensor | None = None
        for number, (prior, length) in enumerate(zip(self._priors(), self.lengths, strict=True)):
            steps = prior.steps(classes, self._conditions(number, coarser))
            chosen = [(yield next(steps))]
            for _ in range(1, length):
                chosen.append((yield steps.send(chosen[-1])))
            steps.close()
            coarser = self._read(number, prior.embed(torch.stack(chosen, dim=1)), coarser)

    def bits_of_maps(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the images' cost in bits of each map, (B, maps) float64, whose sums are `bits`; arguments as there."""
        parts = self.bits_of_codes(indices, labels).split(self.lengths, dim=1)
        return torch.stack([part.sum(dim=1) for part in parts], dim=1)

    def _priors(self) -> list[GatedPixelCNN]:
        return [prior for prior in self.maps if isinstance(prior, GatedPixelCNN)]

    def _read(self, number: int, embedded: Tensor, coarser: Tensor | None) -> Tensor:
        """Return features (B, D, 2h, 2w) of a map's codes (B, h w, D) and those of the coarser maps (B, D, h, w)."""
        features = embedded.mT.unflatten(2, self._priors()[number].shape)
        features = features if coarser is None else features + coarser
        return F.interpolate(self.readers[number](features), scale_factor=2, mode="nearest")

    def _conditions(self, number: int, coarser: Tensor | None) -> list[Tensor] | None:
        """Return what each layer of a map's PixelCNN receives of the coarser maps' features."""
        if coarser is None:
            return None
        links: Sequence[nn.Module] = self.links[number - 1]  # type: ignore[assignment]
        return [link(coarser) for link in links]


class _Residual(nn.Module):
    """Two convolutions of 3x3 beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(F.silu(self.first(F.silu(features))))
