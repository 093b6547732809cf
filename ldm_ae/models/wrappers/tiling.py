"""Encoding and decoding of large images with bounded memory.

Two methods exist. *Exact* tiling gives the result of the whole image within rounding (`exact_tiling.py`); the network
must be built of parts that it knows. *Blended* tiling runs any network on overlapping tiles and blends the results. A
tile's normalization and attention see that tile alone, so blended results differ from those of the whole image, and
store requests record the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import images_in_range
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.posteriors import DeterministicPosterior, DiscretePosterior, GaussianPosterior, Posterior
from ldm_ae.models.wrappers.exact_tiling import in_bands
from ldm_ae.models.wrappers.interface import Wrapper, wrappers_of
from ldm_ae.models.wrappers.tiles import Strip, Tile, tiles
from ldm_ae.quantizers import Quantized

DEFAULT_TILE = 512
OVERLAP_FRACTION = 1 / 4
"""Default overlap of blended tiles, as a fraction of the tile."""


class Tiled(Wrapper):
    """A model that encodes and decodes large images in parts, so that memory does not grow with their size.

    Images that are not larger than a tile are computed whole. Results and inputs are whole tensors; only the network's
    activations are bounded, exact tiling's by those of one layer. Posteriors are for inference: a blended discrete
    posterior has no training terms.

    Blended tiles have one size and lie on multiples of the downsample factor. Their weights add up to 1 everywhere and
    fade only where tiles overlap, not at the image's borders. Moments are blended as the network returns them, mean and
    log-variance; latents without a distribution likewise. Codes cannot be averaged: each position has the codes of the
    tile in which it lies deepest, so that `codebook.latents(indices)` is the posterior's mode.

    Args:
        model: The model to wrap; also one in an `OverflowGuard`, or one that a guard will contain.
        tile: Side of the tiles in pixels, a multiple of the downsample factor. Exact tiling computes bands of rows with
            as many activations as such a tile has.
        overlap: Minimum overlap of blended tiles in pixels, a multiple of the downsample factor; the default is a
            quarter of the tile. Exact tiling does not use it.
        exact: True for exact and False for blended tiling; None is exact where the model has `exact_parts`.

    Raises:
        UserError: The tile or the overlap does not fit the model, the model takes images of one size only, or its
            network cannot be tiled exactly.
    """

    def __init__(
        self, model: Autoencoder, *, tile: int = DEFAULT_TILE, overlap: int | None = None, exact: bool | None = None
    ):
        super().__init__(model)
        self.training = model.training
        spec, name = model.latent_spec, type(model.net).__name__
        factor = spec.downsample_factor
        if spec.image_size is not None:
            raise UserError(
                f"{name} takes images of {spec.image_size}x{spec.image_size} pixels only and cannot be tiled; remove "
                "the tiling"
            )
        if tile < factor or tile % factor:
            raise UserError(
                f"tile must be a multiple of the model's downsample factor {factor}, got {tile}; use for example "
                f"{max(tile // factor, 1) * factor}"
            )
        if overlap is None:
            overlap = math.ceil(tile * OVERLAP_FRACTION / factor) * factor if tile > factor else 0
        if not 0 <= overlap < tile or overlap % factor:
            raise UserError(
                f"overlap must be a multiple of the model's downsample factor {factor} from 0 to {tile - factor}, got "
                f"{overlap}"
            )
        supported = bool(model.exact_parts())
        if exact and not supported:
            raise UserError(f"{name} cannot be tiled exactly: parts of it are not known; use blended tiling")
        self.tile, self.overlap = tile, overlap
        self.exact = supported if exact is None else exact
        """Whether tiling is exact, and not blended."""

    def describe(self) -> str:
        """Return the method and its sizes in words."""
        if self.exact:
            return f"exact, in bands of the size of {self.tile}x{self.tile} pixels"
        return f"blended tiles of {self.tile}x{self.tile} pixels that overlap by at least {self.overlap}"

    def compilable_parts(self, *, for_training: bool = False) -> Sequence[nn.Module]:
        """Return the model's parts; none for exact tiling, which does not call the compiled modules."""
        return () if self.exact else self.model.compilable_parts(for_training=for_training)

    def encode(self, pixel_values: Tensor) -> Posterior:
        self.require_images(pixel_values)
        height, width = pixel_values.shape[-2:]
        if self._is_small(height, width):
            return self.model.encode(pixel_values)
        if self.exact:
            with in_bands(self.model.exact_parts(), self.tile**2), images_in_range():
                return self.model.encode(pixel_values)
        factor = self.latent_spec.downsample_factor
        encoded = _Encoded(self.model, len(pixel_values), height // factor, width // factor)
        with images_in_range():
            for tile in self._tiles(height, width):
                rows, columns = _pixels(tile.rows.place, factor), _pixels(tile.columns.place, factor)
                encoded.add(tile, self.model.encode(pixel_values[:, :, rows, columns]))
        return encoded.posterior()

    def decode(self, latents: Tensor) -> Tensor:
        self.require_latents(latents)
        factor = self.latent_spec.downsample_factor
        height, width = (side * factor for side in latents.shape[-2:])
        if self._is_small(height, width):
            return self.model.decode(latents)
        if self.exact:
            with in_bands(self.model.exact_parts(), self.tile**2):
                return self.model.decode(latents)
        images = torch.zeros(len(latents), self.pixel_spec.channels, height, width, device=latents.device)
        for tile in self._tiles(height, width, factor=factor):
            decoded = self.model.decode(latents[:, :, tile.rows.place, tile.columns.place])
            rows, columns = _pixels(tile.rows.place, factor), _pixels(tile.columns.place, factor)
            images[:, :, rows, columns] += decoded * tile.weights.to(decoded)
        return images

    def _is_small(self, height: int, width: int) -> bool:
        return height * width <= self.tile**2 if self.exact else max(height, width) <= self.tile

    def _tiles(self, height: int, width: int, *, factor: int = 1) -> Iterator[Tile]:
        """Yield the tiles of an image of height x width pixels, with weights for each latent or each pixel."""
        unit = self.latent_spec.downsample_factor
        return tiles(height // unit, width // unit, tile=self.tile // unit, overlap=self.overlap // unit, factor=factor)


class _Encoded:
    """The posterior of a batch of images, collected from the posteriors of their tiles."""

    def __init__(self, model: Autoencoder, count: int, height: int, width: int):
        spec, self._codebook, self._has_moments = model.latent_spec, model.codebook, model.has_moments
        channels = spec.channels * (2 if model.has_moments else 1)
        self._values = torch.zeros(count, channels, height, width, device=model.device)
        """Moments, or latents where there are none."""
        levels = () if spec.codebook_levels is None else (spec.codebook_levels,)
        self._indices = torch.zeros(count, *levels, height, width, dtype=torch.int64, device=model.device)

    def add(self, tile: Tile, posterior: Posterior) -> None:
        """Blend a tile's moments or latents into the image's; of codes, take those that the tile owns."""
        rows, columns = tile.rows, tile.columns
        if self._codebook is None:
            values = posterior.mode() if posterior.moments is None else posterior.moments
            self._values[:, :, rows.place, columns.place] += values * tile.weights.to(values)
            return
        assert posterior.indices is not None, "a model with a codebook encodes to indices"
        inner_rows, inner_columns = _within(rows), _within(columns)
        self._values[..., rows.owned, columns.owned] = posterior.mode()[..., inner_rows, inner_columns]
        self._indices[..., rows.owned, columns.owned] = posterior.indices[..., inner_rows, inner_columns]

    def posterior(self) -> Posterior:
        """Return the posterior of the whole images."""
        if self._codebook is not None:
            quantized = Quantized(self._values, self._indices, losses={}, statistics={}, latents=self._values)
            return DiscretePosterior(quantized, self._codebook.size)
        return (GaussianPosterior if self._has_moments else DeterministicPosterior)(self._values)


def blended(model: Autoencoder) -> Autoencoder:
    """Return the model; a `Tiled` as its outermost wrapper blends, so that tiles pass whole through every module."""
    if not isinstance(model, Tiled):
        return model
    return Tiled(model.model, tile=model.tile, overlap=model.overlap, exact=False)


def tiling_of(model: Autoencoder) -> Tiled | None:
    """Return the `Tiled` among a model's wrappers, if there is one."""
    return next((wrapper for wrapper in wrappers_of(model) if isinstance(wrapper, Tiled)), None)


def blending_of(model: Autoencoder) -> tuple[int, int]:
    """Return tile and overlap of a model's blended tiles, which change its latents; (0, 0) if it has none."""
    found = tiling_of(model)
    return (0, 0) if found is None or found.exact else (found.tile, found.overlap)


def _within(strip: Strip) -> slice:
    """Return the owned part in the tile's own coordinates."""
    return slice(strip.owned.start - strip.place.start, strip.owned.stop - strip.place.start)


def _pixels(place: slice, factor: int) -> slice:
    return slice(place.start * factor, place.stop * factor)
