"""Deep-compression autoencoders (DC-AE) under the keys of their authors' code, efficientvit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, reason
from ldm_ae.models.loading.layouts.diffusers_dc import DiffusersDC, infer_dc
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout

_RENAMED = (
    # diffusers, efficientvit: of whole blocks in a level, ...
    (r"\.(?:down|up)_blocks\.(\d+)\.(\d+)\.", r".stages.\1.op_list.\2."),
    # ... of the layers in them, ...
    (r"\.attn\.to_[qkv]\.weight", ".context_module.main.qkv.conv.weight"),
    (r"\.attn\.to_qkv_multiscale\.(\d+)\.proj_in\.", r".context_module.main.aggreg.\1.0."),
    (r"\.attn\.to_qkv_multiscale\.(\d+)\.proj_out\.", r".context_module.main.aggreg.\1.1."),
    (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
    (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
    (r"\.conv_out\.conv_(inverted|depth|point)\.", r".local_module.main.\1_conv.conv."),
    (r"(op_list\.\d+)\.conv_out\.norm\.", r"\1.local_module.main.point_conv.norm."),
    (r"(op_list\.\d+)\.conv([12])\.", r"\1.main.conv\2.conv."), (r"(op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
    (r"(op_list\.\d+)\.conv\.", r"\1.main.conv.conv."),
    # ... and of the layers outside any level.
    (r"^encoder\.conv_in\.(conv\.)?", r"encoder.project_in.\1conv."),
    (r"^encoder\.conv_out\.", "encoder.project_out.main.op_list.0.conv."),
    (r"^decoder\.conv_in\.", "decoder.project_in.main.conv."),
    (r"^decoder\.norm_out\.", "decoder.project_out.op_list.0."),
    (r"^decoder\.conv_out\.(conv\.)?", r"decoder.project_out.op_list.2.\1conv."),
)  # fmt: skip
_LINEAR = 2
"""Axes of the weight of a linear layer, which is a 1x1 convolution in efficientvit."""


class DCAE(Layout):
    """The keys of https://github.com/mit-han-lab/efficientvit, `encoder.stages`."""

    keys = "DC-AE's keys"
    marks = (
        "encoder.project_in.conv.weight", "encoder.project_in.conv.conv.weight", "decoder.project_in.main.conv.weight",
        "decoder.project_out.op_list.0.weight",
    )  # fmt: skip
    class_names = ("AutoencoderDC",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return any(key.startswith("encoder.stages.") for key in state)

    def infer(self, contents: Contents) -> Inference:
        from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

        try:
            state = convert_autoencoder_dc_checkpoint_to_diffusers(dict(contents.state))
        except Exception as error:
            raise UserError(f"{contents.path} cannot be converted as a DC-AE: {reason(error)}") from error
        return infer_dc(contents, state)

    def example(self) -> dict[str, dict[str, Tensor]]:
        state = DiffusersDC().example()["AutoencoderDC"]
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            name = self.original_name(key, state)
            value = value[:, :, None, None] if ".attn.to_" in key and value.ndim == _LINEAR else value
            found[name] = torch.cat([found[name], value]) if name in found else value  # queries, keys and values
        return {"AutoencoderDC": found}

    def original_name(self, key: str, keys: Iterable[str]) -> str:
        del keys
        for pattern, other in _RENAMED:
            key = re.sub(pattern, other, key)
        return key
