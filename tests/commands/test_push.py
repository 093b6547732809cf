"""`ldm-ae push`: the folder that it writes, the upload, and its refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from ldm_ae.cli import main
from ldm_ae.models import KLAutoencoder
from ldm_ae.models.loading.weights import WEIGHTS
from tests.golden.artefacts import FOLDER, NAMES, unpack
from tests.hub_server import hub_server

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--size", 32, "--workers", 0, "--device", "cpu"]
FILES = {"README.md", "config.json", WEIGHTS}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def training_run(tmp_path: Path) -> Path:
    """A run of two checkpoints that an earlier version wrote."""
    return unpack(FOLDER / NAMES[0] / "kl_gan.tar.gz", tmp_path / "run")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def metadata(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return found


def test_folder_has_the_model_and_a_card_and_nothing_is_asked(
    run: Run, tiny_model: KLAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.set_scaling(scaling_factor=0.5)
    tiny_model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    with hub_server(monkeypatch, tmp_path) as server:
        status, words, err = run("push", tmp_path / "model", "owner/name", "--folder", out)
    assert (status, server.asked()) == (0, [])
    assert words == f"model and card: {out}\n"
    assert err == (
        "note: the card has no scores and no pictures; --images IMAGES adds both, --evaluation DIR the scores\n"
        "note: the card has no licence; --license ID adds it\n"
    )
    assert names(out) == FILES
    theirs = AutoencoderKL.from_pretrained(out)
    assert theirs.config.scaling_factor == 0.5
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), tiny_model.net.parameters(), strict=True))
    status, _, err = run("push", tmp_path / "model", "owner/name", "--folder", out)
    assert (status, "holds an earlier result" in err) == (2, True)
    assert run("push", tmp_path / "model", "owner/name", "--folder", out, "--overwrite", "--license", "mit")[0] == 0
    assert metadata(out)["license"] == "mit"
    (out / "mine.txt").write_text("kept")
    status, _, err = run("push", tmp_path / "model", "owner/name", "--folder", out, "--overwrite")
    assert (status, "holds other files (mine.txt)" in err) == (2, True)


@pytest.mark.slow
def test_images_give_scores_pictures_and_a_missing_scale(
    run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--images", image_folder, "--limit", 5, "--pictures", 3, *SMALL, "--license", "other"]
    status, words, err = run("push", tiny_model_folder, "owner/name", "--folder", out, *options)
    assert (status, "note:" in err) == (0, False)
    assert "scaling_factor 1.00000 -> scaling_factor" in words
    assert names(out) == {*FILES, "pictures.png"}
    config = json.loads((out / "config.json").read_text())
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"A diffusion model sees `latents * {config['scaling_factor']!r}`" in text
    assert "The scale was measured on 12 images for this export." in text
    assert "| Images | 5 of `images`, 32x32 pixels |" in text
    assert str(tmp_path) not in text
    with Image.open(out / "pictures.png") as image:
        assert image.size == (3 * (64 + 4) - 4, 3 * (64 + 2) - 2)  # enlarged from 32 pixels
    run("evaluate", out, image_folder, *SMALL, "--limit", 5, "--out", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["scores"]
    metrics = {m["type"]: m["value"] for m in metadata(out)["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {key: pytest.approx(scores[key], abs=1e-6) for key in ("psnr", "ssim", "stlpips_vgg")}


@pytest.fixture
def evaluation(tiny_model_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    """Scores of the tiny model."""
    options = ["--metrics", "psnr", "--limit", "4", "--size", "32", "--workers", "0", "--device", "cpu"]
    assert main(["evaluate", str(tiny_model_folder), str(image_folder), *options, "--out", str(tmp_path / "e")]) == 0
    return tmp_path / "e"


def test_evaluation_of_the_same_model_is_used_and_of_another_refused(
    run: Run, tiny_model: KLAutoencoder, tiny_model_folder: Path, evaluation: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["push", tiny_model_folder, "owner/name", "--folder", out, "--evaluation", evaluation]
    status, _, err = run(*arguments, "--images", image_folder, "--pictures", 1, "--scaling", "keep", *SMALL)
    assert (status, "no pictures" in err) == (0, False)
    assert names(out) == {*FILES, "pictures.png"}
    saved = json.loads((evaluation / "metrics.json").read_text())
    (metric,) = metadata(out)["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "psnr", "name": "PSNR, dB", "value": round(saved["scores"]["psnr"], 6)}
    # An evaluation from before the explanations were in the file has names alone.
    (evaluation / "metrics.json").write_text(json.dumps({k: v for k, v in saved.items() if k != "score_infos"}))
    assert run(*arguments, "--overwrite")[0] == 0
    assert "| psnr (`psnr`) |" in (out / "README.md").read_text()
    with torch.no_grad():
        next(tiny_model.net.parameters()).add_(1e-3)
    tiny_model.save_pretrained(tmp_path / "other")
    shutil.rmtree(out)
    status, _, err = run("push", tmp_path / "other", *arguments[2:])
    assert status == 2
    assert f"{evaluation} is the evaluation of another model: expected weights with sha256" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found["protocol"]["images"].pop("count"), "expected protocol.images.count"),
        (lambda found: found.update(protocol=[]), "expected protocol.images.source"),
        (lambda found: found["scores"].update(psnr="x"), "scores.psnr is not a finite number"),
        (lambda found: found["scores"].update(psnr=True), "scores.psnr is not a finite number"),
    ],
)
def test_damaged_evaluation_is_refused(
    change: Callable[[Any], Any], words: str, run: Run, tiny_model_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    found = json.loads((evaluation / "metrics.json").read_text())
    change(found)
    (evaluation / "metrics.json").write_text(json.dumps(found))
    arguments = ["push", tiny_model_folder, "owner/name", "--folder", tmp_path / "out", "--evaluation"]
    status, _, err = run(*arguments, evaluation)
    assert (status, words in err) == (2, True)
    status, _, err = run(*arguments, tmp_path)
    assert (status, "has no metrics.json; give the --out folder of ldm-ae evaluate" in err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["", "@last", "/model"])
def test_card_of_a_run_has_its_recipe_without_private_paths(
    which: str, run: Run, training_run: Path, tmp_path: Path
) -> None:
    path = training_run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["data"]["train"], config["out"] = str(tmp_path / "my photos"), str(training_run)
    config["model"]["init_args"]["pretrained"] = "kl-f8c4-small"
    path.write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    assert run("push", f"{training_run}{which}", "owner/name", "--folder", out, "--license", "mit")[0] == 0
    assert names(out) == {*FILES, "training/config.yaml"}
    recipe = yaml.safe_load((out / "training/config.yaml").read_text())
    assert (recipe["data"]["train"], recipe["out"]) == ("???", "???")
    assert recipe["objective"] == config["objective"]
    text = (out / "README.md").read_text(encoding="utf-8")
    assert all(str(tmp_path) not in (out / name).read_text() for name in ("README.md", "training/config.yaml"))
    state = json.loads(max(training_run.glob("checkpoints/step-*/state.json")).read_text())
    assert f"| Steps | {state['step']} of {config['training']['max_steps']} |" in text
    assert "images of `my photos`" in text
    assert metadata(out)["base_model"] == "kl-f8c4-small"
    assert "datasets" not in metadata(out)
    source = sorted(training_run.glob("checkpoints/step-*/ema"))[-1]
    mine, theirs = load_file(out / WEIGHTS), load_file(source / WEIGHTS)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_upload_sends_the_files_that_a_folder_would_get(
    run: Run, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["push", tiny_model_folder, "owner/name", "--license", "mit"]
    assert run(*arguments, "--folder", tmp_path / "out")[0] == 0
    with hub_server(monkeypatch, tmp_path) as server:
        status, words, _ = run(*arguments, "--private", "--message", "First", "--revision", "dev")
        assert status == 0
        assert words.splitlines()[-1] == f"model on the Hugging Face hub: {server.url}/owner/name/tree/dev"
        assert server.private == {"owner/name": True}
        assert server.messages == ["First"]
        expected = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
        assert server.files == {"owner/name@dev": expected}
        server.fail["POST /api/models/.*/commit/.*"] = 403
        status, words, err = run(*arguments)
        assert (status, words) == (2, "")
        assert "ldm-ae: error: cannot upload to owner/name on the Hugging Face hub: the token may not write" in err


REFUSALS = (
    (["{model}", "owner/name"], "an upload needs the licence of the weights: add --license with one of"),
    (["{model}", "owner/name", "--license", "MIT"], "did you mean mit?"),
    (["{model}", "name", "--license", "mit"], "'name' cannot be a repository on the Hugging Face hub; give OWNER/NAME"),
    (["{model}", "owner/name", "--dry-run"], "unrecognized arguments: --dry-run; did you mean --folder?"),
    (["{model}"], "the following arguments are required: OWNER/NAME"),
    (["{tmp}/none", "owner/name", "--license", "mit"], "no such model"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--private"], "--private has no effect with --folder"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--message", "x"], "--message has no effect with --folder"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--limit", "3"], "--limit has no effect without --images"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--pictures", "-1"], "--pictures is -1; it must be at least 0"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--images", "{tmp}/none"], "IMAGES must be a folder"),
    (["{model}", "owner/name", "--folder", "{tmp}/o", "--scaling", "measure"], "--scaling measure needs --images"),
)  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[words[:30] for _, words in REFUSALS])
def test_mistakes_are_refused_in_one_line_before_anything_is_written_or_asked(
    arguments: list[str], words: str, run: Run, tiny_model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with hub_server(monkeypatch, tmp_path) as server:
        filled = [text.format(model=tiny_model_folder, tmp=tmp_path) for text in arguments]
        status, out, err = run("push", *filled)
    assert (status, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert server.asked() == []
    assert not (tmp_path / "o").exists()
