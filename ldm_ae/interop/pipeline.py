"""Exchange of the autoencoder in a diffusers pipeline folder.

The diffusion model of a pipeline was trained on the scaled latents of its autoencoder. It may get another decoder at
any time; another encoder gives it latents that it does not know, whatever their scale.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_ae.core.errors import UserError, printable
from ldm_ae.interop.diffusers import export_diffusers
from ldm_ae.io.files import require_json, require_new_folder, write_json, writing_folder
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.loading.places import SUBFOLDERS
from ldm_ae.models.scaling import describe_scaling, is_unscaled, set_scaling_of

INDEX = "model_index.json"
"""File of a pipeline folder that lists its parts and their classes."""
_WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")
_ROUNDINGS = (torch.float32, torch.float16, torch.bfloat16)
"""Types of weights in which a pipeline may hold an encoder that was trained further or compared in another."""


@dataclass(frozen=True, kw_only=True)
class PipelineExport:
    """The result of an exchange."""

    path: Path
    """The new pipeline folder."""
    part: str
    """The name of the autoencoder's folder in it, such as `vae`."""
    class_name: str
    """The class of the pipeline."""
    scale: str
    """One line on the scale of the latents in the new pipeline."""
    notes: tuple[str, ...]
    """What differs from the pipeline's earlier autoencoder."""


def export_into_pipeline(
    model: Autoencoder,
    pipeline: str | Path,
    out: str | Path,
    *,
    weights: torch.dtype = torch.float32,
    other_latents: bool = False,
) -> PipelineExport:
    """Write a copy of a pipeline folder in which the model is the autoencoder; it appears in one rename.

    A model with the encoder of the pipeline's autoencoder gets its scale, whatever the model's own is: the diffusion
    model expects latents scaled as before.

    Args:
        model: The model; it is not changed.
        pipeline: A pipeline folder with `model_index.json` and its parts, which is not changed.
        out: The new folder.
        weights: Dtype of the autoencoder's weights.
        other_latents: Accept a model with another encoder, whose latents the diffusion model was not trained on; it
            keeps its own scale.

    Raises:
        UserError: There is no such pipeline, it has no autoencoder, the model's latents do not fit, or `out` exists.
    """
    source, target = Path(pipeline), Path(out)
    index, part = read_pipeline(source)
    require_new_folder(target, "the pipeline")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} is inside the pipeline {source}; give a folder beside it")
    before = load_autoencoder(source / part)
    model = copy.deepcopy(model).float()
    class_name = _require_same_form(before, model, source)
    notes = list[str]()
    same = _same_encoder(before, model)
    if not same and not other_latents:
        raise UserError(
            f"the encoder of the model differs from that of {source / part}: the diffusion model was trained on other "
            "latents and would give wrong images. Train the decoder alone, or add --other-latents"
        )
    old, new = describe_scaling(before.latent_spec), describe_scaling(model.latent_spec)
    if same:
        set_scaling_of(model, before.latent_spec)
        scale = f"the encoder is the pipeline's, and its {old} is kept"
        scale += "" if old == new else f" in place of the model's {new}"
    else:
        notes.append(f"the encoder is not that of {source / part}: the diffusion model was trained on other latents")
        scale = f"the model keeps its own {new}; the pipeline's was {old}"
        if is_unscaled(model.latent_spec) and not is_unscaled(before.latent_spec):
            notes.append(f"the model has no scale of its own; {old} of the pipeline is not carried over")
    if (earlier := type(before.net).__name__) != class_name:
        notes.append(f"the class of {part} was {earlier} and is {class_name}")
        index[part] = ["diffusers", class_name]
    _keep_upcast(before, model)
    skipped = _write(model, source, target, index, part, weights=weights)
    if skipped:
        notes.append(f"not copied, because they may hold the earlier autoencoder: {', '.join(skipped)}")
    return PipelineExport(
        path=target, part=part, class_name=str(index["_class_name"]), scale=scale, notes=tuple(notes)
    )  # fmt: skip


def read_pipeline(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a pipeline's `model_index.json`, and the name of the part that is its autoencoder.

    Raises:
        UserError: There is no such pipeline, it is damaged, or it has no autoencoder.
    """
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{folder} is not a pipeline folder of diffusers: expected {INDEX} in it")
    index = require_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path} is not the index of a pipeline: it has no _class_name")
    if bad := [name for name in index if not name.startswith("_") and name != Path(name).name]:
        raise UserError(f"{path} names a part '{printable(bad[0])}'; expected the name of a folder")
    parts = [name for name in SUBFOLDERS if name in index and (folder / name / "config.json").is_file()]
    if not parts:
        raise UserError(f"{folder} has no autoencoder: expected a part {' or '.join(SUBFOLDERS[1:])} with config.json")
    return index, parts[0]


def _require_same_form(before: Autoencoder, model: Autoencoder, source: Path) -> str:
    """Return the model's class, or raise UserError where the pipeline cannot work with latents of the model's shape."""
    import diffusers

    class_name = type(model.net).__name__
    if not hasattr(diffusers, class_name):
        raise UserError(f"diffusers has no class {class_name}, so that {source} cannot hold it as its autoencoder")
    old, new = before.latent_spec, model.latent_spec
    for words, was, now in (
        ("the images", before.pixel_spec, model.pixel_spec),
        ("latent channels", old.channels, new.channels),
        ("the downsample factor", old.downsample_factor, new.downsample_factor),
        ("latents packed in squares of side", old.patch_size, new.patch_size),
        ("the number of codes", old.codebook_size, new.codebook_size),
        ("the side of images", old.image_size, new.image_size),
    ):
        if was != now:
            raise UserError(f"the model ({class_name}) does not fit {source}: {words}: expected {was} as in its "
                            f"{type(before.net).__name__}, got {now}")  # fmt: skip
    return class_name


def _same_encoder(before: Autoencoder, model: Autoencoder) -> bool:
    """Return whether both give the same latents, but for the rounding of one of them to half precision."""
    old, new = before.encoder_parameters(), model.encoder_parameters()
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        return False
    return any(all(torch.equal(old[name].to(dtype), new[name].to(dtype)) for name in old) for dtype in _ROUNDINGS)


def _keep_upcast(before: Autoencoder, model: Autoencoder) -> None:
    """Keep the pipeline's instruction that its autoencoder overflows in fp16."""
    if before.net.config.get("force_upcast") and model.net.config.get("force_upcast") is False:
        model.net.register_to_config(force_upcast=True)


def _write(
    model: Autoencoder, source: Path, target: Path, index: dict[str, Any], part: str, *, weights: torch.dtype
) -> list[str]:
    """Write the pipeline; return the names of files that were not copied."""
    others = [name for name in index if not name.startswith("_") and name != part and (source / name).is_dir()]
    files = sorted(path for path in source.iterdir() if path.is_file() and path.name[0] != "." and path.name != INDEX)
    plain = [path for path in files if not path.name.lower().endswith(_WEIGHTS)]
    copied = [path for name in others for path in (source / name).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in copied) + sum(
        tensor.nbytes for tensor in model.net.state_dict().values()
    )
    with writing_folder(target.absolute(), size=size) as folder:
        for name in others:
            shutil.copytree(source / name, folder / name, copy_function=shutil.copyfile)
        for path in plain:
            shutil.copyfile(path, folder / path.name)
        write_json(folder / INDEX, index)
        export_diffusers(model, folder / part, weights=weights)
    return [path.name for path in files if path not in plain]
