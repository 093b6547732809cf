"""The interface of a likelihood: a reconstruction loss that is the log-probability of an image.

Source: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, appendix C. With `objective.reduction`
ldm, no perceptual distance and the weight 1 of `kl`, the loss of a training step is the negative of the evidence lower
bound (ELBO) in nats per image, estimated with one draw of the posterior: `nll_loss + kl_loss` of the log.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError, reason
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.losses.reconstruction.interface import ReconstructionLoss


class Likelihood(ReconstructionLoss, nn.Module):
    """A distribution p(x | x̂) of images, independent in every element, given the decoder's reconstruction.

    As a loss it is -log p of each element, in nats, which may be below 0 where p is a density. A learned scale is a
    parameter of the module: the autoencoder's optimizer updates it, checkpoints hold it, and the exported model records
    it (`Autoencoder.likelihood`).
    """

    _replaceable: str | None = None
    """Name of the scale, if it is a default."""
    is_discrete: ClassVar[bool]
    """Whether `log_prob` is of probabilities, at most 0, and not of densities."""

    def check(self, pixels: PixelSpec) -> None:
        """Raise UserError for images with missing data, which have no likelihood here."""
        if pixels.missing is not None:
            raise UserError(
                f"{type(self).__name__} is the likelihood of whole images, but samples of the model's images may be "
                "missing; choose l1, l2 or charbonnier"
            )

    @property
    @abc.abstractmethod
    def init_args(self) -> dict[str, Any]:
        """The constructor's arguments that give the distribution in its present state, as JSON values."""

    @property
    def words(self) -> str:
        """The distribution in words, such as `Gaussian, scale 0.17, learned True`."""
        values = (
            f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in self.init_args.items()
        )
        return ", ".join([type(self).__name__, *values])

    @abc.abstractmethod
    def element_log_prob(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return log p(x | x̂) of each element in nats, (B, C, H, W).

        Args:
            reconstructions: (B, C, H, W), float32 or float64, not clamped.
            pixel_values: (B, C, H, W) in [-1, 1].
        """

    @abc.abstractmethod
    def draw(self, reconstructions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one image of the distribution for each reconstruction, (B, C, H, W) in pixel values.

        Args:
            reconstructions: (B, C, H, W), not clamped.
            generator: Of the reconstructions' device; None for the global one.
        """

    def set_scale(self, name: str, value: float, *, learned: bool, given: bool) -> None:
        """Set an attribute to a float32 scalar: a parameter if it is learned, else a buffer outside checkpoints.

        If it is not `given`, `continue_from` may replace it.
        """
        self._replaceable = None if given else name
        if learned:
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        else:
            self.register_buffer(name, torch.tensor(value), persistent=False)

    @torch.no_grad()
    def continue_from(self, other: Likelihood | None) -> None:
        """Take the scale of the likelihood that a model was trained with, if it is of this class and none was given."""
        if self._replaceable is not None and type(other) is type(self):
            getattr(self, self._replaceable).copy_(getattr(other, self._replaceable))

    def log_prob(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return log p(x | x̂) of each image in nats, (B,); arguments as in `element_log_prob`."""
        return self.element_log_prob(reconstructions, pixel_values).flatten(1).sum(dim=1)

    def __call__(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        """Return -log p(x | x̂) of each element in nats, (B, C, H, W)."""
        return -self.element_log_prob(reconstructions, pixel_values)


def refuse_likelihood(loss: ReconstructionLoss, where: str) -> None:
    """Raise UserError for a likelihood as a part of another loss, which then is not the logarithm of a probability."""
    if isinstance(loss, Likelihood):
        raise UserError(
            f"{where}: {type(loss).__name__} is a likelihood, which cannot be a part of another loss; choose l1, l2 or "
            "charbonnier, or the likelihood alone"
        )


def describe_likelihood(likelihood: Likelihood) -> dict[str, Any]:
    """Return `class_name` and `init_args` as JSON values, from which `build_likelihood` rebuilds it."""
    return {"class_name": type(likelihood).__name__, "init_args": likelihood.init_args}


def build_likelihood(description: object) -> Likelihood:
    """Build the likelihood of a description.

    Raises:
        UserError: It is not a description, or names an unknown class or arguments that the class does not accept.
    """
    from ldm_ae.losses.reconstruction import RECONSTRUCTION_LOSSES  # the registry imports this module

    if not isinstance(description, dict) or not isinstance(description.get("init_args"), dict):
        raise UserError("likelihood: expected a mapping with class_name and init_args")
    kind = RECONSTRUCTION_LOSSES[str(description.get("class_name"))]
    if not issubclass(kind, Likelihood):
        raise UserError(f"likelihood: expected a likelihood, got the reconstruction loss {kind.__name__}")
    try:
        return kind(**description["init_args"])
    except (TypeError, ValueError) as error:
        raise UserError(f"likelihood: {kind.__name__} does not accept these arguments: {reason(error)}") from error
