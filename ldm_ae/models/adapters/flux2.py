"""`diffusers.AutoencoderKLFlux2`, the autoencoder of FLUX.2, behind the project's interface.

Its pipelines pack each 2x2 latents into one of four times the channels, and normalize these by the running statistics
of a batch normalization without weights, `bn`, which no forward pass uses. These buffers are the model's scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters._gaussian import GaussianAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.adapters.convolutional import require_levels
from ldm_ae.models.spec import LatentSpec


class Flux2Autoencoder(GaussianAutoencoder):
    """The KL autoencoder of FLUX.2: `diffusers.AutoencoderKLFlux2` as `net`.

    The scale is always vectors of 4 C channels, stored in the buffers of `net.bn`; they stay in float32 where the
    weights are not.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`black-forest-labs/FLUX.2-dev`), to start from. The widths below are then read from it and ignored here.
        block_out_channels: Number of channels of each resolution level; there are `len - 1` downsamplings by 2.
        decoder_block_out_channels: The same of the decoder, such as those of FLUX.2's small decoder; null for equal
            ones.
        layers_per_block: Number of ResNet blocks per level.
        latent_channels: Number of latent channels C.
        mid_block_add_attention: Whether the middle block has self-attention.
        norm_num_groups: Number of groups of every GroupNorm; it must divide every width.
        act_fn: Activation, by diffusers' name.
        initial_log_variance: Initial log-variance of the posterior, set as the bias of its layer; null keeps diffusers'
            initial value near 0.
    """

    short_names = ("flux2",)
    class_names = ("AutoencoderKLFlux2",)
    scale_buffers = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    neutral_config = frozenset({"batch_norm_eps", "batch_norm_momentum", "patch_size"})

    _read: tuple[object, tuple[float, ...], tuple[float, ...]] | None = None

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        decoder_block_out_channels: tuple[int, ...] | None = None,
        layers_per_block: int = 2,
        latent_channels: int = 32,
        mid_block_add_attention: bool = True,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        initial_log_variance: float | None = None,
    ):
        from diffusers import AutoencoderKLFlux2  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AutoencoderKLFlux2, pretrained)
            return
        decoder_widths = tuple(decoder_block_out_channels or block_out_channels)
        require_levels(block_out_channels, decoder_widths)
        blocks = block_types(block_out_channels, attention_levels=(), norm_num_groups=norm_num_groups)
        block_types(decoder_widths, attention_levels=(), norm_num_groups=norm_num_groups)  # checks the widths
        self.net = AutoencoderKLFlux2(
            down_block_types=blocks.down,
            up_block_types=blocks.up,
            block_out_channels=tuple(block_out_channels),
            decoder_block_out_channels=None if decoder_block_out_channels is None else decoder_widths,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=256,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.set_initial_log_variance(initial_log_variance)

    @classmethod
    def example(cls, class_name: str) -> Flux2Autoencoder:
        del class_name
        return cls(
            block_out_channels=(4, 8), decoder_block_out_channels=(2, 4), layers_per_block=1, latent_channels=4,
            norm_num_groups=2, mid_block_add_attention=False,
        )  # fmt: skip

    @property
    def scale_keys(self) -> tuple[str, ...]:
        return ("latents_mean", "latents_std")

    def latents(self) -> LatentSpec:
        high, wide = self.net.config.patch_size
        if high != wide:
            raise UserError(f"{type(self.net).__name__}: patch_size is {high}x{wide}; expected a square")
        mean, std = self._vectors()
        return self.configured_latents(patch_size=high, latents_mean=mean, latents_std=std)

    def _vectors(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation as the pipeline computes them, kept until a buffer changes."""
        mean, variance = self.net.bn.running_mean, self.net.bn.running_var
        # Tensors that were made in inference mode do not count their changes.
        state = [(id(t), None if t.is_inference() else t._version, t.dtype) for t in (mean, variance)]
        if self._read is None or self._read[0] != state or mean.is_inference() or variance.is_inference():
            std = (variance.float() + self.net.config.batch_norm_eps).sqrt()
            self._read = (state, tuple(mean.tolist()), tuple(std.tolist()))
        return self._read[1:]

    @torch.no_grad()
    def _store_scale(self, scale: dict[str, Any]) -> None:
        bn, eps = self.net.bn, self.net.config.batch_norm_eps
        mean = scale["latents_mean"] or (0.0,) * bn.num_features
        std = scale["latents_std"] or (1.0,) * bn.num_features
        variance = torch.tensor(std, dtype=torch.float64).square() - eps
        if variance.min() < 0:
            raise UserError(
                f"{type(self.net).__name__} cannot store latents_std {min(std):.3g}: the least that batch_norm_eps "
                f"{eps} leaves room for is {eps**0.5:.3g}; the latents have nearly collapsed"
            )
        bn.running_mean.copy_(torch.tensor(mean, dtype=torch.float64))
        bn.running_var.copy_(variance)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flux2Autoencoder:
        """Move and cast all but the scale, which is only moved: rounded to half precision it would differ by 0.4 %."""
        before = dict(self.net.bn.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self.net.bn, name)
            if moved.dtype != buffer.dtype:
                setattr(self.net.bn, name, buffer.to(moved.device))
        return self
