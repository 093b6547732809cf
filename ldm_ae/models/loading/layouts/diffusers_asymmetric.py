"""`AsymmetricAutoencoderKL` under diffusers' keys, without its config.json."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters.blocks import BlockTypes, block_types
from ldm_ae.models.loading.layouts.compvis import MARKS, assumed
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import UNKNOWN, Scale
from ldm_ae.models.loading.shapes import GROUPS

PUBLISHED = Scale(factor=0.18215, shift=None, source="published for Stable Diffusion 1, whose encoder it has")
"""Scale of the published models, which replace the decoder of Stable Diffusion 1."""
_SD_WIDTHS = (128, 256, 512, 512)


class DiffusersAsymmetric(Layout):
    """The keys of `diffusers.AsymmetricAutoencoderKL`."""

    keys = "diffusers' keys"
    marks = MARKS
    class_names = ("AsymmetricAutoencoderKL",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return any(key.startswith("decoder.condition_encoder.") for key in state)

    def infer(self, contents: Contents) -> Inference:
        contents.require_rgb("encoder.conv_in.weight", "decoder.conv_out.weight")
        levels = contents.count(r"encoder\.down_blocks\.(\d+)\.")
        if contents.count(r"decoder\.up_blocks\.(\d+)\.") != levels:
            raise UserError(f"{contents.path}: its halves have different numbers of levels")
        down = tuple(contents.width(f"encoder.down_blocks.{i}.resnets.0.conv1.weight") for i in range(levels))
        up = tuple(contents.width(f"decoder.up_blocks.{i}.resnets.0.conv1.weight") for i in reversed(range(levels)))
        channels = contents.axes("decoder.conv_in.weight", 4)[1]
        groups = contents.given.get("norm_num_groups", GROUPS)
        blocks = [_blocks(contents, widths, groups) for widths in (down, up)]
        layers = [contents.count(rf"{key}\.0\.resnets\.(\d+)\.") for key in (r"encoder\.down_blocks",
                                                                           r"decoder\.up_blocks")]  # fmt: skip
        config = {
            "in_channels": 3, "out_channels": 3, "down_block_types": blocks[0].down, "down_block_out_channels": down,
            "layers_per_down_block": layers[0], "up_block_types": blocks[1].up, "up_block_out_channels": up,
            "layers_per_up_block": layers[1] - 1, "act_fn": "silu", "latent_channels": channels,
            "norm_num_groups": groups, "sample_size": 256,
        }  # fmt: skip
        description = (
            f"asymmetric KL autoencoder, downsample factor {2 ** (levels - 1)}, {channels} latent channels, widths "
            f"{', '.join(map(str, down))} in the encoder and {', '.join(map(str, up))} in the decoder"
        )
        return Inference(
            class_name="AsymmetricAutoencoderKL", config=config, state=contents.state, description=description,
            assumed=assumed(contents.given), scale=PUBLISHED if down == _SD_WIDTHS and channels == 4 else UNKNOWN,
            scale_keys=("scaling_factor",),
        )  # fmt: skip

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.asymmetric import AsymmetricAutoencoder

        model = AsymmetricAutoencoder(
            down_block_out_channels=(32, 32), up_block_out_channels=(32, 64), layers_per_down_block=1,
            layers_per_up_block=2, latent_channels=3,
        )  # fmt: skip
        return {"AsymmetricAutoencoderKL": model.net.state_dict()}


def _blocks(contents: Contents, widths: tuple[int, ...], groups: int) -> BlockTypes:
    try:
        return block_types(widths, attention_levels=(), norm_num_groups=groups)
    except UserError as error:
        raise UserError(f"{contents.path}: {error}; give its config.json as --config") from None
