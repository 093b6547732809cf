"""The finished result of one model as a folder, which a later run of the same comparison reads.

result.json       the key of the result, and the scores of the images in pictures/; written with the rest at once
metrics.json      what `ldm-ae evaluate` writes
report.html       likewise
pictures/00.png   the reconstruction of the first image, and so on
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_ae.comparison.result import ModelResult, Shown
from ldm_ae.core.errors import UserError, reason
from ldm_ae.evaluation import Evaluation, ScoreInfo, write_report
from ldm_ae.evaluation.scoring import BASELINE_PREFIX, own_scores
from ldm_ae.evaluation.warnings import ModelWarning
from ldm_ae.images.in_memory import image_levels, levels_image
from ldm_ae.io.files import read_json, write_json, writing_folder
from ldm_ae.models.identity import hash_json

RESULT = "result.json"
VERSION = 2
_MOST_OF_NAME = 60
_AGAIN = "remove its folder to compute the result again"


def result_folder(models: Path, name: str, key: dict[str, Any]) -> Path:
    """Return the folder of a model's result: NAME-HASH, the hash being that of its key."""
    plain = re.sub(r"[^\w.@+-]+", "-", name, flags=re.ASCII).strip("-.")[:_MOST_OF_NAME] or "model"
    return models / f"{plain}-{hash_json(key)[:12]}"


def find_result(models: Path, name: str, key: dict[str, Any]) -> Path | None:
    """Return the folder of a finished result with this key, under any name; None if there is none."""
    expected = result_folder(models, name, key)
    others = sorted(models.glob(f"*-{hash_json(key)[:12]}")) if models.is_dir() else []
    return next((folder for folder in [expected, *others] if _is_finished(folder, key)), None)


def write_result(folder: Path, evaluation: Evaluation, key: dict[str, Any]) -> None:
    """Write a model's result, all of it or nothing.

    Raises:
        UserError: The folder cannot be written to.
        RunError: The disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing_folder(folder) as temporary:
        write_report(evaluation, temporary)
        shown = [Shown(key=p.row.key, image=p.reconstruction, scores=p.row.scores) for p in evaluation.first]
        write_key(temporary, key, write_pictures(temporary, shown))


def write_pictures(folder: Path, pictures: Sequence[Shown]) -> list[dict[str, Any]]:
    """Write images into pictures/, and return their keys and scores for `write_key`."""
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pictures):
        levels_image(picture.image).save(_picture(folder, number))
    return [{"key": picture.key, "scores": dict(picture.scores)} for picture in pictures]


def write_key(folder: Path, key: Mapping[str, Any], pictures: list[dict[str, Any]]) -> None:
    """Write result.json, by which `find_result` finds the folder."""
    write_json(folder / RESULT, {"version": VERSION, "key": key, "pictures": pictures})


def read_pictures(folder: Path) -> list[Shown]:
    """Return the images of pictures/, with their keys and scores, without those of thumbnails.

    Raises:
        UserError: A file is damaged.
    """
    with damage_is_named(folder / RESULT) as path:
        return [
            Shown(key=row["key"], image=_levels(_picture(folder, number)), scores=own_scores(row["scores"]))
            for number, row in enumerate(read_json(path)["pictures"])
        ]


def infos_of_json(content: Mapping[str, Mapping[str, Any]]) -> dict[str, ScoreInfo]:
    """Return the explanations of scores by key from `score_infos` of a metrics.json."""
    known = {entry.name for entry in fields(ScoreInfo)}
    return {
        key: ScoreInfo(**{option: value for option, value in info.items() if option in known})
        for key, info in content.items()
    }


def warnings_of_json(content: Sequence[Mapping[str, Any]]) -> list[ModelWarning]:
    """Return the `warnings` of a metrics.json."""
    return [
        ModelWarning(text=entry["text"], scores=tuple(entry["scores"]), caution=entry["caution"]) for entry in content
    ]


def read_result(folder: Path, *, name: str, model: str) -> ModelResult:
    """Return the result that `write_result` wrote, under the names of this comparison.

    Raises:
        UserError: A file is missing or damaged.
    """
    with damage_is_named(folder / "metrics.json") as path:
        return _of_metrics(read_json(path), folder, name=name, model=model)


@contextmanager
def damage_is_named(path: Path) -> Iterator[Path]:
    """Turn the errors of reading a file of a result into a UserError that names it."""
    try:
        yield path
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:  # SyntaxError of a PNG
        raise UserError(f"{path} is damaged ({reason(error)}); {_AGAIN}") from error


def _of_metrics(metrics: Any, folder: Path, *, name: str, model: str) -> ModelResult:
    """Return the result from the content of metrics.json."""
    scores: dict[str, float] = metrics["scores"]
    protocol = metrics["protocol"]
    return ModelResult(
        name=name, model=model,
        scores=own_scores(scores),
        baseline={
            key.removeprefix(BASELINE_PREFIX): value for key, value in scores.items() if key.startswith(BASELINE_PREFIX)
        },
        infos=infos_of_json(metrics["score_infos"]), details=metrics["details"], protocol=protocol,
        skipped=protocol["skipped"], warnings=warnings_of_json(metrics["warnings"]), images=protocol["images"]["count"],
        pictures=read_pictures(folder), folder=f"{folder.parent.name}/{folder.name}",
    )  # fmt: skip


def _is_finished(folder: Path, key: dict[str, Any]) -> bool:
    try:
        found = read_json(folder / RESULT)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("version") == VERSION and found.get("key") == key


def _picture(folder: Path, number: int) -> Path:
    return folder / "pictures" / f"{number:02d}.png"


def _levels(path: Path) -> torch.Tensor:
    """Return (3, H, W) uint8; UserError if the file is damaged."""
    with damage_is_named(path), Image.open(path) as image:
        return image_levels(image)
