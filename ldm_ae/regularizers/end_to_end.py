"""Autoencoder and diffusion transformer together (REPA-E).

Source: Leng et al., REPA-E: Unlocking VAE for End-to-End Tuning with Latent Diffusion Transformers, arXiv 2504.10483,
section 3; the alignment is that of Yu et al., REPA, arXiv 2410.06940, equation 8. In each step a SiT sees the step's
latents z, normalized by running statistics, as noisy latents at a random time t of each sample. With h the output of an
early block, W an MLP and f the features of the image in the patches i of one grid,

    diffusion           ||SiT(z_t, t) - (noise - z)||^2, which trains the SiT alone: its gradient stops at z
    alignment           - mean over i of cos(W h_i, f_i), which trains the SiT's blocks up to that one, and W
    latent_alignment    the same number, which trains the autoencoder alone

with the published weights 1, 0.5 and 1.5 (sections 3 and 4.1). Through the diffusion loss an autoencoder would learn
latents that are easy to predict: constant ones.

The published code passes the latents through the SiT twice, with and without the autoencoder's graph, as two losses
want two sets of parameters. Here there is one forward pass, from a cut at z. The alignment's gradient at the cut costs
one more backward pass of the blocks up to the aligned one, and it continues into the autoencoder with that of the
reconstruction. The published code normalizes by statistics of the batch where it trains the SiT; here running ones
always do, so that no sample depends on the others of its batch. Because these only follow the latents, the alignment
also makes latents larger, step by step; the kl term holds their scale. Its published weight, 1e-6 of a sum over an
image's latents, is 4e-3 of their mean for 4x32x32 latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.core.averaging import warmed_up
from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.diffusion import HEAD_WIDTH, NO_CLASS, build_sit, flow
from ldm_ae.features import FeatureNetwork
from ldm_ae.models import Autoencoder, LatentSpec, Posterior
from ldm_ae.regularizers._features import SeenFeatures
from ldm_ae.regularizers.interface import Regularized
from ldm_ae.regularizers.normalized_latents import NormalizedLatents

_HALF_PRECISION_SCALE = 2.0**10
"""Factor of the alignment's gradient on its way to the latents, which would be 0 in float16 without it."""


class EndToEnd(NormalizedLatents):
    """A SiT (diffusers' DiTTransformer2DModel) on the latents, trained in the autoencoder's step.

    Adds the terms `diffusion`, `alignment` and `latent_alignment`; `objective.regularization_weights` needs all three:
    1.0, 0.5 and 1.5 are the published values, which refer to `objective.reduction` mean. The latents that are decoded
    do not change. Checkpoints and the exported model have the running statistics as their scale. The SiT has no
    classes. Checkpoints hold it and an average of its weights, of which `scripts/train_end_to_end.py` makes a pipeline.

    `optimizer` updates the SiT too, and `training.max_grad_norm` clips the gradients of both networks together.

    Args:
        features: The network whose last map the SiT's hidden states are aligned with. REPA's is DINOv2 base, with
            images of 224 pixels for 16x16 patches.
        width: Channels of a token, a multiple of 32.
        depth: Number of blocks.
        aligned_block: The block whose output is aligned, from 1 to `depth`; null is a third of the depth. REPA takes 8
            of 28 and 4 of 12.
        projector_width: Channels of the two hidden layers of the MLP.
        ema_decay: Decay of the average of the SiT's weights.
        momentum: Weight of a step's statistics of the latents, in (0, 1].
        eps: Added to their variance.
    """

    short_names: ClassVar[tuple[str, ...]] = ("end-to-end", "repa-e")
    frozen = ("features",)

    def __init__(
        self, *, features: FeatureNetwork, width: int = 384, depth: int = 12, aligned_block: int | None = None,
        projector_width: int = 2048, ema_decay: float = 0.9999, momentum: float = 0.01, eps: float = 1e-4,
    ):  # fmt: skip
        super().__init__(momentum=momentum, eps=eps)
        if width < HEAD_WIDTH or width % HEAD_WIDTH or depth < 1 or projector_width < 1:
            raise UserError(
                f"EndToEnd: expected a width that is a multiple of {HEAD_WIDTH}, and a depth and a projector_width of "
                f"at least 1, got {width}, {depth} and {projector_width}"
            )
        if not 0 <= ema_decay < 1:
            raise UserError(f"EndToEnd: expected ema_decay in [0, 1), got {ema_decay}")
        self.aligned_block = max(depth // 3, 1) if aligned_block is None else aligned_block
        if not 1 <= self.aligned_block <= depth:
            raise UserError(f"EndToEnd: expected aligned_block from 1 to {depth}, got {aligned_block}")
        self.features = features
        self.width, self.depth, self.projector_width, self.ema_decay = width, depth, projector_width, ema_decay
        self.sit: Any = None
        self._seen: Any = None

    @classmethod
    def example(cls) -> EndToEnd:
        from ldm_ae.features import DINOv2

        return cls(features=DINOv2.example(), width=32, depth=2, projector_width=16)

    @property
    def identity(self) -> str:
        sizes = f"width {self.width}, depth {self.depth}, aligned block {self.aligned_block}"
        return f"{super().identity} of {sizes} with {self.features.identity}"

    def prepare(self, model: Autoencoder) -> None:
        if "latents_std" not in model.scale_keys:
            raise UserError(
                f"EndToEnd: {type(model.net).__name__} cannot store latents_mean and latents_std; choose KLAutoencoder"
            )
        super().prepare(model)
        self._seen = SeenFeatures(self.features, model.pixel_spec, self.view, "EndToEnd")
        spec = model.latent_spec
        side = model.sample_size // spec.image_multiple
        self.sit = build_sit(spec.scaled_channels, side, self.width, self.depth)
        wide = self.projector_width
        self.projector = nn.Sequential(
            nn.Linear(self.width, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(),
            nn.Linear(wide, self.features.channels[-1]),
        )  # fmt: skip
        self.average = nn.Module()  # of buffers: state that no optimizer updates. Their names must not have dots
        for name, parameter in self.sit.named_parameters():
            self.average.register_buffer(name.replace(".", "/"), parameter.detach().clone())

    def normalized(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as the SiT sees them, (B, C p^2, h/p, w/p) float32."""
        assert self._spec is not None, "prepare comes before the first pass"
        mean, variance = (values.view(1, -1, 1, 1) for values in (self.running_mean, self.running_var))
        return (self._spec.pack(latents.float()) - mean) / (variance + self.eps).sqrt()

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        if latents.shape[-2] != latents.shape[-1]:
            raise UserError(
                "EndToEnd: expected square images, as diffusers' DiTTransformer2DModel does, got "
                f"{pixel_values.shape[-2]}x{pixel_values.shape[-1]}; remove data.sizes and data.area"
            )
        normalized = self.normalized(latents)
        features = self._seen(self.features, pixel_values, draws)
        noise, sigma = draws.normal(*normalized.shape[1:]), draws.uniform()
        with torch.enable_grad():  # the losses have gradients of their own even where the caller needs none
            cut = normalized.detach().requires_grad_()
            diffusion, alignment = self.losses(cut, noise.to(cut), sigma.to(cut), features)
            total = alignment.sum() * _HALF_PRECISION_SCALE
            at_cut = torch.autograd.grad(total, cut, retain_graph=True)[0] / _HALF_PRECISION_SCALE
        through = (normalized * at_cut).flatten(1).sum(dim=1)  # has that gradient, and gets the value of the loss
        terms = {
            "diffusion": diffusion,
            "alignment": alignment,
            "latent_alignment": through + (alignment - through).detach(),
        }
        count = latents[0].numel()
        return Regularized(latents, pixel_values, {name: term * count for name, term in terms.items()})

    def losses(self, normalized: Tensor, noise: Tensor, sigma: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the diffusion loss, a mean over the latents, and the alignment loss of each sample, (B,) each.

        Args:
            normalized: (B, C, h, w), as `normalized` returns them.
            noise: (B, C, h, w) standard normal.
            sigma: (B,) in [0, 1): the time of each sample.
            features: (B, D, h', w').
        """
        noisy, time, target = flow(normalized, noise, sigma)
        hidden: list[Tensor] = []
        block = self.sit.transformer_blocks[self.aligned_block - 1]
        handle = block.register_forward_hook(lambda module, inputs, output: hidden.append(output))  # noqa: ARG005
        try:
            labels = torch.full((len(noisy),), NO_CLASS, device=noisy.device)
            predicted = self.sit(noisy, time, class_labels=labels).sample.float()
        finally:
            handle.remove()
        diffusion = (predicted - target.detach()).square().flatten(1).mean(dim=1)
        patch = self.sit.config.patch_size
        grid = (normalized.shape[-2] // patch, normalized.shape[-1] // patch)
        if features.shape[-2:] != grid:
            features = F.interpolate(features, size=grid, mode="bilinear", antialias=True)
        projected = self.projector(hidden[0]).float()  # (B, patches, D)
        cosines = F.cosine_similarity(projected, features.flatten(2).transpose(1, 2), dim=2)
        return diffusion, -cosines.mean(dim=1)

    @torch.no_grad()
    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        """Update the statistics, and average in the weights that the step's passes had."""
        logs = super().learn(posteriors)
        decay = warmed_up(self.ema_decay, int(self.updates) - 1)
        averaged, current = [*self.average.buffers()], [parameter.detach() for parameter in self.sit.parameters()]
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
        return logs

    def scale(self, model: Autoencoder) -> LatentSpec | None:
        """Return the normalization of `normalized`, in place of any scale that the model's class reads beside it."""
        if int(self.updates) == 0:
            return None
        mean, std = self.running_mean.cpu().double(), (self.running_var.cpu().double() + self.eps).sqrt()
        return replace(
            model.latent_spec, scaling_factor=1.0, shift_factor=0.0, latents_mean=tuple(mean.tolist()),
            latents_std=tuple(std.tolist()),
        )  # fmt: skip
