"""The interface of a view: how networks that know RGB alone see other images."""

from __future__ import annotations

import abc
import copy
from typing import ClassVar

from torch import Tensor
from typing_extensions import Self

from ldm_ae.core.draws import Draws
from ldm_ae.images.pixels import PixelSpec


class View(abc.ABC):
    """A differentiable map from the images of a spec to RGB images, one or several for each image.

    A view of the configuration says how; `of` binds it to the images of one spec, which is needed before any call.
    Scores and distances of several RGB images of one image are averaged.
    """

    short_names: ClassVar[tuple[str, ...]] = ()
    pixels: PixelSpec | None = None
    """The images that it was bound to."""

    @classmethod
    def example(cls) -> Self:
        """Return an instance for tests; by default, one with the default arguments."""
        return cls()

    def of(self, pixels: PixelSpec) -> Self:
        """Return the view of images with this spec.

        Raises:
            UserError: The view does not fit them.
        """
        bound = copy.copy(self)
        bound.pixels = pixels
        bound.check(pixels)
        return bound

    @abc.abstractmethod
    def check(self, pixels: PixelSpec) -> None:
        """Raise UserError unless the view fits these images."""

    @property
    def count(self) -> int:
        """Number V of RGB images for each image."""
        return 1

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """Description for protocols, such as `composited over black, white and checker`."""

    def __call__(self, *images: Tensor, draws: Draws | None = None) -> tuple[Tensor, ...]:
        """Return the RGB images of several batches, such as of images and their reconstructions, in one way.

        Args:
            images: (B, C, H, W) each, in about [-1, 1], all of one shape.
            draws: Random numbers of each sample, for views that draw; None gives the fixed views of scores.

        Returns:
            (B * V, 3, H, W) each: those of the first image, of the second, and so on. V is `count` without draws, and
            may be smaller with them.
        """
        del draws
        return tuple(self.rgb(each) for each in images)

    def single(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Return one RGB image for each image, (B, 3, H, W), for networks that take one; see `__call__`."""
        (found,) = self(images, draws=draws)
        return found if len(found) == len(images) else found[:: len(found) // len(images)]

    @abc.abstractmethod
    def rgb(self, images: Tensor) -> Tensor:
        """Return the fixed RGB images, (B * V, 3, H, W), of (B, C, H, W)."""
