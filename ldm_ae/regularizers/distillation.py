"""Distillation: a student learns another autoencoder's latents, so that diffusion models on them keep working.

Source: TAESD (github.com/madebyollin/taesd): the encoder learns the teacher's latents by their squared error; the
decoder decodes the teacher's latents, and its output is compared with the images. Teacher and student agree in what a
diffusion model sees, `scale(latents)`: a TAESD, whose scale is 1, learns the scaled latents of its teacher.
"""

from __future__ import annotations

from collections.abc import Callable

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
            may have another decoder. Attention blocks that the teacher lacks, as `AsymmetricAutoencoderKL` has one,
            begin without an effect. A resumed run keeps its own.
    """

    short_names = ("distil",)
    frozen = ("teacher",)

    def __init__(self, *, teacher: str, copy_encoder: bool = True):
        super().__init__()
        self.teacher: Autoencoder = load_autoencoder(teacher)
        self.name, self.copy_encoder = teacher, copy_encoder
        self._student: LatentSpec | None = None
        self._shares_encoder = False
        self._frozen_encode: Callable[[Tensor], Posterior] | None = None

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
        # One encoder gives latents of one scale.
        wanted = _as_wanted(self.teacher, model) if model.latent_spec == theirs.latents else None
        taken = model.encoder_parameters()
        if wanted is not None and self.copy_encoder:
            with torch.no_grad():
                for name, value in wanted.items():
                    taken[name].copy_(value)
        frozen = not any(parameter.requires_grad for parameter in taken.values())
        same = wanted is not None and all(torch.equal(value, taken[name]) for name, value in wanted.items())
        self._shares_encoder = frozen and same
        self._student = model.latent_spec
        self._frozen_encode = model.encode if frozen and not same else None

    def scale(self, model: Autoencoder) -> LatentSpec:
        return model.latent_spec  # as `prepare` set it

    @torch.no_grad()
    def verify(self, pixel_values: Tensor) -> None:
        """Refuse a teacher that reconstructs these images clearly better as images in [0, 1], and a student whose
        encoder is frozen and gives unrelated latents."""
        as_declared, as_unit = (
            _relative_error(self.teacher, images) for images in (pixel_values, pixel_values / 2 + 0.5)
        )
        if as_unit * _CLEARLY_BETTER < as_declared:
            raise UserError(
                f"Distillation: {self.name} reconstructs images in [0, 1] {as_declared / as_unit:.0f} times better "
                "than in [-1, 1]; it seems to expect that range. Convert its weights, or give another teacher"
            )
        if self._frozen_encode is not None:
            assert self._student is not None, "prepare comes first"
            target = self.teacher.scale(self.teacher.encode(pixel_values).mode())
            error = (self._student.scale(self._frozen_encode(pixel_values).mode()) - target).square().mean()
            if not error < target.var():
                deviations = (error / target.var()).sqrt()
                raise UserError(
                    "Distillation: the student's encoder is not trained, and its latents are not those of "
                    f"{self.name}: their error is {deviations:.1f} standard deviations. Train it too "
                    "(training.trainable), or begin with a student that encodes like the teacher"
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


def _as_wanted(teacher: Autoencoder, student: Autoencoder) -> dict[str, Tensor] | None:
    """Return the values of parameters of the student's encoder with which it encodes as the teacher, by name; None if
    no values do so, because the encoders differ."""
    given, taken = teacher.encoder_parameters(), student.encoder_parameters()
    # An attention block adds its projection's output to its input.
    attention = {name: p for name, p in taken.items() if name not in given and ".attentions." in name}
    if {name: p.shape for name, p in given.items()} != {n: p.shape for n, p in taken.items() if n not in attention}:
        return None
    return {**given, **{name: torch.zeros_like(p) for name, p in attention.items() if ".to_out." in name}}


def _relative_error(model: Autoencoder, images: Tensor) -> float:
    """Return the squared error of the reconstructions, relative to the images' variance."""
    found = model.decode(model.encode(images).mode())
    return float((found - images).square().mean() / images.var())


def _sum_of_squares(difference: Tensor) -> Tensor:
    return difference.float().square().flatten(1).sum(dim=1)
