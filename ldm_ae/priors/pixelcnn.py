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
        shape: (h, w); this prior does not support levels of residual quantization.
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

    def logits(self, embedded: Tensor, classes: Tensor) -> Tensor:
        images = self._as_images(embedded)
        return self._horizontal(images, self._vertical(images, classes), classes).flatten(2).mT

    def steps(self, classes: Tensor) -> Steps:
        """Run the vertical stack once a row, over the rows up to it; the horizontal one once a code, over its row."""
        height, width = self.shape
        codes = torch.zeros((len(classes), height, width), dtype=torch.int64, device=self.device)
        for row in range(height):
            above = self._as_images(self.embed(codes[:, : row + 1].flatten(1)))
            links = [link[:, :, row:] for link in self._vertical(above, classes)]
            for column in range(width):
                current = self.embed(codes[:, row]).mT[:, :, None]
                codes[:, row, column] = yield self._horizontal(current, links, classes)[:, :, 0, column]

    def _as_images(self, embedded: Tensor) -> Tensor:
        """Reshape (B, rows * w, D) to (B, D, rows, w)."""
        return embedded.mT.unflatten(2, (-1, self.shape[1]))

    def _vertical(self, images: Tensor, classes: Tensor) -> list[Tensor]:
        """Return each layer's input to its horizontal half, (B, 2D, rows, w), for (B, D, rows, w)."""
        links = []
        for layer in self.layers:
            images, link = layer.vertical(images, classes)  # type: ignore[operator]
            links.append(link)
        return links

    def _horizontal(self, images: Tensor, links: list[Tensor], classes: Tensor) -> Tensor:
        """Return logits (B, K, rows, w) for (B, D, rows, w)."""
        for layer, link in zip(self.layers, links, strict=True):
            images = layer.horizontal(images, link, classes)  # type: ignore[operator]
        return self.output(images)


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

    def vertical(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next layer's input and the link to the horizontal stack (B, 2D, rows, w), for (B, D, rows, w)."""
        reach = self.reach
        found = self.above(F.pad(images, (reach, reach, reach, -1 if self.first else 0)))
        return self._gate(found + self._biases(classes)[0]), self.link(found)

    def horizontal(self, images: Tensor, link: Tensor, classes: Tensor) -> Tensor:
        """Return the next layer's input for (B, D, rows, w)."""
        found = self.left(F.pad(images, (self.reach, -1 if self.first else 0))) + link
        found = self.out(F.dropout(self._gate(found + self._biases(classes)[1]), self.dropout, self.training))
        return found if self.first else found + images

    def _biases(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        vertical, horizontal = self.condition(classes)[:, :, None, None].chunk(2, dim=1)
        return vertical, horizontal

    @staticmethod
    def _gate(found: Tensor) -> Tensor:
        """Apply equation 2."""
        value, gate = found.chunk(2, dim=1)
        return value.tanh() * gate.sigmoid()
