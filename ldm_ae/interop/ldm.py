"""KL and VQ autoencoders with the keys of CompVis's latent-diffusion (arXiv 2112.10752) and taming-transformers
(arXiv 2012.09841), from and to diffusers' keys.

The same network has other names: `encoder.down.{level}.block.{i}`, `encoder.mid.block_1`, `decoder.up.{level}` with
level 0 the highest resolution (diffusers counts the decoder's levels from the lowest), `nin_shortcut` for the 1x1
convolution beside a ResNet block, and attention as 1x1 convolutions (C, C, 1, 1) where diffusers has linear layers
(C, C).

The file is safetensors. CompVis's `init_from_ckpt` unpickles, so its users load it as
`model.load_state_dict(safetensors.torch.load_file("OUT/model.safetensors"))` into the model that
`instantiate_from_config` builds from `OUT/config.yaml`. A VQ's codes are `quantize.embedding.weight` in all three.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import RGB
from ldm_ae.interop.folder import exporting
from ldm_ae.models import Autoencoder, LatentSpec
from ldm_ae.models.loading.ldm_keys import CODES, idle_attention, is_projection, rename_keys

LDM_FILES = frozenset({"model.safetensors", "config.yaml"})
GROUPS = 32
"""Number of groups of every GroupNorm in CompVis's code, for all widths."""


def to_ldm_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a `diffusers.AutoencoderKL` or `VQModel` under CompVis's keys.

    Parts that CompVis's network always has and diffusers' may lack are added without a change of the outputs: attention
    in the middle with an output projection of zeros (the block is residual), and identities as quant convolutions.

    Raises:
        UserError: a key that such a network does not have.
    """
    names = rename_keys(state, source=0)
    renamed = {names[key]: (value[:, :, None, None] if is_projection(key) else value) for key, value in state.items()}
    for half in ("encoder", "decoder"):
        if f"{half}.mid.attn_1.norm.weight" not in renamed:
            like = renamed[f"{half}.mid.block_1.norm1.weight"]
            renamed |= {f"{half}.mid.attn_1.{name}": value for name, value in idle_attention(like).items()}
    channels = renamed["decoder.conv_in.weight"].shape[1]
    for name, width in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        if f"{name}.weight" not in renamed:
            like = renamed["decoder.conv_in.weight"]
            renamed[f"{name}.weight"] = torch.eye(width).to(like)[:, :, None, None]
            renamed[f"{name}.bias"] = like.new_zeros(width)
    return renamed


def export_ldm(model: Autoencoder, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write `model.safetensors` and `config.yaml` for CompVis's code; an earlier export at `out` is replaced.

    Args:
        model: A KL autoencoder, or a discrete one with the nearest of a table of codes (VQ, EMAVQ); it is not changed.
            Weights are written in float32.
        out: The folder.
        overwrite: Replace an earlier export at `out`.

    Returns:
        `out`.

    Raises:
        UserError: a network that CompVis's code cannot build, or `out` holds other files or cannot be written.
    """
    config = ldm_config(model)
    net: Any = model.net
    # Of a quantizer, only the codes: the record of their use matters only to our own training.
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("quantize.") or k == CODES}
    state = {key: value.float().cpu().contiguous() for key, value in to_ldm_state_dict(own).items()}
    note = "".join(f"# {line}\n" for line in (
        *scale_lines(model.latent_spec),
        "Load: model.load_state_dict(safetensors.torch.load_file('model.safetensors'))",
    ))  # fmt: skip
    size = sum(tensor.nbytes for tensor in state.values())
    with exporting(out, own_files=LDM_FILES, size=size, overwrite=overwrite) as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.yaml").write_text(note + yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return Path(out)


def scale_lines(spec: LatentSpec) -> list[str]:
    """Return lines about the scale for users of CompVis's code, whose diffusion models apply only scale_factor."""
    factor = spec.scaling_factor
    if spec.latents_mean is not None and spec.latents_std is not None:
        return [
            f"The scale of these latents is (latents - mean) / std * {factor!r}, channel by channel, with mean",
            f"{list(spec.latents_mean)} and std {list(spec.latents_std)}.",
            "CompVis's latent diffusion model has a single scale_factor and cannot apply them.",
        ]
    if spec.shift_factor:
        return [
            f"The scale of these latents is (latents - {spec.shift_factor!r}) * {factor!r}. CompVis's latent diffusion",
            f"model cannot apply a shift: with scale_factor {factor!r} alone its latents are off-centre.",
        ]
    return [f"Latents times {factor!r} have unit variance, if measured: the latent diffusion model's scale_factor."]


def ldm_config(model: Autoencoder) -> dict[str, Any]:
    """Return the configuration from which CompVis's `instantiate_from_config` builds the same network.

    Raises:
        UserError: the first property of the network that CompVis's configuration cannot express.
    """
    net: Any = model.net  # diffusers' attributes are not typed
    if model.compvis_class is None:
        codes = model.codebook if model.latent_spec.codebook_maps is None else None
        kind = type(net).__name__ if codes is None else codes.method
        raise UserError(f"format ldm holds KL autoencoders and VQ models with a table of codes, not a {kind}")
    if model.pixel_spec != RGB:
        raise UserError(f"format ldm: CompVis's code reads RGB of 8 bits, this model's images are {model.pixel_spec}; "
                        "export as diffusers")  # fmt: skip
    config = net.config
    if config.get("norm_type", "group") != "group":
        raise UserError(
            f"format ldm: CompVis's code normalizes by group, this model's decoder has norm_type {config.norm_type}"
        )
    widths = list(config.block_out_channels)
    levels = len(widths)
    if config.norm_num_groups != GROUPS:
        raise UserError(
            f"format ldm: CompVis's code normalizes in {GROUPS} groups, this model has {config.norm_num_groups};  "
            f"train with norm_num_groups={GROUPS} or export as diffusers"
        )
    if config.act_fn not in ("silu", "swish"):
        raise UserError(f"format ldm: CompVis's code has only the activation silu, this model has {config.act_fn}")
    if bad := [width for width in widths if width % widths[0]]:
        raise UserError(f"format ldm: every width must be a multiple of the first ({widths[0]}); {bad[0]} is not")
    down = ["Attn" in name for name in config.down_block_types]
    if down != ["Attn" in name for name in config.up_block_types][::-1]:
        raise UserError("format ldm: encoder and decoder must have attention at the same levels; these differ")
    size = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size)
    # It only determines which level has attention; each level's resolution must be an integer that no other level has.
    resolution = max(size // 2 ** (levels - 1), 1) * 2 ** (levels - 1)
    kl = model.codebook is None
    own: dict[str, Any] = {"embed_dim": config.latent_channels}
    if not kl:
        own = {"embed_dim": model.latent_spec.channels, "n_embed": model.latent_spec.codebook_size}
    return {
        "model": {
            "target": f"ldm.models.autoencoder.{model.compvis_class}",
            "params": {
                **own,
                "ddconfig": {
                    "double_z": kl,
                    "z_channels": config.latent_channels,
                    "resolution": resolution,
                    "in_channels": config.in_channels,
                    "out_ch": config.out_channels,
                    "ch": widths[0],
                    "ch_mult": [width // widths[0] for width in widths],
                    "num_res_blocks": config.layers_per_block,
                    "attn_resolutions": [resolution // 2**level for level in range(levels) if down[level]],
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        }
    }
