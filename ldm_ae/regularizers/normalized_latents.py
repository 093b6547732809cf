"""Running statistics of the latents, which become the trained model's scale.

Source: the batch normalization without weights on latents of FLUX.2 (`bn` of diffusers' AutoencoderKLFlux2) and of
REPA-E, arXiv 2504.10483, section 3: a diffusion model sees (z - mean) / sqrt(variance + eps) with running statistics.
The decoder decodes z itself, so that training changes no value: the statistics follow the encoder, and no data set must
be encoded to measure them at the end.

Differences from `torch.nn.BatchNorm2d`: a step updates once, with the statistics of all its micro-batches and
processes; the first updates are averages of all batches so far; and the variance is that of latents drawn from the
posterior, Var[mean] + E[variance], without the noise of a draw. REPA-E's code leaves eps out of the scale that it
stores; here it is in it, as in FLUX.2's pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, ChannelStatistics, GaussianPosterior, LatentSpec, Posterior
from ldm_ae.models.scaling import measured_scaling, measures_scale
from ldm_ae.quantizers.processes import sum_over_processes
from ldm_ae.regularizers.interface import Regularized, Regularizer


class NormalizedLatents(Regularizer):
    """Tracks mean and variance of each channel; checkpoints and the exported model have them as their scale.

    FLUX.2's class has them in its `bn`, of packed channels. Other classes have them as `latents_mean` and
    `latents_std`, or, where they cannot store these or their pipelines read a shift, as a factor and a shift over all
    channels. With averaged weights they are the statistics of the trained, not of the averaged encoder.

    Args:
        momentum: Weight of a step's statistics, in (0, 1].
        eps: Added to the variance, as FLUX.2 and REPA-E do.
    """

    short_names: ClassVar[tuple[str, ...]] = ("normalized-latents",)
    running_mean: Tensor
    running_var: Tensor
    updates: Tensor

    def __init__(self, *, momentum: float = 0.01, eps: float = 1e-4):
        super().__init__()
        if not 0 < momentum <= 1:
            raise UserError(f"NormalizedLatents: expected momentum in (0, 1], got {momentum}")
        if eps < 0:
            raise UserError(f"NormalizedLatents: expected eps of at least 0, got {eps}")
        self.momentum, self.eps = momentum, eps
        self._spec: LatentSpec | None = None

    def prepare(self, model: Autoencoder) -> None:
        if not measures_scale(model):
            raise UserError(
                f"NormalizedLatents: {type(model.net).__name__} stores no scale of its own; choose another regularizer"
            )
        self._spec = model.latent_spec
        channels = self._spec.scaled_channels
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        return Regularized(latents, pixel_values)

    @torch.no_grad()
    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        count, total, squares = sum_over_processes(torch.stack([self._sums(each) for each in posteriors]).sum(dim=0))
        mean = total / count
        variance = (squares / count - mean.square()) * count / (count - 1)
        self.updates += 1
        weight = (1 / self.updates).clamp(min=self.momentum).to(self.running_mean)
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(variance.to(self.running_var), weight)
        return {}

    def _sums(self, posterior: Posterior) -> Tensor:
        """Return the number, sum and sum of squares of the latents of each packed channel, (3, C)."""
        mean = self._packed(posterior.mode())
        squares = mean.square()
        if isinstance(posterior, GaussianPosterior):
            squares = squares + self._packed(posterior.log_variance).exp()
        count = torch.full_like(mean[0, :, 0, 0], mean[:, 0].numel())
        return torch.stack([count, mean.sum(dim=(0, 2, 3)), squares.sum(dim=(0, 2, 3))])

    def _packed(self, values: Tensor) -> Tensor:
        """Return (B, C, h, w) packed, in float64; a row or column that does not fill a patch is left out."""
        assert self._spec is not None, "prepare comes before the first pass"
        size = self._spec.patch_size
        height, width = (side // size * size for side in values.shape[-2:])
        dtype = torch.float32 if values.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        return self._spec.pack(values[..., :height, :width]).to(dtype)

    def scale(self, model: Autoencoder) -> LatentSpec | None:
        if int(self.updates) == 0:
            return None
        spec = model.latent_spec
        variance = self.running_var.cpu().double() + self.eps
        statistics = ChannelStatistics.from_state(
            {"count": 1, "mean": self.running_mean.cpu().double().tolist(), "squares": variance.tolist()}
        )
        reads_shift = bool(spec.shift_factor) and spec.latents_std is None
        if "latents_std" in model.scale_keys and not reads_shift:
            return replace(measured_scaling(spec, statistics, per_channel=True), scaling_factor=1.0)
        return measured_scaling(spec, statistics)
