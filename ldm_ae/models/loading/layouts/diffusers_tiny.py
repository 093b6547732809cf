"""Tiny autoencoders (TAESD, TAESDXL, TAESD3, TAEF1) under diffusers' keys, without their config.json."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import Scale


class DiffusersTiny(Layout):
    """The keys of `diffusers.AutoencoderTiny`."""

    keys = "diffusers' keys"
    marks = ("encoder.layers.0.weight", "decoder.layers.0.weight")
    class_names = ("AutoencoderTiny",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        blocks = [f"{half}.layers.{first}.conv.0.weight" in state for half, first in (("encoder", 1), ("decoder", 2))]
        return all(blocks) and all(state[mark].ndim == 4 for mark in self.marks if mark in state)

    def infer(self, contents: Contents) -> Inference:
        return infer_tiny(contents, contents.state)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.tiny import TinyAutoencoder

        model = TinyAutoencoder(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(6, 6), num_encoder_blocks=(1, 2),
            num_decoder_blocks=(2, 1), latent_channels=5,
        )  # fmt: skip
        return {"AutoencoderTiny": model.net.state_dict()}


def infer_tiny(contents: Contents, state: dict[str, Tensor]) -> Inference:
    """Infer a tiny autoencoder from weights under diffusers' keys: plain convolutions separate its levels."""
    renamed = contents.renamed(state)
    levels: dict[str, list[int]] = {}
    last: dict[str, int] = {}
    for half in ("encoder", "decoder"):
        convolutions = renamed.numbers(rf"{half}\.layers\.(\d+)\.weight$")
        numbers = renamed.numbers(rf"{half}\.layers\.(\d+)\.conv\.")
        if len(convolutions) < 2 or convolutions[0] != 0:
            raise UserError(f"{contents.path}: the {half} of a tiny autoencoder has no first and last convolution")
        pairs = itertools.pairwise(convolutions)
        levels[half] = [sum(first < block < second for block in numbers) for first, second in pairs]
        last[half] = convolutions[-1]
    renamed.require_rgb("encoder.layers.0.weight", f"decoder.layers.{last['decoder']}.weight")
    encoder, decoder = renamed.width("encoder.layers.0.weight"), renamed.width("decoder.layers.0.weight")
    channels = renamed.axes("decoder.layers.0.weight", 4)[1]
    config: dict[str, Any] = {
        "in_channels": 3, "out_channels": 3, "latent_channels": channels,
        "encoder_block_out_channels": (encoder,) * len(levels["encoder"]),
        "decoder_block_out_channels": (decoder,) * len(levels["decoder"]),
        "num_encoder_blocks": tuple(levels["encoder"]), "num_decoder_blocks": tuple(levels["decoder"]),
    }  # fmt: skip
    widths = f"widths {encoder} and {decoder}" if encoder != decoder else f"width {encoder}"
    blocks = [", ".join(map(str, levels[half])) for half in ("encoder", "decoder")]
    return Inference(
        class_name="AutoencoderTiny", config=config, state=state,
        description=f"tiny autoencoder (TAESD), downsample factor {2 ** (len(levels['encoder']) - 1)}, {channels} "
        f"latent channels, {widths}, blocks per level {blocks[0]} in the encoder and {blocks[1]} in the decoder",
        assumed="ReLU, and enlargement by 2 to the nearest pixel",
        scale=Scale(factor=1.0, shift=0.0, source="none, because tiny autoencoders give scaled latents, which "
                    "pipelines use as they are"),
    )  # fmt: skip
