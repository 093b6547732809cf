"""KL and VQ autoencoders under diffusers' keys, without their config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.layouts.compvis import MARKS, infer_from_compvis, is_convolutional
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.ldm_keys import rename_keys

_ATTENTION = (  # as diffusers before 0.17 named it
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."), (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."), (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)  # fmt: skip


class DiffusersKL(Layout):
    """The keys of `diffusers.AutoencoderKL` and `VQModel`."""

    keys = "diffusers' keys"
    marks = MARKS
    class_names = ("AutoencoderKL", "VQModel", "QuantizedAutoencoder")

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return is_convolutional(state, "encoder.down_blocks.") and any(".down_blocks.0.resnets." in k for k in state)

    def infer(self, contents: Contents) -> Inference:
        return infer_from_compvis(contents, in_compvis_names(contents.state, str(contents.path)), legacy=False)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.kl import KLAutoencoder
        from ldm_ae.models.adapters.vq import VQAutoencoder
        from ldm_ae.quantizers import VQ

        kl = KLAutoencoder(block_out_channels=(32, 32), layers_per_block=1, mid_block_add_attention=False)
        vq = VQAutoencoder(quantizer=VQ(8, 3), block_out_channels=(32,), layers_per_block=1)
        return {"AutoencoderKL": kl.net.state_dict(), "VQModel": vq.net.state_dict()}


def in_compvis_names(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return weights with diffusers' keys, new or old, under CompVis's keys.

    Raises:
        UserError: A key that such a network does not have.
    """
    for pattern, other in _ATTENTION:
        state = {re.sub(pattern, other, key): value for key, value in state.items()}
    try:
        names = rename_keys(state, source=0)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return {names[key]: value for key, value in state.items()}
