"""`diffusers.AsymmetricAutoencoderKL`, with a larger decoder than encoder, behind the project's interface.

Source: Zhu et al., Designing a Better Asymmetric VQGAN for StableDiffusion, arXiv 2306.04632. The decoder can also take
an image and a mask, for inpainting. Here it decodes latents alone, as pipelines do without a mask; the part that reads
the image, `decoder.condition_encoder`, is kept and never trained.
"""

from __future__ import annotations

from ldm_ae.models.adapters._gaussian import GaussianAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.adapters.convolutional import require_levels


class AsymmetricAutoencoder(GaussianAutoencoder):
    """A KL autoencoder with a larger decoder: `diffusers.AsymmetricAutoencoderKL` as `net`, decoded without a mask.

    Args:
        pretrained: A model folder, a run or a checkpoint of one (`runs/mine@best`), or a name on the Hugging Face hub
            (`cross-attention/asymmetric-autoencoder-kl-x-1-5`), to start from. All below is then read from it and
            ignored here.
        down_block_out_channels: Number of channels of each level of the encoder; there are `len - 1` downsamplings
            by 2.
        up_block_out_channels: Number of channels of each level of the decoder, from the full resolution on.
        layers_per_down_block: Number of ResNet blocks per level of the encoder.
        layers_per_up_block: Number of ResNet blocks per level of the decoder, less one.
        latent_channels: Number of latent channels C.
        norm_num_groups: Number of groups of every GroupNorm; it must divide every width.
        act_fn: Activation, by diffusers' name.
        initial_log_variance: Initial log-variance of the posterior, set as the bias of its layer; null keeps diffusers'
            initial value near 0.
    """

    short_names = ("asymmetric",)
    class_names = ("AsymmetricAutoencoderKL",)
    frozen_names = ("decoder.condition_encoder.",)
    neutral_config = frozenset({"force_upcast"})

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        down_block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        up_block_out_channels: tuple[int, ...] = (192, 384, 768, 768),
        layers_per_down_block: int = 2,
        layers_per_up_block: int = 3,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        initial_log_variance: float | None = None,
    ):
        from diffusers import AsymmetricAutoencoderKL  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AsymmetricAutoencoderKL, pretrained)
            return
        require_levels(down_block_out_channels, up_block_out_channels)
        down, up = (
            block_types(widths, attention_levels=(), norm_num_groups=norm_num_groups)
            for widths in (down_block_out_channels, up_block_out_channels)
        )
        self.net = AsymmetricAutoencoderKL(
            down_block_types=down.down,
            down_block_out_channels=tuple(down_block_out_channels),
            layers_per_down_block=layers_per_down_block,
            up_block_types=up.up,
            up_block_out_channels=tuple(up_block_out_channels),
            layers_per_up_block=layers_per_up_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=256,
            scaling_factor=1.0,  # no scale is measured yet; diffusers' default is Stable Diffusion's
        )
        self.set_initial_log_variance(initial_log_variance)

    @classmethod
    def example(cls, class_name: str) -> AsymmetricAutoencoder:
        del class_name
        return cls(
            down_block_out_channels=(4, 8), up_block_out_channels=(6, 12), layers_per_down_block=1,
            layers_per_up_block=1, norm_num_groups=2,
        )  # fmt: skip

    @property
    def downsample_factor(self) -> int:
        return int(2 ** (len(self.net.config.down_block_out_channels) - 1))
