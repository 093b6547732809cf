"""A diffusion run: it resumes exactly, refuses another run's folder, draws previews, and is quiet."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ldm_ae.commands._inspection import inspect_path
from ldm_ae.core.errors import Stopped, UserError
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.interop import export_diffusers
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.latents import LatentStore, encode_images
from ldm_ae.models import ChannelStatistics, KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.quantizers import VQ
from ldm_ae.training.diffusion import DiffusionConfig, train_diffusion
from ldm_ae.training.diffusion import trainer as loop
from ldm_ae.training.diffusion.data import Batches, check_store, open_latents
from tests.scripts import SCRIPTS, load_script

pytestmark = pytest.mark.slow

SMALL = dict(model="dit", steps=4, batch_size=4, width=32, depth=1, log_every=2, sample_every=0, trackers=())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in two classes as 8x8 latents in `store`, and their `autoencoder`."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    torch.manual_seed(0)
    networks = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False)
    model = KLAutoencoder(latent_channels=4, **networks)
    images, transform = open_source(folder / "images"), ImageTransform(size=16)
    summary = encode_images(model, images, folder / "store", transform=transform, device="cpu")
    export_diffusers(model, folder / "autoencoder", scaling=summary.statistics)
    discrete = VQAutoencoder(quantizer=VQ(codebook_size=16, codebook_dim=4), **networks)
    discrete.save_pretrained(folder / "vq")
    encode_images(discrete, images, folder / "vq-store", transform=transform, device="cpu")
    return folder


def train(inputs: Path, out: Path, **changes: Any) -> Path:
    config = DiffusionConfig(**SMALL | {"precision": "fp32"} | changes)  # type: ignore[arg-type]
    return train_diffusion(config, store=inputs / "store", autoencoder=inputs / "autoencoder", out=out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """Send SIGINT to this process, or raise an exception, in the step that follows `step` steps."""
    real, calls = loop.training_loss, iter(range(1000))

    def interrupted(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(calls) == step:
            if how == "crash":
                raise ZeroDivisionError
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "training_loss", interrupted)


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(inputs, out)
    return out


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_resumed_run_equals_an_uninterrupted_one(
    how: str, inputs: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt(patch, 2, how)
        with pytest.raises(Stopped if how == "signal" else ZeroDivisionError) as error:
            train(inputs, out, checkpoint_every=2)
    shown = capsys.readouterr().err
    if how == "signal":
        assert error.value.status == 130  # type: ignore[attr-defined]
        assert "saved at step 3 and stopped; rerun the same command to resume" in shown
    torch.manual_seed(1234)  # the state of torch's own generator has no effect
    train(inputs, out, checkpoint_every=2)
    assert f"resuming from step-0000000{3 if how == 'signal' else 2}" in capsys.readouterr().err
    assert files(out / "pipeline") == files(uninterrupted / "pipeline")
    last = "checkpoints/step-00000004"
    assert files(out / last) == files(uninterrupted / last)


def test_finished_run_is_named_and_unchanged(
    inputs: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(uninterrupted)
    assert train(inputs, uninterrupted) == uninterrupted / "pipeline"
    assert files(uninterrupted) == before
    assert capsys.readouterr().err.splitlines() == [
        "finished: step 4 of 4; nothing is left to train",
        "to train longer, add --steps 8, or any number above 4",
    ]


def test_finished_run_without_its_pipeline_writes_it_again(inputs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    shutil.rmtree(out / "pipeline")
    train(inputs, out)
    assert files(out / "pipeline") == files(uninterrupted / "pipeline")


def test_changed_options_are_logged_and_take_effect(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    train(inputs, out, steps=5, learning_rate=1e-3)
    [line] = [json.loads(text) for text in (out / "history.jsonl").read_text().splitlines()]
    assert line["step"] == 4
    assert line["changes"] == {"steps": {"from": 4, "to": 5}, "learning_rate": {"from": 2e-4, "to": 1e-3}}
    assert "from step 4: learning_rate 0.0002 -> 0.001" in capsys.readouterr().err
    logged = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in logged if entry["kind"] == "train"]
    assert rates == [2e-4, 2e-4, 1e-3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, "another width (32, now 64)"),
        ({"seed": 1}, "another seed"),
        ({"objective": "ddpm"}, "another objective (flow, now ddpm)"),
        ({"batch_size": 2}, "keep batch_size x processes at 4"),
        ({"steps": 3}, "is at step 4, past --steps 3"),
        ({"trackers": ("tensorbord",)}, "--trackers: no tracker is named 'tensorbord'; did you mean tensorboard?"),
    ],
)
def test_another_run_is_refused(
    changes: dict[str, Any], message: str, inputs: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    before = files(uninterrupted)
    with pytest.raises(UserError) as error:
        train(inputs, uninterrupted, **changes)
    assert message in str(error.value)
    assert files(uninterrupted) == before


def test_invalid_checkpoint_is_skipped_and_old_ones_are_removed(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train(inputs, out, checkpoint_every=1)
    names = [path.name for path in sorted((out / "checkpoints").iterdir())]
    assert names == ["step-00000003", "step-00000004"]
    shutil.rmtree(out / "pipeline")
    (out / "checkpoints" / names[1] / "ema.safetensors").write_bytes(b"")
    train(inputs, out, checkpoint_every=1)
    shown = capsys.readouterr().err
    assert "skipping invalid checkpoint step-00000004: ema.safetensors has 0 bytes" in shown
    assert "resuming from step-00000003" in shown
    assert files(out / "pipeline") == files(uninterrupted / "pipeline")


def test_pipeline_has_the_averaged_weights(inputs: Path, tmp_path: Path) -> None:
    def saved(name: str, **changes: Any) -> tuple[dict[str, torch.Tensor], ...]:
        pipeline = train(inputs, tmp_path / name, steps=2, learning_rate=1e-2, **changes)
        checkpoint = tmp_path / name / "checkpoints" / "step-00000002"
        exported = read_tensors(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
        return exported, read_tensors(checkpoint / "model.safetensors"), read_tensors(checkpoint / "ema.safetensors")

    exported, weights, averaged = saved("averaged")
    assert all(torch.equal(exported[name], averaged[name]) for name in exported)
    assert not torch.equal(averaged["proj_out_2.weight"], weights["proj_out_2.weight"])
    last, _, _ = saved("last", ema_decay=0.0)
    assert all(torch.equal(last[name], weights[name]) for name in last)


def test_previews_show_the_pipeline_from_fixed_noise(inputs: Path, tmp_path: Path) -> None:
    folder = train(inputs, tmp_path / "out", steps=2, learning_rate=1e-2, sample_every=1)
    previews = [Image.open(tmp_path / "out" / "samples" / f"step-0000000{step}.png") for step in (1, 2)]
    assert [image.size for image in previews] == [(4 * 64, 2 * 64)] * 2  # four by two images of 16x16, enlarged by 4
    assert not np.array_equal(np.asarray(previews[0]), np.asarray(previews[1]))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(class_labels=[0, 1] * 4, num_inference_steps=20, generator=generator).images
    rows = [np.concatenate([np.asarray(image) for image in row], axis=1) for row in (images[:4], images[4:])]
    # One level: the opened pipeline's convolutions may have another memory layout and round differently.
    difference = np.asarray(previews[1])[::4, ::4].astype(int) - np.concatenate(rows)
    assert np.abs(difference).max() <= 1


def test_batches_cover_each_epoch_once_and_draw_anew(inputs: Path) -> None:
    store = LatentStore(inputs / "store")
    data = open_latents(store, store.spec, 0)
    batches = Batches(data, 4, seed=0, rank=0, world_size=1)
    epochs = [[batches.positions(step).tolist() for step in steps] for steps in (range(3), range(3, 6))]
    assert [sorted(chain.from_iterable(epoch)) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    # Two processes have the halves of the same batches.
    halves = [Batches(data, 2, seed=0, rank=rank, world_size=2).positions(4).tolist() for rank in (0, 1)]
    assert halves[0] + halves[1] == epochs[1][1]
    first = {key: batches.at(0)["latents"][batches.at(0)["key"].index(key)] for key in batches.at(0)["key"]}
    for step in range(3, 6):
        later = batches.at(step)
        for key, latents in zip(later["key"], later["latents"], strict=True):
            assert key not in first or not torch.equal(first[key], latents)
    with pytest.raises(UserError, match="has 12 latents for 13 processes"):
        Batches(data, 2, seed=0, rank=0, world_size=13)


def test_store_whose_channels_are_constant_is_refused(inputs: Path) -> None:
    store = LatentStore(inputs / "store")
    store.statistics = ChannelStatistics(4)
    store.statistics.update(torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 8, 8))
    with pytest.raises(UserError, match="are constant; encode with a trained autoencoder"):
        check_store(store, load_autoencoder(inputs / "autoencoder"), "dit")


def test_inspect_describes_a_diffusion_run(uninterrupted: Path) -> None:
    found = inspect_path(uninterrupted)
    assert (found["kind"], found["step"], found["samples_seen"], found["problems"]) == ("run", 4, 16, [])


def test_trackers_get_losses_and_previews(inputs: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(inputs, tmp_path / "out", steps=2, sample_every=2, trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "out" / "logs" / "out"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2]
    assert [event.step for event in events.Images("samples")] == [2]


@pytest.fixture
def diffusers_messages() -> Iterator[list[str]]:
    """The messages of diffusers' loggers, which have a handler of their own and do not propagate."""
    found: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    recorder = Recorder(logging.WARNING)
    logging.getLogger("diffusers").addHandler(recorder)
    yield found
    logging.getLogger("diffusers").removeHandler(recorder)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
@pytest.mark.parametrize("model", ["dit", pytest.param("unet", marks=pytest.mark.slow)])
def test_diffusers_logs_no_warning(
    model: Any, objective: Any, inputs: Path, tmp_path: Path, diffusers_messages: list[str]
) -> None:
    config = DiffusionConfig(**SMALL | dict(model=model, objective=objective, steps=1, sample_every=1))  # type: ignore[arg-type]
    train_diffusion(config, store=inputs / "vq-store", autoencoder=inputs / "vq", out=tmp_path / "out")
    assert diffusers_messages == []


@pytest.mark.slow
def test_command_prints_its_own_lines_alone(inputs: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "train_latent_diffusion.py"), "--store", str(inputs / "store")]
    command += ["--autoencoder", str(inputs / "autoencoder"), "--out", str(tmp_path / "out"), "--model", "dit"]
    command += ["--steps", "2", "--batch-size", "4", "--width", "32", "--depth", "1"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"pipeline: {tmp_path / 'out' / 'pipeline'}\n"
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["precision", "step 2", "finished"]


def test_help_fits_on_one_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        load_script("train_latent_diffusion").build_parser().parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert any("Decay of the average of the weights" in line for line in lines)
