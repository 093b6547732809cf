"""The model folder that `ldm-ae push` uploads: export, scores, pictures and card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_ae.commands._inputs import choose_precision, square_inputs
from ldm_ae.commands._push_scores import measured_from, read_metrics, require_same_model
from ldm_ae.commands.export import measure_on_images
from ldm_ae.core.environment import ENVIRONMENT
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import DTYPES
from ldm_ae.core.shipped import is_shipped_name
from ldm_ae.core.terminal import progress_bar
from ldm_ae.data import EvaluationLoader
from ldm_ae.evaluation import Evaluation, Picture, comparison_grid, evaluate, legible, named_metrics
from ldm_ae.evaluation.report.pictures import ERROR_GAIN
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.report.write import metrics
from ldm_ae.images.uint8 import from_levels
from ldm_ae.interop import export_diffusers
from ldm_ae.interop.card import Card, Measured, Trained, write_card
from ldm_ae.interop.card.recipe import hub_dataset, hub_model, public_name, without_private_paths
from ldm_ae.interop.scaling import plan_scaling, scaling_line
from ldm_ae.io.files import read_json
from ldm_ae.io.hub_names import PREFIX
from ldm_ae.io.manifests import problems
from ldm_ae.models import load_autoencoder
from ldm_ae.models.loading.checkpoints import CHECKPOINTS, all_checkpoints
from ldm_ae.models.loading.places import local_place
from ldm_ae.training.changes import CONFIG, saved_config
from ldm_ae.training.checkpoints.state import read_state
from ldm_ae.training.configuration.keys import PHASES
from ldm_ae.training.configuration.phases import each_phase, settings

PICTURE_SIDE = 256
"""Side in pixels of the central crop that the card shows of larger images."""


def write_model_and_card(args: argparse.Namespace, folder: Path) -> list[str]:
    """Write everything into `folder`, which is absent or empty, and return notes for the user.

    Raises:
        UserError: The model, the images or the evaluation do not exist or do not fit.
    """
    found = None if args.evaluation is None else read_metrics(args.evaluation)
    source = local_place(args.model)
    trained, base = _trained(source, args.model)
    scale_images, notes = _export(args, folder)
    args = argparse.Namespace(**{**vars(args), "model": str(folder), "config": None})
    model = load_autoencoder(folder)
    if found is not None:
        require_same_model(model, found, args.evaluation)
    pictures: list[Picture] = []
    if args.images is not None and (found is None or args.pictures):
        choose_precision(args)
        evaluation = _evaluate(args, only_pictures=found is not None)
        pictures = evaluation.first
        if found is None:
            print("\n".join(summary_lines(evaluation)))
            found = metrics(evaluation)
    measured: Measured | None = None if found is None else measured_from(found)
    notes += _notes(args, measured)
    card = Card(
        repository=args.repository, model=model, licence=args.license, base_model=base, trained=trained,
        measured=measured, pictures=len(pictures), pictured=public_name(args.images or ""), error_gain=ERROR_GAIN,
        scale_images=scale_images, weights=args.weights,
    )  # fmt: skip
    write_card(card, folder, pictures=_grid(pictures))
    return notes


def _export(args: argparse.Namespace, folder: Path) -> tuple[int | None, list[str]]:
    """Export the model, and return the number of images on which its scale was measured, and notes."""
    model = load_autoencoder(args.model, config=args.config)
    plan = plan_scaling(model, args.scaling, per_channel=args.per_channel, images=args.images is not None)
    statistics, images = None, None
    if plan.measure:
        choose_precision(args)
        statistics, _, account = measure_on_images(args)
        images = account.images
        print(scaling_line(model.latent_spec, statistics, args.images, per_channel=args.per_channel))
    export_diffusers(model, folder, scaling=statistics, per_channel=args.per_channel, weights=DTYPES[args.weights])
    return images, plan.notes


def _evaluate(args: argparse.Namespace, *, only_pictures: bool) -> Evaluation:
    """Evaluate the exported model, or only reconstruct the images that the card shows."""
    model, source, transform = square_inputs(args)
    count = min(args.pictures if only_pictures else args.limit or len(source), len(source))
    loader = EvaluationLoader(
        source, transform, batch_size=args.batch_size, workers=args.workers, max_bad_fraction=args.max_bad_fraction,
        indices=range(count),
    )  # fmt: skip
    with progress_bar("evaluating", count) as progress:
        return evaluate(
            model, loader, source=args.images, transform_description=transform.describe(), model_name=args.repository,
            metrics=[] if only_pictures else named_metrics(), precision=args.precision, device=args.device,
            pictures=args.pictures, progress=lambda done: progress(done, count),
        )  # fmt: skip


def _grid(pictures: list[Picture]) -> Image.Image | None:
    """Draw original, reconstruction and error of each image, cut to their common size."""
    if not pictures:
        return None
    side = min(PICTURE_SIDE, *(min(picture.original.shape[-2:]) for picture in pictures))
    pairs = ((_center(picture.original, side), _center(picture.reconstruction, side)) for picture in pictures)
    originals, reconstructions = (from_levels(torch.stack(images)) for images in zip(*pairs, strict=True))
    return comparison_grid(legible(originals), legible(reconstructions), columns=len(pictures), errors=True)


def _center(image: torch.Tensor, side: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def _trained(folder: Path, name: str) -> tuple[Trained | None, str | None]:
    """Return the run that a model folder belongs to, and the model that it starts from."""
    run, checkpoint = _run_of(folder.resolve())
    config = None if run is None else saved_config(run)
    if run is None or not config:
        base = hub_model(name) if str(name).startswith(PREFIX) or not Path(name).exists() else None
        return None, name if is_shipped_name(name) and not Path(name).exists() else base
    if checkpoint is None:
        checkpoint = next((path for path in reversed(all_checkpoints(run / CHECKPOINTS)) if not problems(path)), None)
    state: dict[str, Any] = {} if checkpoint is None else read_state(checkpoint)
    arguments = _part(_part(config, "model"), "init_args")
    pretrained = arguments.get("pretrained")
    images = str(_part(each_phase(config)[0], "data").get("train", ""))
    clean, removed = without_private_paths(config)
    trained = Trained(
        config=clean, removed=removed, phases=[*map(settings, clean.get(PHASES) or [])],
        source=public_name(images), dataset=hub_dataset(images), step=state.get("step"),
        identity=state.get("identity", {}), environment=_environment(run),
    )  # fmt: skip
    shipped = pretrained if isinstance(pretrained, str) and is_shipped_name(pretrained) else None
    return trained, shipped or hub_model(pretrained, local=config.get("out"))


def _run_of(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the run that holds a model folder, and the checkpoint if it is one's."""
    for run, checkpoint in ((folder.parent, None), (folder.parents[2], folder.parent)) if len(folder.parts) > 3 else ():
        if (run / CONFIG).is_file() and (run / CHECKPOINTS).is_dir():
            return run, checkpoint
    return None, None


def _part(tree: Any, name: str) -> dict[str, Any]:
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _environment(run: Path) -> dict[str, Any]:
    path = run / ENVIRONMENT
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy, or remove it") from error
    return found if isinstance(found, dict) else {}


def _notes(args: argparse.Namespace, measured: Measured | None) -> list[str]:
    """Return what the card lacks, and how to add it."""
    notes = []
    if measured is None:
        notes.append("the card has no scores and no pictures; --images IMAGES adds both, --evaluation DIR the scores")
    elif args.images is None:
        notes.append("the card has no pictures; --images IMAGES adds them")
    if args.license is None:
        notes.append("the card has no licence; --license ID adds it")
    return notes
