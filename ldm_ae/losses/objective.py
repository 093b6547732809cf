"""The sum of the generator's losses: reductions, weights, schedule of the adversarial term.

Source: arXiv 2112.10752, section 3.1 and appendix G; the learned log-variance is that of Dai and Wipf, arXiv
1903.05789, as CompVis use it. Two reductions exist:

`ldm`   every term is summed over one image's elements and averaged over the batch, the perceptual distance counting
        once for each of the 3HW elements. LDM's published weights, such as kl_weight 1e-6, refer to this reduction.
`mean`  every term is a mean over its own elements: 3HW of them for the reconstruction, Chw for the latents.

A `ldm` weight w of a latent term is w * Chw / 3HW in `mean`: for f8c4 at any size 1e-6 becomes 2.08e-8.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.defaults import default_of
from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.core.frozen import PartlyFrozen
from ldm_ae.images.missing import fill, mean_over_known
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views import View, view_for
from ldm_ae.losses.adversarial import AdversarialLoss, HingeLoss
from ldm_ae.losses.perceptual.interface import PerceptualLoss
from ldm_ae.losses.reconstruction import L1, Likelihood, ReconstructionLoss
from ldm_ae.losses.schedules import WeightSchedule


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss of the generator."""

    reduction: Literal["ldm", "mean"] = "mean"
    """Reduction of every term, which the weights refer to: sums over an image (ldm) or means over elements (mean)."""
    reconstruction: ReconstructionLoss = field(default_factory=default_of(L1))
    """Loss of each pixel value: an error, or a likelihood (bernoulli, gaussian, logistic) in nats."""
    perceptual: PerceptualLoss | None = None
    """Perceptual distance added to the reconstruction loss; null adds none."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance relative to the reconstruction loss of one element."""
    view: View | None = None
    """How networks that know RGB only see other images: repeated, composite, bands or triples. null takes the default
    of the images: grey is repeated, alpha is composited, bands named red, green and blue are shown."""
    regularization_weights: dict[str, float] = field(default_factory=lambda: {"kl": 1e-6})
    """Weight of each term of the posterior by name (kl, in nats; a quantizer's docstring lists its own terms). Terms
    without a weight are not optimized."""
    regularization_schedules: dict[str, WeightSchedule] = field(default_factory=dict)
    """How the weights of some terms rise with the steps, by name, such as {kl: {warmup_steps: 1000}}."""
    learned_log_variance: bool = False
    """Divide the reconstruction loss by exp(s) and add s, where s is one learned number for all pixels."""
    adversarial: AdversarialLoss = field(default_factory=default_of(HingeLoss))
    """Adversarial losses of generator and discriminator, for runs with a discriminator."""
    gan_weight: float = 0.5
    """Weight of the generator's adversarial loss, which the adaptive weight multiplies if it is enabled."""
    adaptive_gan_weight: bool = True
    """Scale the adversarial gradient at the last layer to the norm of the reconstruction's, as LDM does."""
    discriminator_start: int = 0
    """Step at which the training of the discriminator starts."""
    discriminator_warmup_steps: int = 0
    """Number of steps that train the discriminator before its loss affects the generator."""
    gan_ramp_steps: int = 0
    """Number of steps over which the adversarial weight then rises linearly from 0."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "gan_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("discriminator_start", "discriminator_warmup_steps", "gan_ramp_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")
        if unknown := [name for name in self.regularization_schedules if name not in self.regularization_weights]:
            raise UserError(
                f"objective.regularization_schedules: '{unknown[0]}' has no weight; add it to "
                "objective.regularization_weights"
            )
        if self.learned_log_variance and isinstance(self.reconstruction, Likelihood):
            raise UserError(
                f"objective.learned_log_variance has no place beside {type(self.reconstruction).__name__}, a "
                "likelihood, whose scale is its own; set it to false"
            )

    def perceptual_view(self, pixels: PixelSpec) -> View | None:
        """Return the perceptual network's view of a model's images; None where it sees them as they are, or is absent.

        Raises:
            UserError: There is no view of these images for it.
        """
        if self.perceptual is None:
            return None
        return view_for(self.perceptual.pixels, pixels, self.view, f"objective.perceptual ({self.perceptual.name})")

    def scheduled_at(self, step: int) -> dict[str, float]:
        """Return the factors of the scheduled weights after `step` updates, by name."""
        return {name: schedule.factor(step) for name, schedule in self.regularization_schedules.items()}

    def gan_weight_at(self, step: int) -> float:
        """Return the weight of the adversarial loss after `step` updates; at 0 the generator does not use it."""
        since = step - self.discriminator_start - self.discriminator_warmup_steps
        if since < 0:
            return 0.0
        ramp = min((since + 1) / self.gan_ramp_steps, 1.0) if self.gan_ramp_steps else 1.0
        return self.gan_weight * ramp


class ReconstructionTerms(NamedTuple):
    """The reconstruction part of the objective, and its terms in units that do not depend on the reduction."""

    nll: Tensor
    """Optimized value: scalar, reduced."""
    rec_loss: Tensor
    """Mean over all pixel values: scalar."""
    perceptual_loss: Tensor | None
    """Mean distance over images: scalar."""
    perceptual_terms: Mapping[str, Tensor]
    """Of a sum of distances: the mean over images of each, a scalar, by name."""
    per_element: Tensor
    """`rec_loss` plus the weighted `perceptual_loss`: scalar."""


class Objective(PartlyFrozen):
    """The configured losses with the parameters that they may learn: `log_variance`, or the scale of `likelihood`.

    Args:
        config: The losses.
        pixels: The model's images.

    Raises:
        UserError: A loss is for other images, and there is no view of these for it.
    """

    frozen = ("perceptual",)

    def __init__(self, config: ObjectiveConfig, pixels: PixelSpec = RGB):
        super().__init__()
        self.config, self.pixels = config, pixels
        self.perceptual = config.perceptual
        self.view = config.perceptual_view(pixels)
        """The perceptual network's view of the images; None where it sees them as they are."""
        self.log_variance = nn.Parameter(torch.zeros(())) if config.learned_log_variance else None
        loss = config.reconstruction
        self.likelihood = copy.deepcopy(loss) if isinstance(loss, Likelihood) else None
        """A copy of the reconstruction loss if it is a likelihood, so that training does not change `config`."""

    def reconstruction(
        self,
        reconstructions: Tensor,
        pixel_values: Tensor,
        *,
        elements_of: Tensor | None = None,
        draws: Draws | None = None,
    ) -> ReconstructionTerms:
        """Return the error of reconstructions (B, C, H, W), every term in float32.

        Args:
            reconstructions: (B, C, H, W); they receive a gradient, except where data is missing.
            pixel_values: (B, C, H, W), their target.
            elements_of: Images whose number of elements the `ldm` reduction counts, by default `pixel_values`.
            draws: Random numbers of each sample, for views that draw; None gives the fixed views of scores.
        """
        counted, target = pixel_values if elements_of is None else elements_of, pixel_values
        reconstructions, pixel_values = self.comparable(reconstructions, target)
        loss = self.config.reconstruction if self.likelihood is None else self.likelihood
        per_element = loss(reconstructions.float(), pixel_values.float())
        rec_loss = per_element.mean() if self.pixels.missing is None else mean_over_known(per_element, target)
        perceptual_loss, perceptual_terms = None, {}
        per_element_total = rec_loss
        if self.perceptual is not None:
            if self.view is not None:
                reconstructions, pixel_values = self.view(reconstructions, pixel_values, draws=draws)
            distances, terms = self.perceptual.measure(reconstructions, pixel_values)
            perceptual_loss, perceptual_terms = distances.mean(), {name: term.mean() for name, term in terms.items()}
            per_element_total = rec_loss + self.config.perceptual_weight * perceptual_loss
        # Every image has the same number of elements, CHW, so the sum over one image is the mean times CHW.
        nll = self.nll(per_element_total * self._elements(counted), counted)
        return ReconstructionTerms(nll, rec_loss, perceptual_loss, perceptual_terms, per_element_total)

    def describe(self) -> dict[str, str]:
        """Return the identity of the perceptual network, and its view of images that are not RGB, as JSON values."""
        found = {} if self.perceptual is None else {"perceptual": self.perceptual.identity}
        return found if self.view is None else found | {"view": self.view.words}

    def learned_values(self) -> dict[str, float]:
        """Return the values of the learned parameters, scalars to log, by name."""
        named = ((name, p) for name, p in self.named_parameters() if p.requires_grad)
        return {name.rpartition(".")[2]: parameter.item() for name, parameter in named}

    def comparable(self, reconstructions: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return both images as networks may compare them: with equal values where data is missing in the target."""
        return (reconstructions, target) if self.pixels.missing is None else fill(reconstructions, target)

    def nll(self, error: Tensor, pixel_values: Tensor) -> Tensor:
        """Return error / exp(s) + s per element, with s the learned log-variance; the error itself without one."""
        if self.log_variance is None:
            return error
        return error * torch.exp(-self.log_variance) + self._elements(pixel_values) * self.log_variance

    def regularization(
        self, terms: dict[str, Tensor], latents: Tensor, factors: Mapping[str, Tensor | float] | None = None
    ) -> Tensor:
        """Return the weighted sum of the terms, each (B,) summed over one image's latents (B, C, h, w).

        Args:
            terms: Those of posterior and regularizer.
            latents: Their elements are counted.
            factors: Scalars that multiply the weights of some terms: their adaptive weights and schedules.
        """
        total = latents.new_zeros(())
        for name, weight in self.config.regularization_weights.items():
            if name not in terms:
                raise UserError(f"objective.regularization_weights: expected terms of {sorted(terms)}, got '{name}'")
            weighted = weight * self.reduced(terms[name], latents)
            total = total + (factors[name] * weighted if factors and name in factors else weighted)
        return total

    def reduced(self, term: Tensor, latents: Tensor) -> Tensor:
        """Return the scalar that a weight multiplies, of a term (B,) summed over one image's latents (B, C, h, w)."""
        per_image = term.mean()
        return per_image if self.config.reduction == "ldm" else per_image / latents[0].numel()

    def _elements(self, pixel_values: Tensor) -> int:
        return pixel_values[0].numel() if self.config.reduction == "ldm" else 1
