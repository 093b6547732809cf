"""HunyuanImage's autoencoder under diffusers' keys, without its config.json."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.layouts.compvis import MARKS
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import UNKNOWN, Scale

_PUBLISHED = Scale(factor=0.75289, shift=None, source="published for HunyuanImage 2.1, whose autoencoder has such a "
                   "network")  # fmt: skip


class DiffusersHunyuanImage(Layout):
    """The keys of `diffusers.AutoencoderKLHunyuanImage`."""

    keys = "diffusers' keys"
    marks = MARKS
    class_names = ("AutoencoderKLHunyuanImage",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        first = state.get("encoder.down_blocks.0.conv1.weight")
        return first is not None and first.ndim == 4 and "encoder.norm_out.weight" in state

    def infer(self, contents: Contents) -> Inference:
        contents.require_rgb("encoder.conv_in.weight", "decoder.conv_out.weight")
        widths, layers, narrowed = _levels(contents, "encoder.down_blocks")
        up, more, enlarged = _levels(contents, "decoder.up_blocks")
        if up[::-1] != widths or any(count != layers[0] for count in layers) or any(n != layers[0] + 1 for n in more):
            raise UserError(f"{contents.path}: its levels have no equivalent in diffusers' AutoencoderKLHunyuanImage")
        channels = contents.axes("decoder.conv_in.weight", 4)[1]
        factor = 2 ** (len(widths) - 1)
        config = {
            "in_channels": 3, "out_channels": 3, "latent_channels": channels, "block_out_channels": widths,
            "layers_per_block": layers[0], "spatial_compression_ratio": factor, "sample_size": 384,
            "downsample_match_channel": narrowed, "upsample_match_channel": enlarged,
        }  # fmt: skip
        return Inference(
            class_name="AutoencoderKLHunyuanImage", config=config, state=contents.state,
            description=f"HunyuanImage's KL autoencoder, downsample factor {factor}, {channels} latent channels, "
            f"widths {', '.join(map(str, widths))}, {layers[0]} blocks per level",
            assumed="", scale=_PUBLISHED if (channels, factor) == (64, 32) else UNKNOWN, scale_keys=("scaling_factor",),
        )  # fmt: skip

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.hunyuan_image import HunyuanImageAutoencoder

        model = HunyuanImageAutoencoder(block_out_channels=(32, 64), layers_per_block=1, latent_channels=4)
        return {"AutoencoderKLHunyuanImage": model.net.state_dict()}


def _levels(contents: Contents, blocks: str) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Return the widths of a half's levels, their numbers of blocks, and whether resampling gives the next width."""
    count = contents.count(rf"{blocks.replace('.', chr(92) + '.')}\.(\d+)\.")
    widths, layers, match = list[int](), [0], True
    for i in range(count):
        if f"{blocks}.{i}.conv.weight" in contents.state:
            out = contents.width(f"{blocks}.{i}.conv.weight")
            given = out * 4 if blocks.startswith("encoder") else out // 4
            match = match and given == contents.width(f"{blocks}.{i + 1}.conv1.weight")
            layers.append(0)
        else:
            if not layers[-1]:
                widths.append(contents.width(f"{blocks}.{i}.conv1.weight"))
            layers[-1] += 1
    return tuple(widths), tuple(layers), match
