"""Trackers get numbers, images, hyperparameters and names; those that cannot be used leave nothing behind."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.training import TrainingConfig
from ldm_ae.training.monitoring import trackers as trackers_module
from ldm_ae.training.monitoring.trackers import (
    check_trackers,
    chosen_trackers,
    log_image,
    make_trackers,
    start_trackers,
    tensorboard_folder,
)
from tests.training.common import files, run

SETTINGS = {"seed": 5, "model": {"class_path": "X", "init_args": {"widths": [8, 16], "act_fn": None}}, "options": {}}
FLAT = {
    "seed": 5, "model.class_path": "X", "model.init_args.widths": "[8, 16]", "model.init_args.act_fn": None,
    "options": "{}",
}  # fmt: skip


class WandB(ModuleType):
    """A stand-in for W&B that records its calls."""

    def __init__(self, error: Exception | None = None):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.calls: list[tuple[str, Any]] = []
        self.error = error
        self.config = SimpleNamespace(update=lambda values, **_: self.calls.append(("config", values)))

    def init(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("init", options))
        (Path(options["dir"]) / "wandb").mkdir(exist_ok=True)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            id=options.get("id", "abc123"),
            log=lambda values, step: self.calls.append(("log", (step, values))),
            finish=lambda: self.calls.append(("finish", None)),
        )

    def Image(self, image: Image.Image) -> tuple[str, tuple[int, int]]:  # noqa: N802 - W&B's name
        return "image", image.size

    def of(self, name: str) -> list[Any]:
        return [value for kind, value in self.calls if kind == name]


def use_wandb(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> WandB:
    stub = WandB(error)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    available = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    monkeypatch.setattr("accelerate.tracking._available_trackers", available)
    return stub


def start(folder: Path, training: TrainingConfig) -> Accelerator:
    folder.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=make_trackers(training, folder), project_dir=str(folder))
    start_trackers(accelerator, training, folder, SETTINGS)
    return accelerator


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_gets_hyperparameters_and_images_in_one_folder(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    accelerator = start(tmp_path / "mine", TrainingConfig())
    image = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    log_image(accelerator, "samples/validation", image, 7)
    accelerator.log({"train/rec_loss": 0.25}, step=7)
    accelerator.end_training()
    folder = tmp_path / "mine" / "logs" / "mine"
    assert [path.parent for path in (tmp_path / "mine" / "logs").rglob("*") if path.is_file()] == [folder]
    found = events(folder)
    (shown,) = found.Images("samples/validation")
    assert (shown.step, shown.width, shown.height) == (7, 6, 4)
    (scalar,) = found.Scalars("train/rec_loss")
    assert (scalar.step, scalar.value) == (7, 0.25)
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {key: value.string_value or value.number_value for key, value in hparams.items()} == {
        key: value for key, value in FLAT.items() if value is not None
    }


def test_wandb_gets_project_name_hyperparameters_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = use_wandb(monkeypatch)
    accelerator = start(tmp_path / "mine", TrainingConfig(trackers=["wandb"], project="faces"))
    assert stub.of("init") == [{"project": "faces", "name": "mine", "dir": str(tmp_path / "mine")}]
    assert stub.of("config") == [FLAT]
    log_image(accelerator, "samples/validation", Image.new("RGB", (6, 4)), 7)
    assert stub.of("log") == [(7, {"samples/validation": [("image", (6, 4))]})]


def test_resumed_run_continues_its_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = use_wandb(monkeypatch)
    training = TrainingConfig(trackers=["wandb"], run_name="trial 3")
    for _ in range(2):
        start(tmp_path / "mine", training)
    first, second = stub.of("init")
    assert "id" not in first
    assert second == {**first, "id": "abc123", "resume": "allow"}
    assert first["name"] == "trial 3"


@pytest.mark.slow
def test_tracker_that_cannot_start_leaves_no_folder(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_wandb(monkeypatch, RuntimeError("api_key not configured"))
    words = r"one of wandb, tensorboard cannot start \(RuntimeError: api_key not configured\)\. Configure it"
    with pytest.raises(UserError, match=words):
        run(tiny_config, tmp_path / "new", "--training.trackers", "[tensorboard, wandb]")
    assert not (tmp_path / "new").exists()
    existing = run(tiny_config, tmp_path / "run", "--training.max_steps", "1")
    before = files(existing)
    with pytest.raises(UserError, match=words):
        run(tiny_config, existing, "--training.max_steps", "2", "--training.trackers", "[tensorboard, wandb]")
    assert files(existing) == before


@pytest.mark.slow
def test_run_logs_metrics_images_and_settings_to_its_trackers(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = use_wandb(monkeypatch)
    out = run(tiny_config, tmp_path / "mine", "--training.trackers", "[wandb, tensorboard]", "--training.max_steps",
              "3")  # fmt: skip
    (settings,) = stub.of("config")
    assert settings["training.batch_size"] == 2
    assert settings["model.init_args.block_out_channels"] == "[8, 16]"
    logged = {key: step for step, values in stub.of("log") for key in values}
    assert logged["samples/validation"] == logged["validation/psnr"] == logged["train/rec_loss"] == 3
    assert stub.calls[-1] == ("finish", None)
    found = events(out / "logs" / "mine")
    assert [image.step for image in found.Images("samples/validation")] == [3]
    assert found.Scalars("validation/psnr")[-1].step == 3


def test_other_trackers_get_images_in_their_own_form() -> None:
    taken: dict[str, Any] = {}

    class Fake(GeneralTracker):
        requires_logging_directory = False
        tracker = None

        def __init__(self, name: str):
            self.name = name
            super().__init__()

        def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
            taken[self.name] = (step, values)

    class Without(GeneralTracker):
        name = "without"
        requires_logging_directory = False
        tracker = None

    accelerator = Accelerator(cpu=True, log_with=[Fake("aim"), Fake("swanlab"), Without()])
    accelerator.init_trackers("project")
    image = Image.new("RGB", (2, 2))
    log_image(accelerator, "a", image, 4)
    assert taken == {"aim": (4, {"a": image}), "swanlab": (4, {"a": [image]})}


def test_trackers_that_are_unknown_or_not_installed_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    check_trackers(["tensorboard", "all"])
    with pytest.raises(UserError, match=r"^training.trackers: no tracker is named 'wandbb'; did you mean wandb\?"):
        check_trackers(["wandbb"])
    with pytest.raises(
        UserError, match=r"'comet_ml' is not installed \(installed: tensorboard\): pip install comet-ml"
    ):
        check_trackers(["tensorboard", "comet_ml"])


def test_tracker_that_is_not_installed_is_refused_before_the_plan_is_printed(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(
        UserError, match=r"'wandb' is not installed .*pip install 'ldm_ae\[wandb\]', or remove it"
    ) as error:
        run(tiny_config, tmp_path / "run", "--training.trackers", "[tensorboard, wandb]")
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "run").exists()


def test_tensorboard_starts_last_and_its_folder_stays_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB])
    assert chosen_trackers(TrainingConfig(trackers=["tensorboard", "wandb", "wandb"])) == ["wandb", "tensorboard"]
    assert chosen_trackers(TrainingConfig(trackers=["all"])) == ["wandb", "tensorboard"]
    for name, expected in (("a/b", "a_b"), ("..", "run"), ("/etc", "_etc"), ("trial 3", "trial 3"), (None, "x")):
        training = TrainingConfig(run_name=name)
        assert tensorboard_folder(training, Path("runs/x")) == Path("runs/x/logs") / expected


def test_unknown_tracker_that_is_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"^training\.trackers: no tracker is named 'zzzz'; there are aim, all, "):
        check_trackers(["zzzz"])
