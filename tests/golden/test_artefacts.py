"""Runs and stores of earlier commits open, verify and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ldm_ae.cli import main
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.models import load_autoencoder
from ldm_ae.training import problems
from tests.golden.artefacts import FOLDER, NAMES, encode, unfinish, unpack
from tests.golden.compare import EXPECTED, differences
from tests.golden.describe import describe_tensors, digests
from tests.golden.inputs import CONFIGS, IMAGES, STEPS, STOP, metrics, run_training
from tests.golden.test_losses import TOLERANCE

ONLY_IN_TRAINING = {"quantize.usage_share", "quantize.steps"}
"""Tensors of a checkpoint that a loaded model does not have: how often the codes are in use."""
Unpack = Callable[[str], Path]


@pytest.fixture(params=NAMES)
def artefact(request: pytest.FixtureRequest, tmp_path: Path) -> Unpack:
    """Unpacks one of the archives of each folder of artefacts."""
    return lambda name: unpack(FOLDER / request.param / f"{name}.tar.gz", tmp_path / name)


def test_artefacts_exist() -> None:
    assert NAMES
    for name in NAMES:
        assert sorted(path.name for path in (FOLDER / name).iterdir()) == sorted(
            [*(f"{run}.tar.gz" for run in CONFIGS), "stores.tar.gz"]
        )
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.gz")) < 500_000 * len(NAMES)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_older_run_opens(name: str, artefact: Unpack, capsys: pytest.CaptureFixture[str]) -> None:
    run = artefact(name)
    checkpoint = run / "checkpoints" / f"step-{STOP:08d}"
    assert problems(checkpoint) == []
    for kind, path in {"run": run, "checkpoint": checkpoint, "model": run / "model"}.items():
        capsys.readouterr()
        assert main(["inspect", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["kind"], found["problems"]) == (kind, [])
        assert kind == "model" or found["step"] == STOP
    # The averaged weights where there are some, under the names that diffusers gives them.
    kept = checkpoint / ("ema" if "ema_decay" in CONFIGS[name]["training"] else "model")
    expected = load_file(kept / "diffusion_pytorch_model.safetensors")
    for path in (run, checkpoint, run / "model"):
        model = load_autoencoder(path)
        weights = model.net.state_dict()
        assert {key for key in expected if key not in weights} <= ONLY_IN_TRAINING
        assert all(torch.equal(expected[key], value) for key, value in weights.items())
        image = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
        assert model.decode(model.encode(image).mode()).shape == image.shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "vq_gan" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_older_run_resumes_to_the_losses_of_an_uninterrupted_one(
    name: str, artefact: Unpack, golden_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = artefact(name)
    # Its class paths and its options, with its images at another place.
    run_training(["--config", str(run / "config.yaml"), "--out", str(run), "--data.train", str(golden_images)])
    output = capsys.readouterr()
    assert f"resuming from step-{STOP:08d}" in output.err + output.out
    expected = json.loads((EXPECTED / f"losses/{name}.json").read_text())
    lines = metrics(run)
    found = [line for line in lines if line["kind"] != "change"]
    assert [line["setting"] for line in lines if line["kind"] == "change"] == ["data.train"]
    assert list(differences(expected, found, **TOLERANCE)) == []
    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    assert problems(newest) == []
    today = {path.relative_to(newest).as_posix(): describe_tensors(path) for path in newest.rglob("*.safetensors")}
    expected = json.loads((EXPECTED / f"checkpoint/run_{name}.json").read_text())["tensors"]
    assert in_any_layout(today) == in_any_layout(expected)


def in_any_layout(files: dict[str, Any]) -> dict[str, Any]:
    """Names, dtypes and sorted sizes of tensors: a resumed run keeps its layout on the machine that it began on."""
    return {
        file: {name: (dtype, sorted(shape)) for name, (dtype, shape) in content["tensors"].items()}
        for file, content in files.items()
    }


def test_older_store_is_read(artefact: Unpack, capsys: pytest.CaptureFixture[str]) -> None:
    store = artefact("stores") / "finished"
    before = digests(store)
    assert verify_store(store) == []
    assert main(["inspect", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["complete"], found["problems"]) == (True, [])
    spec = LatentStore(store).spec
    stored, mode, scaled = LatentDataset(store), LatentDataset(store, draw="mode"), LatentDataset(store, spec=spec)
    assert len(stored) == IMAGES
    shards = [load_file(path) for path in sorted(store.glob("*/*.safetensors"))]
    latents = torch.cat([shard["latents"] for shard in shards])
    moments = torch.cat([shard["moments"] for shard in shards])
    rows = pq.read_table(store / "index.parquet").to_pylist()
    for position in range(IMAGES):
        assert torch.equal(stored[position]["latents"], latents[position])
        assert torch.equal(mode[position]["latents"], moments[position, :4])
        assert torch.equal(scaled[position]["latents"], spec.scale(latents[position][None])[0])
        assert (stored[position]["key"], stored[position]["label"]) == (rows[position]["key"], rows[position]["label"])
    assert digests(store) == before


def test_older_unfinished_store_is_completed(
    artefact: Unpack, golden_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores, model = artefact("stores"), artefact("kl_gan")
    finished, unfinished = stores / "finished", stores / "unfinished"
    unfinish(unfinished, finished, 1)
    kept = {name: digest for name, digest in digests(unfinished).items() if name.endswith(".safetensors")}
    encode(model, golden_images, unfinished)
    assert verify_store(unfinished) == []
    found, expected = digests(unfinished), digests(finished)
    assert found.keys() == expected.keys()
    assert kept.items() <= found.items()  # what was encoded was not encoded again
    index = [pq.read_table(store / "index.parquet") for store in (unfinished, finished)]
    assert index[0].equals(index[1], check_metadata=True)
    # The same model on another machine: last bits differ.
    for path in sorted(finished.glob("*/*.safetensors")):
        before, now = load_file(path), load_file(unfinished / path.relative_to(finished))
        assert before.keys() == now.keys()
        for key, value in before.items():
            torch.testing.assert_close(
                now[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
    # The same command on the finished store finds it complete, and so recognizes model and images by their hashes.
    LatentStore(finished).check_model(load_autoencoder(model))
    capsys.readouterr()
    encode(model, golden_images, finished)
    assert "is already complete" in capsys.readouterr().out
    assert digests(finished) == expected
