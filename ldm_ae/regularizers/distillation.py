"""Distillation: a student learns another autoencoder's latents, so that diffusion models on them keep working.

Source: TAESD (github.com/madebyollin/taesd): the encoder learns the teacher's latents by their squared error; the
decoder decodes the teacher's latents, and its output is compared with the images. Teacher and student agree in what a
diffusion model sees, `scale(latents)`: a TAESD, whose scale is 1, learns the scaled latents of its teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, load_autoencoder, model_hash
from ldm_ae.models.posteriors import GaussianPosterior, Posterior
from ldm_ae.models.scaling import set_scaling_of
from ldm_ae.models.spec import LatentSpec
from ldm_ae.regularizers.interface import Regularized, Regularizer

_CLEARLY_BETTER = 4.0
"""Ratio of squared errors (6 dB) above which images in [0, 1] are taken to be what a teacher expects."""


class Distillation(Regularizer):
    """The decoder decodes the teacher's latents, and the encoder learns them.

    Terms, in units of the latents that a diffusion model sees: `latents_distillation` is the squared error of the
    posterior's mode; `log_variance_distillation`, where both posteriors are Gaussian, is that of the log-variance.

    The student gets the teacher's scale, unless its network is made for scaled latents, as `AutoencoderTiny`'s is; that
    keeps its own. A student whose encoder is the teacher's and frozen encodes for both.

    Args:
        teacher: MODEL whose latents are learned.
        copy_encoder: Start with the teacher's encoder if all its weights and its scale fit the student's, which then
            may have another decoder. A resumed run keeps its own.
    """

    short_names = ("distil",)
    frozen = ("teacher",)

    def __init__(self, *, teacher: str, copy_encoder: bool = True):
        super().__init__()
        self.teacher: Autoencoder = load_autoencoder(teacher)
        self.name, self.copy_encoder = teacher, copy_encoder
        self._student: LatentSpec | None = None
        self._shares_encoder = False

    @property
    def identity(self) -> str:
        return f"{super().identity} of {model_hash(self.teacher)}"

    def prepare(self, model: Autoencoder) -> None:
        ours, theirs = model.spec, self.teacher.spec
        ours.pixels.require_match(theirs.pixels, f"the teacher {self.name}")
        for cls, spec in ((type(model.net).__name__, ours), (self.name, theirs)):
            if spec.latents.codebook_size is not None:
                raise UserError(f"Distillation: teacher and student must be continuous, but {cls} has codes")
        shapes = [(spec.latents.channels, spec.latents.downsample_factor) for spec in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"Distillation: the latents of {self.name} have {shapes[1][0]} channels and downsample factor "
                f"{shapes[1][1]}, those of the student {shapes[0][0]} and {shapes[0][1]}; they must be equal"
            )
        if not model.takes_scaled_latents:
            set_scaling_of(model, theirs.latents)
        given, taken = self.teacher.encoder_parameters(), model.encoder_parameters()
        fits = {name: p.shape for name, p in given.items()} == {name: p.shape for name, p in taken.items()}
        fits = fits and model.latent_spec == theirs.latents  # one encoder gives latents of one scale
        if fits and self.copy_encoder:
            with torch.no_grad():
                for name, parameter in taken.items():
                    parameter.copy_(given[name])
        frozen = not any(parameter.requires_grad for parameter in taken.values())
        self._shares_encoder = fits and frozen and all(torch.equal(given[name], p) for name, p in taken.items())
        self._student = model.latent_spec

    def scale(self, model: Autoencoder) -> LatentSpec:
        return model.latent_spec  # as `prepare` set it

    @torch.no_grad()
    def verify(self, pixel_values: Tensor) -> None:
        """Refuse a teacher that reconstructs these images clearly better as images in [0, 1]."""
        as_declared, as_unit = (
            _relative_error(self.teacher, images) for images in (pixel_values, pixel_values / 2 + 0.5)
        )
        if as_unit * _CLEARLY_BETTER < as_declared:
            raise UserError(
                f"Distillation: {self.name} reconstructs images in [0, 1] {as_declared / as_unit:.0f} times better "
                "than in [-1, 1]; it seems to expect that range. Convert its weights, or give another teacher"
            )

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        assert self._student is not None, "prepare comes before the first pass"
        if self._shares_encoder:
            return Regularized(latents, pixel_values)
        with torch.no_grad():
            target = self.teacher.encode(pixel_values)
            sample = target.sample(noise=draws.normal(*latents.shape[1:]).to(latents))
            if self._student != self.teacher.latent_spec:
                sample = self._student.unscale(self.teacher.scale(sample))
        difference = self._student.scale(posterior.mode()) - self.teacher.scale(target.mode())
        terms = {"latents_distillation": _sum_of_squares(difference)}
        if isinstance(target, GaussianPosterior) and isinstance(posterior, GaussianPosterior):  # of one scale
            terms["log_variance_distillation"] = _sum_of_squares(posterior.log_variance - target.log_variance)
        return Regularized(sample, pixel_values, terms)


def _relative_error(model: Autoencoder, images: Tensor) -> float:
    """Return the squared error of the reconstructions, relative to the images' variance."""
    found = model.decode(model.encode(images).mode())
    return float((found - images).square().mean() / images.var())


def _sum_of_squares(difference: Tensor) -> Tensor:
    return difference.float().square().flatten(1).sum(dim=1)
