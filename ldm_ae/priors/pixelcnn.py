"""A gated PixelCNN: convolutions over the codes above, and over those to the left in the same row.

Source: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, arXiv 1606.05328, section 2 and
figure 2; over the codes of an autoencoder as in van den Oord et al., Neural Discrete Representation Learning, arXiv
1711.00937, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.priors.interface import CodePrior, Steps

FIRST_REACH, REACH = 3, 1
"""Receptive field of a convolution to each side, in places: 7x7 in the first layer, 3x3 in the others."""


class GatedPixelCNN(CodePrior):
    """Two stacks of gated convolutions. The vertical one covers all rows above without a blind spot; the horizontal one
    covers the codes to the left, and at every layer receives the vertical stack's features.

    Args:
        codebook_size: K.
        shape: (h, w); this prior does not support levels of residual quantization, and `HierarchicalPixelCNN` has one
            of it for each map of a hierarchical model.
        classes: See `CodePrior`.
        width: Number of channels of both stacks.
        depth: Number of layers; the logits of a code depend on depth + 2 rows above it, and as many codes to its left.
        dropout: Fraction of a layer's activations dropped in training.
    """

    def __init__(
        self, *, codebook_size: int, shape: Sequence[int], classes: int = 0, width: int = 64, depth: int = 10,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            codebook_size=codebook_size, shape=shape, classes=classes, width=width, depth=depth, dropout=dropout
        )
        if len(shape) == 3:
            raise UserError("a PixelCNN does not support levels of residual quantization; use the transformer")
        self.embedding = nn.Embedding(codebook_size, width)
        self.layers = nn.ModuleList([_Layer(width, classes, first=i == 0, dropout=dropout) for i in range(depth)])
        self.output = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, codebook_size, 1)
        )  # fmt: skip

    def embed(self, sequence: Tensor) -> Tensor:
        return self.embedding(sequence)

    def logits(self, embedded: Tensor, classes: Tensor, conditions: Sequence[Tensor] | None = None) -> Tensor:
        """See `CodePrior.logits`.

        Args:
            embedded: As there.
            classes: As there.
            conditions: What each layer receives in addition to the class at every place, (B, 4D, h, w).
        """
        images = self._as_images(embedded)
        biases = self._biases(classes, conditions)
        return self._horizontal(images, self._vertical(images, biases), biases).flatten(2).mT

    def steps(self, classes: Tensor, conditions: Sequence[Tensor] | None = None) -> Steps:
        """Run the vertical stack once a row, over the rows up to it; the horizontal one once a code, over its row.

        Args:
            classes: See `CodePrior.steps`.
            conditions: See `logits`.
        """
        biases = self._biases(classes, conditions)
        height, width = self.shape
        codes = torch.zeros((len(classes), height, width), dtype=torch.int64, device=self.device)
        for row in range(height):
            above = self._as_images(self.embed(codes[:, : row + 1].flatten(1)))
            until, own = ([_rows(bias, first, row + 1) for bias in biases] for first in (0, row))
            links = [link[:, :, row:] for link in self._vertical(above, until)]
            for column in range(width):
                current = self.embed(codes[:, row]).mT[:, :, None]
                codes[:, row, column] = yield self._horizontal(current, links, own)[:, :, 0, column]

    def _as_images(self, embedded: Tensor) -> Tensor:
        """Reshape (B, rows * w, D) to (B, D, rows, w)."""
        return embedded.mT.unflatten(2, (-1, self.shape[1]))

    def _biases(self, classes: Tensor, conditions: Sequence[Tensor] | None) -> list[Tensor]:
        """Return what each layer adds before its gates, (B, 4D, 1, 1) or (B, 4D, h, w)."""
        found: list[Tensor] = [layer.condition(classes)[:, :, None, None] for layer in self.layers]  # type: ignore[operator]
        return found if conditions is None else [a + b for a, b in zip(found, conditions, strict=True)]

    def _vertical(self, images: Tensor, biases: list[Tensor]) -> list[Tensor]:
        """Return each layer's input to its horizontal half, (B, 2D, rows, w), for (B, D, rows, w)."""
        links = []
        for layer, bias in zip(self.layers, biases, strict=True):
            images, link = layer.vertical(images, bias)  # type: ignore[operator]
            links.append(link)
        return links

    def _horizontal(self, images: Tensor, links: list[Tensor], biases: list[Tensor]) -> Tensor:
        """Return logits (B, K, rows, w) for (B, D, rows, w)."""
        for layer, link, bias in zip(self.layers, links, biases, strict=True):
            images = layer.horizontal(images, link, bias)  # type: ignore[operator]
        return self.output(images)


def _rows(bias: Tensor, first: int, end: int) -> Tensor:
    """Return the rows of a bias that differs between them, else the bias."""
    return bias if bias.shape[2] == 1 else bias[:, :, first:end]


class _Layer(nn.Module):
    """Layer of figure 2. Instead of masks, kernels have only the visible taps, and inputs are padded on those sides.

    The first layer excludes the current row, or code; the others include its features.
    """

    def __init__(self, width: int, classes: int, *, first: bool, dropout: float):
        super().__init__()
        self.reach = FIRST_REACH if first else REACH
        self.first = first
        self.dropout = dropout
        seen = self.reach + (not first)
        self.above = nn.Conv2d(width, 2 * width, (seen, 2 * self.reach + 1))
        self.left = nn.Conv2d(width, 2 * width, (1, seen))
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.condition = nn.Embedding(classes + 1, 4 * width)
        nn.init.zeros_(self.condition.weight)

    def vertical(self, images: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next layer's input and the link to the horizontal stack (B, 2D, rows, w), for (B, D, rows, w)."""
        reach = self.reach
        found = self.above(F.pad(images, (reach, reach, reach, -1 if self.first else 0)))
        return self._gate(found + bias.chunk(2, dim=1)[0]), self.link(found)

    def horizontal(self, images: Tensor, link: Tensor, bias: Tensor) -> Tensor:
        """Return the next layer's input for (B, D, rows, w)."""
        found = self.left(F.pad(images, (self.reach, -1 if self.first else 0))) + link
        found = self.out(F.dropout(self._gate(found + bias.chunk(2, dim=1)[1]), self.dropout, self.training))
        return found if self.first else found + images

    @staticmethod
    def _gate(found: Tensor) -> Tensor:
        """Apply equation 2."""
        value, gate = found.chunk(2, dim=1)
        return value.tanh() * gate.sigmoid()
