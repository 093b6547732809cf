"""Import of single files of autoencoders, including pickled ones of CompVis and taming, into diffusers folders.

The network follows from the shapes of the weights (`ldm_ae.models.loading.single_file`). For KL and VQ autoencoders the
side in pixels of the training images does not; CompVis's YAML states it as `resolution`. That file is optional, and its
description of the network must agree with the weights.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.interop.diffusers import export_diffusers
from ldm_ae.models.loading.scales import Scale, check_family, scale_of_family
from ldm_ae.models.loading.shapes import LDMNetwork
from ldm_ae.models.loading.single_file import SingleFile, build_autoencoder, open_single_file
from ldm_ae.models.scaling import SCALE

RESOLUTION = 256
"""Side in pixels of every first stage that LDM and taming published, used where no configuration states it."""
_LARGEST_RESOLUTION = 2**16


@dataclass(frozen=True, kw_only=True)
class LDMConfig:
    """Values in CompVis's YAML that do not describe the network."""

    resolution: int = RESOLUTION
    scale_factor: float | None = None
    """Scale factor of the latent diffusion model; None where the file describes a first stage."""
    scale_by_std: bool = False
    """Whether the scale was measured in training and is a tensor of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import."""

    path: Path
    file: SingleFile
    """The opened checkpoint; `file.network` is inferred from the shapes."""
    scale: Scale
    """Scale written as `scaling_factor`, and as `shift_factor` where there is one."""
    notes: tuple[str, ...]
    """Notes on assumptions, and on values preferred over contradicting ones."""

    @property
    def network(self) -> LDMNetwork | None:
        """The network inferred from the shapes of the weights; None for classes that CompVis's code does not have."""
        return self.file.network

    @property
    def excluded(self) -> int:
        """Number of tensors that belong to the loss, to averages, or to other parts of a latent diffusion model."""
        return self.file.excluded


def import_ldm(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    family: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Convert a file of weights to a diffusers folder with equal outputs, in float32.

    A VQ becomes a `diffusers.VQModel`. CompVis and taming weighted the codebook term with beta where the paper weights
    the commitment; its config.json records that as `legacy_beta`, and further training weights it the same way.
    taming's Gumbel quantizer becomes a `QuantizedAutoencoder` that chooses the most likely code where taming draws one.

    Args:
        checkpoint: A safetensors file, or a PyTorch checkpoint of which only tensors are unpickled; it holds a first
            stage or a whole latent diffusion model, whose first stage is used.
        out: The folder.
        config: CompVis's YAML of either; or a configuration in diffusers' form, a JSON file or a model folder, whose
            values take precedence over inferred ones.
        family: `sd`, `sdxl`, `sd3` or `flux`, whose published scale applies where the file does not state one.
        overwrite: Replace an earlier import at `out`.

    Raises:
        UserError: no such file, weights of another kind of network, a configuration that does not agree with them, a
            family that contradicts the file or has another number of channels, or `out` holds other files or cannot be
            written.
    """
    compvis = config is not None and Path(config).suffix.lower() in (".yaml", ".yml")
    file = open_single_file(checkpoint, config=None if compvis else config)
    if file.network is None:
        return _import_other(file, out, compvis=compvis, family=family, overwrite=overwrite)
    said = read_ldm_config(config, file.network) if config is not None and compvis else LDMConfig()
    scale, notes = _scale(file, file.network, said, str(config) if compvis else None, family)
    file = dataclasses.replace(file, inference=dataclasses.replace(file.inference, scale=scale))
    model = build_autoencoder(file)
    if not compvis and "sample_size" not in file.given.values:
        notes.append(f"sample_size is assumed to be {RESOLUTION}; --config FILE reads it from the configuration")
        model.set_sample_size(RESOLUTION)
    if not compvis:
        notes.append("tanh_out (the decoder ends in tanh) is assumed to be false; only the configuration has it")
    if file.class_name == "QuantizedAutoencoder":
        notes.append("codes are the most likely ones; taming's GumbelVQ draws them with noise, also in evaluation")
    if compvis:
        model.set_sample_size(said.resolution)
    return Imported(path=export_diffusers(model, out, overwrite=overwrite), file=file, scale=scale, notes=tuple(notes))


def _import_other(file: SingleFile, out: str | Path, *, compvis: bool, family: str | None, overwrite: bool) -> Imported:
    """Convert a file of a class that CompVis's code does not have, or with a complete configuration."""
    if family is not None and file.given.class_name is not None:
        raise UserError(f"--family and the configuration {file.given.name}, which has a scale, exclude each other; "
                        "remove one of them")  # fmt: skip
    for option, given in (("--family", family is not None), ("a YAML file as --config", compvis)):
        if given:
            raise UserError(f"{option} describes KL and VQ autoencoders, but {file.path} holds a {file.class_name}; "
                            "remove it")  # fmt: skip
    path = export_diffusers(build_autoencoder(file), out, overwrite=overwrite)
    return Imported(path=path, file=file, scale=file.scale, notes=())


def _scale(
    file: SingleFile, network: LDMNetwork, said: LDMConfig, config: str | None, family: str | None
) -> tuple[Scale, list[str]]:
    """Return the scale of the latents and notes. A tensor of the file precedes configuration, family and convention."""
    scale, notes = file.scale, list[str]()
    if scale.in_file:
        if said.scale_factor not in (None, 1.0, scale.factor) and not said.scale_by_std:
            notes.append(f"scaling_factor is the checkpoint's {scale.factor:.6g}, not the configuration's "
                         f"{said.scale_factor:.6g}")  # fmt: skip
    elif said.scale_by_std:
        notes.append("scale_by_std: the factor was measured in training, but the checkpoint lacks it")
    elif said.scale_factor is not None:
        scale = Scale(factor=said.scale_factor, shift=None, source=f"scale_factor of {config}")
    if family is not None:
        wanted = scale_of_family(family)
        firm = scale.in_file or said.scale_factor is not None or bool(file.given.values.keys() & set(SCALE))
        if firm and abs(wanted.factor - scale.factor) > 1e-4 * scale.factor:
            raise UserError(
                f"--family {family} has the scale {wanted.factor}, but {scale.source} is {scale.factor:.6g}; "
                "remove one of them"
            )
        if wanted.shift is not None and network.n_embed is not None:
            raise UserError(f"--family {family} has a shift, which a VQ model cannot have")
        notes += check_family(family, network)
        scale = wanted
    if not scale.known:
        notes.append(f"scaling_factor is 1: {scale.source}; name the model that it belongs to with --family")
    return scale, notes


def read_ldm_config(path: str | Path, network: LDMNetwork) -> LDMConfig:
    """Read CompVis's YAML of a first stage, or of a latent diffusion model with one.

    Raises:
        UserError: no such file, another format, or a network that differs from that of the weights.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        params = content["model"]["params"]
        scale_factor, scale_by_std = None, False
        if "first_stage_config" in params:
            scale_factor, scale_by_std = params.get("scale_factor", 1.0), params.get("scale_by_std", False) is True
            params = params["first_stage_config"]["params"]
        ddconfig = params["ddconfig"]
        attention = "linear" if ddconfig.get("use_linear_attn") else ddconfig.get("attn_type", "vanilla")
        resolution, sides = ddconfig["resolution"], list(ddconfig["attn_resolutions"])
        said: dict[str, Any] = {key: ddconfig[key] for key in ("ch", "num_res_blocks", "z_channels")}
        said |= {"double_z": ddconfig.get("double_z", True), "ch_mult": tuple(ddconfig["ch_mult"])}
        said |= {"embed_dim": params["embed_dim"], "n_embed": params.get("n_embed")}
        attends = attention != "none"  # no part has self-attention, for any value of the other keys
        unlike = [key for key in ("tanh_out", "give_pre_end") if ddconfig.get(key)]
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # numbers and dates can be invalid, too
        raise UserError(f"{path} cannot be read as YAML: {reason(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a configuration of CompVis's form (model: params: ddconfig): {error}"
        ) from error
    if attention not in ("vanilla", "vanilla-xformers", "none"):
        raise UserError(
            f"{path}: attn_type is {printable(attention)}; diffusers' blocks have vanilla attention or none"
        )
    if unlike:
        raise UserError(
            f"{path} has {unlike[0]}: true, which diffusers' decoder does not have; its reconstructions would be wrong"
        )
    if type(resolution) is not int or not 1 <= resolution <= _LARGEST_RESOLUTION:
        raise UserError(f"{path}: resolution must be a whole number from 1 to {_LARGEST_RESOLUTION}")
    if scale_factor is not None and (type(scale_factor) not in (int, float) or not 0 < scale_factor < float("inf")):
        raise UserError(f"{path}: scale_factor must be a number above 0")
    for key, value in said.items():  # before any value is shown: a few lines of YAML can expand to gigabytes
        if not all(isinstance(item, int | None) for item in (value if isinstance(value, tuple) else [value])):
            raise UserError(f"{path}: {key} must be whole numbers")
    levels = range(len(network.ch_mult))
    said["attention_levels"] = tuple(i for i in levels if attends and resolution // 2**i in sides)
    said["middle_attention"] = attends
    for key, value in said.items():
        if value != (found := getattr(network, key)):
            raise UserError(
                f"{path} has {key} {printable(value)}, the weights have {found}; give the configuration of this model"
            )
    return LDMConfig(
        resolution=resolution, scale_factor=None if scale_factor is None else float(scale_factor),
        scale_by_std=scale_by_std,
    )  # fmt: skip
