"""Trackers of a run, such as TensorBoard and W&B: their checks, names, hyperparameters and images."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    get_available_trackers,
    on_main_process,
)
from accelerate.utils import LoggerType, broadcast_object_list
from PIL import Image

from ldm_ae.core.errors import UserError, reason
from ldm_ae.core.registry import unknown_name
from ldm_ae.training.config import TrainingConfig

TENSORBOARD, WANDB, ALL = "tensorboard", "wandb", "all"
LOGS = "logs"
"""The folder of TensorBoard's event files in a run directory."""
_WANDB_ID = Path("wandb", "run_id")
"""The file in a run directory that makes a resumed run continue its run in W&B."""
_PACKAGES = {WANDB: "'ldm_ae[wandb]'", "comet_ml": "comet-ml"}
"""What pip installs for a tracker, where it is not the tracker's name."""
_ONE_IMAGE = ("aim", "clearml")
"""Trackers whose `log_images` takes one image for each tag; those of the others take a list."""
_SHOWN_METRICS = ("validation/psnr", "validation/ssim", "train/rec_loss")
"""Columns of TensorBoard's table of hyperparameters."""


class TensorBoard(TensorBoardTracker):
    """TensorBoard with one folder for a run. Accelerate's class makes one more for the hyperparameters of each start,
    and its images are arrays."""

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write the hyperparameters into the run's own event file."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, dict.fromkeys(_SHOWN_METRICS)):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()

    @on_main_process
    def log_images(self, values: dict[str, list[Image.Image]], step: int | None = None, **_: Any) -> None:
        """Write images; those of a tag have equal sizes."""
        for tag, images in values.items():
            self.writer.add_images(tag, np.stack([np.array(image) for image in images]), step, dataformats="NHWC")
        self.writer.flush()


def check_trackers(names: Sequence[str], option: str = "training.trackers") -> None:
    """Raise `UserError`, which names the option, for a tracker that is unknown or whose package is not installed."""
    known = sorted({*LOGGER_TYPE_TO_CLASS, ALL})
    installed = _installed()
    there = f"installed: {', '.join(installed) or 'none'}"
    for name in names:
        if name not in known:
            raise UserError(f"{option}: {unknown_name('tracker', name, known)} ({there})")
        if name in LoggerType and name not in (ALL, *installed):
            raise UserError(
                f"{option}: the package of '{name}' is not installed ({there}): "
                f"pip install {_PACKAGES.get(name, name)}, or remove it; metrics.jsonl is always written"
            )


def _installed() -> list[str]:
    return sorted(str(name) for name in get_available_trackers())


def run_name(training: TrainingConfig, folder: Path) -> str:
    """Return the name of the run in trackers."""
    return training.run_name or folder.resolve().name


def chosen_trackers(training: TrainingConfig) -> list[str]:
    """Return the names of the run's trackers; TensorBoard, which creates files as soon as it starts, is the last."""
    names = _installed() if ALL in training.trackers else training.trackers
    return sorted(dict.fromkeys(names), key=lambda name: name == TENSORBOARD)


def tensorboard_folder(training: TrainingConfig, folder: Path) -> Path:
    """Return the folder of the run's event files; TensorBoard shows its name."""
    name = re.sub(r"[^\w .=+,-]", "_", run_name(training, folder))
    return folder / LOGS / (name if name.strip(". ") else "run")


def make_trackers(training: TrainingConfig, folder: Path) -> list[str | GeneralTracker]:
    """Return the trackers for Accelerate. None of them is started, and nothing is written."""
    place = tensorboard_folder(training, folder)
    return [
        TensorBoard(place.name, place.parent) if name == TENSORBOARD else name for name in chosen_trackers(training)
    ]


def start_trackers(
    accelerator: Accelerator,
    training: TrainingConfig,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    option: str = "training.trackers",
) -> None:
    """Start the accelerator's trackers, and give them the run's settings as hyperparameters.

    Args:
        accelerator: Its trackers are those of `make_trackers`. Every process must call this.
        training: The names of the project and of the run.
        folder: The run directory, which exists.
        settings: The configuration as JSON values.
        option: The name of the option that selects trackers, for messages.

    Raises:
        UserError: A tracker cannot start; the files that it has created are removed.
    """
    before = set(folder.iterdir())
    wandb: dict[str, Any] = {"name": run_name(training, folder), "dir": str(folder)}
    if (folder / _WANDB_ID).is_file():
        wandb |= {"id": (folder / _WANDB_ID).read_text(encoding="utf-8").strip(), "resume": "allow"}
    refused = ""
    try:
        accelerator.init_trackers(training.project, dict(_flat(settings)), {WANDB: wandb})
    except Exception as error:  # noqa: BLE001 - each tracker has its own classes of errors
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        names = ", ".join(chosen_trackers(training))
        refused = (
            f"{option}: one of {names} cannot start ({type(error).__name__}: {reason(error)}). Configure it "
            f"as its documentation describes, or remove it from {option}"
        )
    if refusal := broadcast_object_list([refused])[0]:  # trackers start in the main process alone
        raise UserError(refusal)
    if WANDB in chosen_trackers(training) and accelerator.is_main_process:
        (folder / _WANDB_ID).parent.mkdir(exist_ok=True)
        identifier = accelerator.get_tracker(WANDB, unwrap=True).id
        (folder / _WANDB_ID).write_text(f"{identifier}\n", encoding="utf-8")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a tree with its dots, and its value: a number, a text, a truth value, None, or JSON."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            yield f"{prefix}{key}", value if plain else json.dumps(value, default=str)


def log_image(accelerator: Accelerator, tag: str, image: Image.Image, step: int) -> None:
    """Give an image to every tracker that takes images."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images({tag: image if tracker.name in _ONE_IMAGE else [image]}, step=step)
