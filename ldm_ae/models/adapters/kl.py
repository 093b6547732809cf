"""`diffusers.AutoencoderKL` behind the project's interface.

Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752.
"""

from __future__ import annotations

from typing import Any, Literal

from ldm_ae.images.pixels import PixelSpec
from ldm_ae.models.adapters._gaussian import GaussianAutoencoder
from ldm_ae.models.adapters._opening import open_pretrained
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.adapters.initialization import start_as_thumbnail
from ldm_ae.models.channels import record_pixels


class KLAutoencoder(GaussianAutoencoder):
    """A convolutional KL autoencoder: `diffusers.AutoencoderKL` as `net`.

    Args:
        pretrained: A diffusers model folder, a run or a checkpoint of one (`runs/mine@best`), the name of a shipped
            model (`kl-f8c16-small`), or a name on the Hugging Face hub, to start from. The widths and blocks below are
            then read from it and ignored here.
        pixels: The images: `rgb`, `grey`, `rgba`, or a mapping with `channels`, `names`, `bits`, `low` and `high`
            (docs/PIXELS.md); null for those of `pretrained`, or RGB of 8 bits. With `pretrained` its first and last
            convolution are adapted.
        block_out_channels: Number of channels of each resolution level; there are `len - 1` downsamplings by 2.
        layers_per_block: Number of ResNet blocks per level.
        latent_channels: Number of latent channels C.
        attention_levels: Levels (0 is the full resolution) whose blocks have self-attention.
        mid_block_add_attention: Whether the middle block has self-attention.
        use_quant_conv: Whether 1x1 convolutions enclose the latents; the autoencoders of SD3 and FLUX have none.
        norm_num_groups: Number of groups of every GroupNorm; it must divide every entry of `block_out_channels`.
        act_fn: Activation, by diffusers' name.
        initial_log_variance: Initial log-variance of the posterior, set as the bias of its layer. null keeps diffusers'
            initial value near 0, where the noise is as large as an untrained encoder's latents.
        initialization: `default` is that of diffusers; `thumbnail` starts as a linear autoencoder that encodes to a
            thumbnail and enlarges it (`ldm_ae.models.adapters.initialization`), for short trainings.
    """

    short_names = ("kl",)

    class_names = ("AutoencoderKL",)
    compvis_class = "AutoencoderKL"
    neutral_config = frozenset({"force_upcast"})

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        pixels: dict[str, Any] | str | None = None,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        attention_levels: tuple[int, ...] = (),
        mid_block_add_attention: bool = True,
        use_quant_conv: bool = True,
        norm_num_groups: int = 32,
        act_fn: str = "silu",
        initial_log_variance: float | None = None,
        initialization: Literal["default", "thumbnail"] = "default",
    ):
        from diffusers import AutoencoderKL  # takes seconds

        super().__init__()
        if pretrained is not None:
            open_pretrained(self, AutoencoderKL, pretrained, pixels=pixels)
            return
        blocks = block_types(block_out_channels, attention_levels=attention_levels, norm_num_groups=norm_num_groups)
        images = PixelSpec.from_json(pixels or "rgb")
        self.net = AutoencoderKL(
            in_channels=images.channels,
            out_channels=images.channels,
            down_block_types=blocks.down,
            up_block_types=blocks.up,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=256,
            mid_block_add_attention=mid_block_add_attention,
            use_quant_conv=use_quant_conv,
            use_post_quant_conv=use_quant_conv,
            scaling_factor=1.0,  # no scale is measured yet; diffusers' default is Stable Diffusion's
        )
        record_pixels(self.net, images)
        if initialization == "thumbnail":
            start_as_thumbnail(self.net)
        self.set_initial_log_variance(initial_log_variance)

    @classmethod
    def example(cls, class_name: str) -> KLAutoencoder:
        del class_name
        return cls(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False)
