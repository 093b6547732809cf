from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.pictures import write_class_folders
from tests.training.common import TINY, run


@pytest.fixture
def make_accelerator() -> Callable[[str], Accelerator]:
    """Accelerate on the CPU in a precision, which may be another one each time."""

    def make(precision: str = "no") -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        if precision != "fp16":
            return Accelerator(cpu=True, mixed_precision=precision)
        # Accelerate refuses fp16 without a GPU; torch's autocast and scaler work on a CPU, so the test overrides it.
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        accelerator.state._mixed_precision = "fp16"
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # sums over an image: gradients are large
        assert accelerator.mixed_precision == "fp16"
        return accelerator

    return make


@pytest.fixture
def accelerator(make_accelerator: Callable[[str], Accelerator]) -> Accelerator:
    return make_accelerator("no")


@pytest.fixture
def tiny_config(tmp_path: Path, image_folder: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", image_folder)


@pytest.fixture(scope="module")
def one_parser() -> Iterator[None]:
    """Share one parser of configurations among the tests of a module: building it takes longer than many of them."""
    from ldm_ae.training import run as run_module
    from ldm_ae.training.configuration import parsing

    parser = parsing.config_parser()
    with pytest.MonkeyPatch.context() as patch:
        for module in (parsing, run_module):
            patch.setattr(module, "config_parser", lambda described=False: parser)
        yield


@pytest.fixture(scope="session")
def shared_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of `shared_run`."""
    folder = tmp_path_factory.mktemp("shared")
    return write_config(folder / "tiny.yaml", write_class_folders(folder / "images"))


@pytest.fixture(scope="session")
def shared_run(shared_config: Path) -> Path:
    """A finished run of `shared_config`. Tests read it, or change a copy."""
    return run(shared_config, shared_config.with_name("run"))


def write_config(path: Path, images: Path) -> Path:
    config = json.loads(json.dumps(TINY))
    config["data"]["train"] = str(images)
    path.write_text(yaml.safe_dump(config))
    return path
