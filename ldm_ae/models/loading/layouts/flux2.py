"""FLUX.2's autoencoder under the keys of Black Forest Labs: CompVis's, with the quant convolutions inside the halves
and the statistics of the packed latents in `bn`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.adapters.blocks import block_types
from ldm_ae.models.loading.layouts.compvis import MARKS, assumed, convolutional_config
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.ldm_keys import from_ldm_state_dict, rename_keys
from ldm_ae.models.loading.scales import Scale
from ldm_ae.models.loading.shapes import GROUPS, completed, network_of

BN = "bn."
_QUANT = (("encoder.quant_conv.", "quant_conv."), ("decoder.post_quant_conv.", "post_quant_conv."))
"""(Black Forest Labs', CompVis's) prefixes of the convolutions beside the latents."""


class Flux2(Layout):
    """The keys of FLUX.2's `ae.safetensors`."""

    keys = "Black Forest Labs' keys"
    marks = MARKS
    class_names = ("AutoencoderKLFlux2",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return f"{BN}running_mean" in state and any(key.startswith("encoder.down.") for key in state)

    def infer(self, contents: Contents) -> Inference:
        state = contents.state
        for theirs, ours in _QUANT:
            state = {f"{ours}{k.removeprefix(theirs)}" if k.startswith(theirs) else k: v for k, v in state.items()}
        return infer_flux2(contents, state)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.flux2 import Flux2Autoencoder

        model = Flux2Autoencoder(
            block_out_channels=(32, 32), decoder_block_out_channels=(32, 64), layers_per_block=1, latent_channels=4,
            mid_block_add_attention=False,
        )  # fmt: skip
        state = model.net.state_dict()
        return {"AutoencoderKLFlux2": {self.original_name(key, state): value for key, value in state.items()}}

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        if key.startswith(BN):
            return key
        name = rename_keys([other for other in {*keys, key} if not other.startswith(BN)], source=0)[key]
        for theirs, ours in _QUANT:
            name = f"{theirs}{name.removeprefix(ours)}" if name.startswith(ours) else name
        return name


def infer_flux2(contents: Contents, state: Mapping[str, Tensor]) -> Inference:
    """Infer FLUX.2's autoencoder from weights under CompVis's keys and those of `bn`."""
    given = contents.given
    statistics = {key: value for key, value in state.items() if key.startswith(BN)}
    others = {key: value for key, value in state.items() if key not in statistics}
    renamed = contents.renamed(others)
    network = network_of(others, str(contents.path), groups=given.get("norm_num_groups", GROUPS))
    try:
        converted = from_ldm_state_dict(completed(others, network))
    except UserError as error:
        raise UserError(f"{contents.path}: {error}") from None
    (packed,) = contents.axes(f"{BN}running_mean", 1)
    side = math.isqrt(packed // network.z_channels)
    if packed != side * side * network.z_channels:
        raise UserError(
            f"{contents.path}: {BN}running_mean has {packed} numbers; expected those of {network.z_channels} latent "
            "channels in squares"
        )
    statistics.setdefault(f"{BN}num_batches_tracked", torch.zeros((), dtype=torch.int64))
    config = convolutional_config(network, given)
    levels = len(network.ch_mult)
    decoder = tuple(renamed.width(f"decoder.up.{i}.block.0.conv1.weight") for i in range(levels))
    if decoder != config["block_out_channels"]:
        groups = config["norm_num_groups"]
        block_types(decoder, attention_levels=(), norm_num_groups=groups)  # checks the widths
        config["decoder_block_out_channels"] = decoder
    config |= {
        "use_quant_conv": network.quant_conv, "use_post_quant_conv": network.quant_conv, "patch_size": (side, side),
        "sample_size": 1024,
    }  # fmt: skip
    words = "" if decoder == config["block_out_channels"] else f", decoder widths {', '.join(map(str, decoder))}"
    return Inference(
        class_name="AutoencoderKLFlux2", config=config, state=converted | statistics,
        description=f"FLUX.2's {network.describe()}, packed {side}x{side}{words}", assumed=assumed(given),
        scale=Scale(factor=1.0, shift=None, source="the running statistics of bn in the file", in_file=True),
    )  # fmt: skip
