"""The main job, shortened."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, DiffusionPipeline

from ldm_ae.cli import main
from ldm_ae.commands._inspection import inspect_path
from ldm_ae.commands._quickstart import _training_words, quickstart
from ldm_ae.core.errors import Stopped


@pytest.mark.slow
def test_quickstart_writes_every_listed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ldm_ae.commands._quickstart.SIZE", 128)
    quickstart(tmp_path, steps=2, diffusion_steps=1)
    words = capsys.readouterr().out
    assert words.index("reconstruct photos outside its training set with") < words.index("train a KL autoencoder")
    for name in ("index.html", "evaluation", "evaluation-shipped", "run", "model", "latents", "decoded", "diffusion"):
        assert (tmp_path / name).exists()
    page = (tmp_path / "index.html").read_text()
    for name in ("originals", "shipped", "reconstructed"):
        photos = list((tmp_path / name).rglob("*.png"))
        assert len(photos) == 3
        for path in photos:
            assert f'src="{path.relative_to(tmp_path).as_posix()}"' in page
    assert page.count("sample-0.png") == page.count("sample-1.png") == 2  # the image, and the link to it
    assert "trained from scratch, 2 steps in " in page
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 8
    for name in ("run", "model", "latents"):
        assert inspect_path(tmp_path / name)["problems"] == []
    for report in ("evaluation", "evaluation-shipped"):
        scores = json.loads((tmp_path / report / "metrics.json").read_text())["scores"]
        assert scores["bicubic_psnr"] > 20  # the thumbnail is a fair baseline
        assert f"{scores['psnr']:.2f} dB" in page
        assert f"{scores['psnr']:.2f} dB" in words
    assert scores["psnr"] > 24  # of the shipped model, which was scored last, at 128 pixels
    model = AutoencoderKL.from_pretrained(tmp_path / "model")
    assert model.config.scaling_factor != 1.0
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "diffusion" / "pipeline")).__name__ == "LDMPipeline"
    assert "ldm-ae train --config" in words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ([1.0, 20.0], "4 steps in 20 s"),
        ([1.0, 100.0, 2.0, 50.0], "4 steps in 2.5 min"),  # interrupted once: each start counts from 0
    ],
)
def test_training_time_sums_all_starts_of_a_run(seconds: list[float], words: str, tmp_path: Path) -> None:
    lines = [json.dumps({"step": 4, "seconds": value}) for value in seconds]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert _training_words(tmp_path) == words


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_quickstart_with_its_status_and_one_line(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("ldm_ae.commands._quickstart.open_source", lambda _: signal.raise_signal(number))
    # A shell's background job begins with an ignored SIGINT, which Python then leaves ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["quickstart", "--out", str(tmp_path / "out")]) == status
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_signal_during_training_stops_quickstart_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(_: list[str]) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("ldm_ae.commands._quickstart.train", train)
    monkeypatch.setattr("ldm_ae.commands._quickstart._contestant", lambda *_: None)
    monkeypatch.setattr("ldm_ae.commands._quickstart.write_page", lambda *_, **__: None)
    monkeypatch.setattr("ldm_ae.commands._quickstart._table", lambda _: [])
    assert main(["quickstart", "--out", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err == ""  # the trainer has reported it
