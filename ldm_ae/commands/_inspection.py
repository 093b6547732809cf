"""Describe what a path holds (a model, pipeline, checkpoint, run, latent store or prior) and whether it is valid."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm_ae.core.errors import UserError
from ldm_ae.data.sources.interface import IMAGE_EXTENSIONS
from ldm_ae.evaluation.metrics.codebook import CodebookUsage
from ldm_ae.images.pixels import RGB
from ldm_ae.interop.pipeline import INDEX
from ldm_ae.io.files import require_json
from ldm_ae.io.hub_names import PREFIX
from ldm_ae.io.locks import holder
from ldm_ae.io.manifests import MANIFEST, problems, state_of
from ldm_ae.io.weight_files import is_safetensors_file
from ldm_ae.latents import LatentStore, inspect_store
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.models.loading.checkpoints import CHECKPOINTS, all_checkpoints
from ldm_ae.models.loading.places import find_path, local_place, suggestion
from ldm_ae.models.loading.single_file import build_autoencoder, open_single_file
from ldm_ae.models.scaling import describe_state
from ldm_ae.priors import load_prior
from ldm_ae.priors.folder import WEIGHTS as PRIOR_WEIGHTS
from ldm_ae.training import TrainingConfig
from ldm_ae.training.averages.profiles import reachable
from ldm_ae.training.averages.snapshots import AVERAGES, stored_snapshots
from ldm_ae.training.changes import saved_config
from ldm_ae.training.checkpoints.state import FIRST_STEP, PHASE, read_state
from ldm_ae.training.phases import FOLDER as PHASES

_KINDS = (
    "a model folder, a pipeline, a single .safetensors file of weights, a run, a checkpoint of a run, a latent store, "
    "or a prior over codes"
)
_WEIGHTS = "a file of weights that are not safetensors, which ldm-ae import reads into a model folder"
_IMAGES = "a file of images, which evaluate, encode and reconstruct read"
_KINDS_OF_FILES = {
    "yaml": "a configuration, which ldm-ae train --config reads", "yml": "a configuration, which ldm-ae train --config "
    "reads", "safetensors": "a damaged file of weights",
    "ckpt": _WEIGHTS, "pth": _WEIGHTS, "pt": _WEIGHTS, "bin": _WEIGHTS,
    "tar": _IMAGES, "parquet": "a Parquet file, which evaluate, encode and reconstruct read if it holds images",
    "json": "a JSON file, which may be part of a folder that inspect reads",
    "zip": "an archive; if it holds EDM2's latents, ldm-ae convert --format store reads it",
}  # fmt: skip
"""Descriptions of files, by extension."""


def inspect_path(
    path: str | Path, *, config: str | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return a description as JSON values: `kind` names the content, `problems` lists its faults, a line each.

    Args:
        path: Path to describe.
        config: For a single file: values of its configuration that precede the inferred ones.
        progress: Called with the number of completed checks of a store's files and their total.

    Raises:
        UserError: The path does not exist, is a file of another kind, or is none of these kinds.
    """
    path = local_place(path) if str(path).startswith(PREFIX) else find_path(path)
    if not path.exists():
        raise UserError(f"no such path: {path}{suggestion(path)}")
    if is_safetensors_file(path):
        return inspect_file(path, config)
    if config is not None:
        raise UserError(f"--config has no effect on {path}, which is not a single file of weights; remove it")
    if not path.is_dir():
        raise UserError(f"{path} is {seems_to_be(path)}; inspect reads {_KINDS}")
    if (path / "checkpoints").is_dir() or (path / "environment.json").is_file():
        return inspect_run(path)
    if (path / MANIFEST).is_file() or path.name.startswith("step-"):
        return inspect_checkpoint(path)
    if (path / PRIOR_WEIGHTS).is_file():
        return inspect_prior(path)
    if (path / "config.json").is_file():
        return inspect_model(path)
    if (path / INDEX).is_file():
        return inspect_pipeline(path)
    found = inspect_store(path, progress=progress)
    if found.get("indices") and not found["problems"]:
        found |= {"codebook": inspect_codes(LatentStore(path)), "problems": found.pop("problems")}
    return found


def seems_to_be(path: Path) -> str:
    """Return what a file seems to be by its name, and the command that takes such a file where there is one."""
    ending, image = path.suffix.lower().removeprefix("."), "an image, which evaluate, encode and reconstruct read"
    kinds = dict.fromkeys(IMAGE_EXTENSIONS, image) | _KINDS_OF_FILES
    return "not a file or folder" if not path.is_file() else kinds.get(ending, "a file")


def inspect_codes(store: LatentStore) -> dict[str, Any]:
    """Count which codes the images of a store with indices use, excluding mirrored images; each list is by level, or by
    map of a hierarchical model.

    Few places (`counted`) make a large codebook look small: their bits cannot exceed log2 of their number.
    """
    spec = store.spec
    assert spec.codebook_size is not None, "a store with indices has a codebook"
    levels = spec.codebook_maps or spec.codebook_levels or 1
    found: dict[str, Any] = {"size": spec.codebook_size, "levels": levels}
    usage = CodebookUsage(spec.codebook_size, spec.codebook_maps)
    for indices in store.indices():
        usage.update(indices, pixels=indices.shape[-2] * indices.shape[-1] * spec.downsample_factor**2)
    summary = usage.summary()
    if summary is None:
        return found
    return found | {
        "counted": summary.counted,
        "used": summary.used.tolist(),
        "perplexity": summary.entropies.exp2().tolist(),
        "bits_per_code": summary.entropies.tolist(),
        "fixed_bits_per_code": math.log2(spec.codebook_size),
    }


def inspect_model(path: Path) -> dict[str, Any]:
    """Describe a diffusers model folder."""
    found: dict[str, Any] = {"kind": "model", "path": str(path)}
    try:
        model = load_autoencoder(path)
    except UserError as error:
        return found | {"problems": [str(error)]}
    return found | _described(model)


def inspect_file(path: Path, config: str | None = None) -> dict[str, Any]:
    """Describe a single file of weights, with what was inferred and assumed."""
    found: dict[str, Any] = {"kind": "single file", "path": str(path)}
    try:
        file = open_single_file(path, config=config, pickled=False)
        model = build_autoencoder(file)
    except UserError as error:
        return found | {"problems": [str(error)]}
    described = _described(model) | {"scale": file.scale.source}
    inference = file.inference
    words = {"layout": file.layout.keys, "inferred": inference.description}
    words |= {"assumed": inference.assumed} if inference.assumed else {}
    return found | words | described


def _described(model: Autoencoder) -> dict[str, Any]:
    spec = model.latent_spec
    bad = [name for name, tensor in model.net.state_dict().items() if not tensor.isfinite().all()]
    return {
        "class": type(model.net).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "latent_channels": spec.channels,
        "downsample_factor": spec.downsample_factor,
        "scaling_factor": spec.scaling_factor,
        **({"shift_factor": spec.shift_factor} if spec.shift_factor else {}),
        **({} if spec.latents_std is None else {"latents_mean": spec.latents_mean, "latents_std": spec.latents_std}),
        **({} if spec.codebook_maps is None else {"maps_of_codes": spec.codebook_maps}),
        **({} if spec.patch_size == 1 else {"patch_size": spec.patch_size}),
        **({} if model.pixel_spec == RGB else {"images": str(model.pixel_spec)}),
        **({} if spec.image_size is None else {"image_size": spec.image_size}),
        **({} if (likelihood := model.likelihood) is None else {"likelihood": likelihood.words}),
        "scale": describe_state(model),
        "sample_size": model.sample_size,
        "problems": [f"{name} has values that are not finite" for name in bad],
    }


def inspect_pipeline(path: Path) -> dict[str, Any]:
    """Describe the autoencoder of a pipeline folder of diffusers."""
    found: dict[str, Any] = {"kind": "pipeline", "path": str(path)}
    try:
        index, folder = require_json(path / INDEX), local_place(path)
    except UserError as error:
        return found | {"problems": [str(error)]}
    found["class"] = index.get("_class_name") if isinstance(index, dict) else None
    model = inspect_model(folder)
    wrong = model.pop("problems")
    return found | {"autoencoder": {k: v for k, v in model.items() if k != "kind"}, "problems": wrong}


def inspect_prior(path: Path) -> dict[str, Any]:
    """Describe a prior over codes."""
    found: dict[str, Any] = {"kind": "prior", "path": str(path)}
    try:
        prior, model_hash, _ = load_prior(path)
    except UserError as error:
        return found | {"problems": [str(error)]}
    bad = [name for name, tensor in prior.state_dict().items() if not tensor.isfinite().all()]
    return found | {
        "class": type(prior).__name__,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        **prior.init_args,
        "model_hash": model_hash,
        "problems": [f"{name} has values that are not finite" for name in bad],
    }


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Describe one checkpoint of a run."""
    wrong = problems(path)
    found: dict[str, Any] = {"kind": "checkpoint", "path": str(path), "state": state_of(wrong), "problems": wrong}
    return found if wrong else found | _progress(path, path.absolute().parents[1])


def _progress(checkpoint: Path, run: Path) -> dict[str, Any]:
    state = read_state(checkpoint)
    phase = {"phase": state[PHASE], "step_of_phase": state["step"] - state.get(FIRST_STEP, 0)} if PHASE in state else {}
    return {
        "step": state["step"], **phase, "samples_seen": state["position"],
        "best": None if state["best"] is None else best_validation(state["best"], run), "identity": state["identity"],
    }  # fmt: skip


def best_validation(best: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return step, metric and value of the best validation. Older checkpoints record the score's rank alone: of these
    the run's configuration names the metric, and a metric of which lower is better has negative ranks."""
    if "metric" in best:
        return {"step": best["step"], "metric": best["metric"], "value": best["value"]}
    metric = ((saved_config(run) or {}).get("training") or {}).get("best_metric", TrainingConfig.best_metric)
    return {"step": best["step"], "metric": metric, "value": abs(best["score"])}


def inspect_averages(run: Path) -> tuple[dict[str, Any], list[str]]:
    """Describe the stored averages of a run, and list the invalid snapshots; hashes are compared on export."""
    stored = stored_snapshots(run)
    steps = [snapshot.step for snapshot in stored.snapshots]
    shortest, longest = reachable(steps, stored.snapshots[-1].lengths, steps[-1])
    found = {
        "snapshots": len(steps), "newest_step": steps[-1], "lengths": list(stored.snapshots[-1].lengths),
        "export --ema": f"{shortest:.3f} to {longest:.3f}",
    }  # fmt: skip
    return found, [f"averages: {place.name}: {why}" for place, why in stored.invalid.items()]


def inspect_run(path: Path) -> dict[str, Any]:
    """Describe a run directory: which checkpoints are valid, incomplete or damaged, and why."""
    folder = path / CHECKPOINTS
    all_problems = {checkpoint.name: problems(checkpoint) for checkpoint in all_checkpoints(folder)}
    newest = max((name for name, reasons in all_problems.items() if not reasons), default=None)
    states = {
        name: state_of(reasons) + (f": {reasons[0]}" if reasons else "") for name, reasons in all_problems.items()
    }
    wrong = [f"{name} is {states[name]}" for name, reasons in all_problems.items() if reasons]
    if newest is None:
        wrong.append("no checkpoint is valid")
    found: dict[str, Any] = {"kind": "run", "path": str(path), "in_use_by": holder(path), "checkpoints": states}
    if found["in_use_by"] is None and (unfinished := sorted(item.name for item in folder.glob(".step-*.tmp"))):
        found["unfinished"] = unfinished
    if newest is not None:
        found |= _progress(folder / newest, path)
    if models := sorted((path / PHASES).glob("[0-9]*"), key=lambda model: int(model.name)):
        found["models_of_phases"] = [str(model) for model in models]
    if any((path / AVERAGES).rglob("step-*")):
        averages, invalid = inspect_averages(path)
        found["averages"] = averages
        wrong += invalid
    if (path / "pipeline" / INDEX).is_file():
        found["pipeline"] = str(path / "pipeline")
    if (path / "model" / "config.json").is_file():
        model = inspect_model(path / "model")
        wrong += [f"model: {problem}" for problem in model["problems"]]
        found["model"] = {k: v for k, v in model.items() if k not in ("kind", "path", "problems")}
    return found | {"problems": wrong}
