"""Invalid folders of priors: each defect is refused in one line, and no network is built without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import UserError
from ldm_ae.priors import load_prior, save_prior
from tests.priors.common import small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_prior(small("GatedPixelCNN"), tmp_path, model_hash="abc")
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    arguments = {key: values.pop(key) for key in list(values) if key in content["init_args"]}
    content["init_args"] |= arguments
    (folder / "config.json").write_text(json.dumps(content | values))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as found:
        load_prior(folder)
    assert len(str(found.value).splitlines()) == 1
    return str(found.value)


def test_folders_without_a_prior_are_refused(folder: Path, tmp_path: Path) -> None:
    assert "is not a prior: it has no config.json" in refused(tmp_path / "nowhere")
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert "does not describe a prior" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be read" in refused(folder)


@pytest.mark.parametrize(("values", "message"), [
    ({"class_name": "os.system"}, "no prior over codes is named 'os.system'; there are CausalTransformer, Gated"),
    ({"class_name": ["x"]}, "no prior over codes is named"),
    ({"init_args": [1]}, "GatedPixelCNN needs a mapping as its init_args"),
    ({"depth": 10**9}, "depth is 1000000000"),
    ({"width": "32"}, "width is 32"),
    ({"shape": 4}, "does not accept these arguments"),
    ({"dropout": "a"}, "does not accept these arguments"),
    ({"init_args": {"nonsense": 1}}, "does not accept these arguments"),
    ({"codebook_size": 2**18, "width": 2**14}, "does not match config.json"),
    ({"depth": 5}, "does not match config.json"),
])  # fmt: skip
def test_invalid_prior_configurations_are_refused(values: dict[str, Any], message: str, folder: Path) -> None:
    change(folder, **values)
    assert message in refused(folder)


def test_inspect_describes_a_prior(folder: Path) -> None:
    found = inspect_path(folder)
    assert (found["kind"], found["class"], found["shape"], found["problems"]) == ("prior", "GatedPixelCNN", [4, 5], [])
    assert found["model_hash"] == "abc"
    prior = small("GatedPixelCNN")
    torch.nn.init.constant_(prior.embedding.weight, torch.nan)  # type: ignore[union-attr, arg-type]
    save_prior(prior, folder, model_hash="abc")
    assert inspect_path(folder)["problems"] == ["embedding.weight has values that are not finite"]
    change(folder, depth=5)
    assert "does not match config.json" in inspect_path(folder)["problems"][0]


def test_damaged_prior_weights_are_refused(folder: Path) -> None:
    weights = folder / "prior.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "its hash differs from that in config.json" in refused(folder)
    weights.write_bytes(data[:50])
    assert "not a valid safetensors file" in refused(folder)
    weights.unlink()
    assert "no such file" in refused(folder)
