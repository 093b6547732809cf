"""Checkpoints of CompVis's latent-diffusion and taming-transformers, KL and VQ, into diffusers folders.

The shapes of the weights say what the network is: its widths, blocks, levels with attention, channels and codes. The
side in pixels that it was trained at is not in them; CompVis's YAML has it as `resolution`. Nor is a tanh after the
decoder (`tanh_out`), which diffusers' decoders do not have: a YAML that names one is refused. That file is optional,
and what it says of the network must agree with the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ldm_ae.errors import UserError, printable, reason
from ldm_ae.interop.diffusers import export_diffusers
from ldm_ae.interop.ldm import CODES, from_ldm_state_dict, rename_keys
from ldm_ae.legacy import read_legacy_weights
from ldm_ae.models import Autoencoder, KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ
from ldm_ae.tensor_files import read_tensors

PICKLED = (".ckpt", ".pth", ".pt", ".bin")
FIRST_STAGE = "first_stage_model."
"""What the autoencoder's keys begin with in the checkpoint of a whole latent diffusion model."""
NOT_THE_NETWORK = ("loss.", "model_ema.")
"""The discriminator, LPIPS and log-variance; averages of the weights, under names of their own."""
RESOLUTION = 256
"""Side in pixels of every first stage that LDM and taming published, where no configuration says it."""
_LONGEST_KEY, _LARGEST_RESOLUTION = 200, 2**16


@dataclass(frozen=True, kw_only=True)
class LDMNetwork:
    """What the shapes of the weights say, in the words of CompVis's `ddconfig`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    """Levels, 0 the full resolution, that have self-attention; `attn_resolutions` are their sides."""
    middle_attention: bool
    """Self-attention in the middle blocks; none with `attn_type: none`, as in vq-f4-noattn."""
    z_channels: int
    embed_dim: int
    double_z: bool
    n_embed: int | None
    """Codes of a VQ, None for KL."""


@dataclass(frozen=True, kw_only=True)
class LDMConfig:
    """What CompVis's YAML says beside the network."""

    resolution: int = RESOLUTION
    scale_factor: float = 1.0
    """Of the latent diffusion model; 1 where the file is a first stage's."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a checkpoint."""

    path: Path
    network: LDMNetwork
    left_out: int
    """Tensors of the checkpoint that belong to the loss, to averages, or to other parts of a latent diffusion model."""
    assumed_resolution: bool
    """No configuration said the side in pixels, so that `sample_size` is `RESOLUTION`, nor whether a tanh follows the
    decoder, of which there is taken to be none."""


def import_ldm(checkpoint: str | Path, out: str | Path, *, config: str | Path | None = None) -> Imported:
    """Read a checkpoint into a diffusers folder with equal outputs, in float32.

    A VQ becomes a `diffusers.VQModel`. CompVis and taming weighted the codebook term with beta where the paper weights
    the commitment; its config.json records that as `legacy_beta`, and training goes on from it as it was.

    Args:
        checkpoint: `.ckpt`, `.pth`, `.pt` or `.bin`, of which tensors alone are unpickled, or `.safetensors`; of a
            first stage or of a whole latent diffusion model, whose first stage is taken.
        out: The folder.
        config: CompVis's YAML of either.

    Raises:
        UserError: no such file, weights that are not such a network's, a configuration that does not agree with them,
            or `out` holds other files or cannot be written.
    """
    state, left_out = read_first_stage(checkpoint)
    network = network_of(state, str(checkpoint))
    said = LDMConfig() if config is None else read_ldm_config(config, network)
    model = _build(state, network, str(checkpoint))
    model.set_sample_size(said.resolution)
    model.set_scaling(scaling_factor=said.scale_factor)
    path = export_diffusers(model, out)
    return Imported(path=path, network=network, left_out=left_out, assumed_resolution=config is None)


def read_first_stage(checkpoint: str | Path) -> tuple[dict[str, Tensor], int]:
    """The autoencoder's tensors under CompVis's keys, and how many others were left out."""
    path = Path(checkpoint)
    if path.suffix == ".safetensors":
        everything = read_tensors(path)
    elif path.suffix in PICKLED:
        everything = read_legacy_weights(path)
    else:
        raise UserError(f"{path} is no checkpoint by its name; known are .safetensors, {', '.join(PICKLED)}")
    whole = any(key.startswith(FIRST_STAGE) for key in everything)
    state = {key.removeprefix(FIRST_STAGE): value for key, value in everything.items()
             if key.startswith(FIRST_STAGE) or not whole}  # fmt: skip
    state = {key: value for key, value in state.items() if not key.startswith(NOT_THE_NETWORK)}
    for key, value in state.items():
        if len(key) > _LONGEST_KEY or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"{path}: '{printable(key)}' is no weight of an autoencoder")
        if value.untyped_storage().nbytes() < value.nbytes:
            raise UserError(f"{path}: '{printable(key)}' claims more numbers than the file holds")
    return state, len(everything) - len(state)


def network_of(state: dict[str, Tensor], name: str) -> LDMNetwork:
    """The network that these weights are of; `name` is the file's, for messages."""

    def weight(key: str, axes: int = 4) -> Tensor:
        if key not in state or state[key].ndim != axes or state[key].numel() == 0:
            raise UserError(f"{name} is no KL or VQ autoencoder of CompVis's: it has no {key} of {axes} axes")
        return state[key]

    def count(pattern: str) -> int:
        found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
        if not found or found != set(range(len(found))):
            raise UserError(f"{name} is no autoencoder of CompVis's: the numbers in its keys have gaps")
        return len(found)

    if any(key.startswith("encoder.down_blocks.") for key in state):
        raise UserError(f"{name} has diffusers' keys, not CompVis's; give its folder, with config.json, as MODEL")
    ch = weight("encoder.conv_in.weight").shape[0]
    levels = count(r"encoder\.down\.(\d+)\.")
    blocks = count(r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [weight(f"encoder.down.{i}.block.0.conv1.weight").shape[0] for i in range(levels)]
    if any(width % ch for width in widths) or widths[0] != ch:
        raise UserError(f"{name}: widths {widths} after a first convolution of {ch} have no equal in diffusers")
    z_channels = weight("decoder.conv_in.weight").shape[1]
    embed_dim = weight("post_quant_conv.weight").shape[1]
    middles = [f"{half}.mid.attn_1.norm.weight" in state for half in ("encoder", "decoder")]
    if middles[0] != middles[1]:
        raise UserError(f"{name}: the middle of encoder and decoder must both have attention or none; these differ")
    codes = weight(CODES, axes=2).shape[0] if CODES in state else None
    double_z = weight("encoder.conv_out.weight").shape[0] == 2 * z_channels
    if codes is None and not double_z:
        raise UserError(f"{name} has neither codes ({CODES}) nor an encoder of means and log-variances")
    if codes is None and embed_dim != z_channels:
        raise UserError(f"{name}: embed_dim {embed_dim} beside {z_channels} channels has no equal in AutoencoderKL")
    return LDMNetwork(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        attention_levels=tuple(i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in state),
        middle_attention=middles[0],
        z_channels=z_channels,
        embed_dim=embed_dim,
        double_z=double_z and codes is None,
        n_embed=codes,
    )


def read_ldm_config(path: str | Path, network: LDMNetwork) -> LDMConfig:
    """CompVis's YAML, of a first stage or of a latent diffusion model that has one.

    Raises:
        UserError: no such file, not of that form, or it says another network than the weights are of.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        params = content["model"]["params"]
        scale_factor = params.get("scale_factor", 1.0)
        if "first_stage_config" in params:
            params = params["first_stage_config"]["params"]
        ddconfig = params["ddconfig"]
        attention = "linear" if ddconfig.get("use_linear_attn") else ddconfig.get("attn_type", "vanilla")
        resolution, sides = ddconfig["resolution"], list(ddconfig["attn_resolutions"])
        said: dict[str, Any] = {key: ddconfig[key] for key in ("ch", "num_res_blocks", "z_channels", "double_z")}
        said |= {"ch_mult": tuple(ddconfig["ch_mult"]), "embed_dim": params["embed_dim"]}
        said["n_embed"] = params.get("n_embed")
        unlike = [key for key in ("tanh_out", "give_pre_end") if ddconfig.get(key)]
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # numbers and dates can be wrong, too
        raise UserError(f"{path} cannot be read as YAML: {reason(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no configuration of CompVis's form (model: params: ddconfig): {error}") from error
    if unlike:
        raise UserError(f"{path}: diffusers' decoder has no {unlike[0]}")
    if attention not in ("vanilla", "vanilla-xformers", "none"):
        raise UserError(
            f"{path}: attn_type is {printable(attention)}; diffusers' blocks have vanilla attention or none"
        )
    if type(resolution) is not int or not 1 <= resolution <= _LARGEST_RESOLUTION:
        raise UserError(f"{path}: resolution must be a whole number from 1 to {_LARGEST_RESOLUTION}")
    if type(scale_factor) not in (int, float) or not 0 < scale_factor < float("inf"):
        raise UserError(f"{path}: scale_factor must be a number above 0")
    for key, value in said.items():  # before any of them is shown: a few lines of YAML can stand for gigabytes
        if not all(isinstance(item, int | None) for item in (value if isinstance(value, tuple) else [value])):
            raise UserError(f"{path}: {key} must be whole numbers")
    levels = range(len(network.ch_mult)) if attention != "none" else ()
    said["attention_levels"] = tuple(i for i in levels if resolution // 2**i in sides)
    said["middle_attention"] = attention != "none"
    for key, value in said.items():
        if value != (found := getattr(network, key)):
            raise UserError(f"{path} says {key} {printable(value)}, the weights {found}; is it another model's?")
    return LDMConfig(resolution=resolution, scale_factor=float(scale_factor))


def _build(state: dict[str, Tensor], network: LDMNetwork, name: str) -> Autoencoder:
    """The model with these weights in it; nothing is allocated before they are known to fit."""
    shape: dict[str, Any] = {
        "block_out_channels": tuple(network.ch * mult for mult in network.ch_mult),
        "layers_per_block": network.num_res_blocks,
        "latent_channels": network.z_channels,
        "attention_levels": network.attention_levels,
        "mid_block_add_attention": network.middle_attention,
    }
    model: Autoencoder
    with torch.device("meta"):
        if network.n_embed is None:
            model = KLAutoencoder(**shape)
        else:
            model = VQAutoencoder(quantizer=VQ(network.n_embed, network.embed_dim, legacy=True), **shape)
    converted = {key: value.float() for key, value in from_ldm_state_dict(state).items()}
    expected = model.net.state_dict()
    names = rename_keys([*expected, *converted], source=0)
    for key in sorted(expected.keys() | converted.keys()):
        if key not in converted or key not in expected:
            raise UserError(f"{name} has {'no' if key in expected else 'an unknown'} {names[key]}")
        if converted[key].shape != expected[key].shape:
            found, wanted = tuple(converted[key].shape), tuple(expected[key].shape)
            raise UserError(f"{name}: {names[key]} is {found} where the rest of the network wants {wanted}")
    model.net.load_state_dict(converted, assign=True)
    return model
