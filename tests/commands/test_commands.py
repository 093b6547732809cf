"""The commands as a user meets them: help, every step of the table, every mistake."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from ldm_ae.cli import main
from ldm_ae.data import decode_image
from ldm_ae.models import KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ
from tests.pictures import smooth_picture

Run = Callable[..., tuple[int, str, str]]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's own
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize("discrete", [False, True])
def test_compvis_export_and_import_roundtrip(run: Run, discrete: bool, tmp_path: Path) -> None:
    widths = {"block_out_channels": (32, 32), "layers_per_block": 1}
    model = VQAutoencoder(quantizer=VQ(8, 4), **widths) if discrete else KLAutoencoder(**widths)
    model.save_pretrained(tmp_path / "model")
    assert run("export", tmp_path / "model", tmp_path / "ldm", "--format", "ldm")[0] == 0
    weights = tmp_path / "ldm" / "model.safetensors"
    status, out, err = run("import", weights, tmp_path / "back", "--config", tmp_path / "ldm" / "config.yaml")
    assert status == 0
    assert err.startswith("note: scaling_factor is 1: unknown, not measured")
    assert err.count("\n") == 1
    kind = "VQ autoencoder of 8 codes" if discrete else "KL autoencoder"
    assert f"{kind}, downsample factor 2, 4 latent channels" in out
    before, after = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("model", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    status, _, err = run("import", weights, tmp_path / "other")
    assert status == 0
    assert "sample_size is assumed to be 256" in err


SMALL = ["--size", 32, "--workers", 0, "--device", "cpu"]


def test_encode_decode_and_reconstruct_agree(
    run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    store, decoded, rebuilt = tmp_path / "store", tmp_path / "decoded", tmp_path / "rebuilt"
    encode = ["encode", tiny_model_folder, image_folder, store, *SMALL, "--latents", "mode"]
    status, out, err = run(*encode, "--limit", 5)
    assert (status, err) == (0, "")
    assert "5 images, 0 unusable" in out
    status, out, err = run(*encode)  # encodes the others and appends them
    assert (status, err) == (0, "")
    assert "12 images, 0 unusable, in fp32, scaling_factor" in out
    assert run("decode", tiny_model_folder, store, decoded, "--device", "cpu")[0] == 0
    assert run("reconstruct", tiny_model_folder, image_folder, rebuilt, *SMALL)[0] == 0
    names = {p.relative_to(decoded).as_posix() for p in decoded.rglob("*.png")}
    assert names == {p.relative_to(image_folder).as_posix() for p in image_folder.rglob("*.png")}
    for name in names:  # the stored mode, decoded, is the reconstruction
        assert (picture(decoded / name) == picture(rebuilt / name)).all()
    for kind, arguments in (("decode", [store]), ("reconstruct", [image_folder, *SMALL[:4]])):
        few = tmp_path / f"few {kind}"
        status, out, _ = run(kind, tiny_model_folder, *arguments, few, "--limit", 5, "--device", "cpu")
        assert (status, out.splitlines()[-1].split()[0]) == (0, "5")
        found = sorted(p.relative_to(few).as_posix() for p in few.rglob("*.png"))
        assert found == sorted(names)[:5]
    status, out, _ = run("inspect", store, "--json")
    assert status == 0
    assert json.loads(out)["problems"] == []


@pytest.mark.slow
def test_export_measures_a_known_scale_only_on_request(
    run: Run, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    tiny_model.set_scaling(scaling_factor=0.18215)
    tiny_model.save_pretrained(tmp_path / "model")

    def export(*options: str) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "out"
        again = ["--overwrite", *options]
        status, words, err = run("export", tmp_path / "model", out, "--images", image_folder, *SMALL, *again)
        assert (status, err) == (0, "")
        account, *_, line = [text for text in words.splitlines() if text.startswith(("source:", "scaling_factor"))]
        assert account == "source: 12 images (folder)"
        return line, json.loads((out / "config.json").read_text())

    kept = f"scaling_factor 0.18215 is kept; --scaling measure measures it on {image_folder}"
    for options in ((), ("--scaling", "keep")):
        line, config = export(*options)
        assert (line, config["scaling_factor"]) == (kept, 0.18215)
    line, measured = export("--scaling", "measure")
    assert measured["scaling_factor"] != 0.18215
    assert line.startswith(f"scaling_factor 0.18215 -> scaling_factor {measured['scaling_factor']:.5f}, measured on")
    line, config = export("--per-channel")
    assert line.startswith("scaling_factor 0.18215 -> scaling_factor 1.00000, latents_mean [")
    assert (config["scaling_factor"], len(config["latents_std"])) == (1.0, 4)
    tiny_model.set_scaling(scaling_factor=1.0, latents_mean=config["latents_mean"], latents_std=config["latents_std"])
    tiny_model.save_pretrained(tmp_path / "model")
    line, config = export("--no-per-channel")
    assert config == measured


@pytest.mark.slow
def test_export_opens_in_diffusers_with_equal_outputs(
    run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    out, rebuilt = tmp_path / "exported", tmp_path / "rebuilt"
    status, words, _ = run("export", tiny_model_folder, out, "--images", image_folder, *SMALL)
    assert status == 0
    theirs = AutoencoderKL.from_pretrained(out)
    assert f"scaling_factor {theirs.config.scaling_factor:.5f}" in words
    (line,) = [line for line in words.splitlines() if line.startswith("largest activation")]
    assert line.endswith(": safe in fp16 (limit 65504, margin 2, 12 images)")
    assert {path.name for path in out.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    run("reconstruct", tiny_model_folder, image_folder, rebuilt, *SMALL, "--resize", "none")
    name = "dogs/000.png"
    image = decode_image((image_folder / name).read_bytes())
    left, top = (image.width - 32) // 2, (image.height - 32) // 2
    crop = np.asarray(image.crop((left, top, left + 32, top + 32)))
    x = torch.tensor(crop).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        y = theirs.decode(theirs.encode(x).latent_dist.mode()).sample
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    # Rounding may tip a value that lies between two levels; nothing else may differ.
    assert abs(picture(rebuilt / name) - expected).max() <= 1


@pytest.mark.slow
def test_evaluate_writes_metrics_and_report(
    run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = ["--perceptual", "stlpips_alex", "--features", "none", "--limit", 4, "--out", tmp_path / "scores"]
    status, out, err = run("evaluate", tiny_model_folder, image_folder, *SMALL, *options)
    assert (status, err) == (0, "")
    assert "psnr" in out
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["protocol"]["images"]["count"] == 4
    assert (tmp_path / "scores" / "report.html").stat().st_size > 10_000


def test_inspect_describes_a_pipeline_and_its_autoencoder(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_model_folder, folder / "vae")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    status, out, _ = run("inspect", folder)
    assert status == 0
    for line in ("kind: pipeline", "class: StableDiffusionPipeline", f"  path: {folder / 'vae'}", "valid: yes"):
        assert line in out.splitlines()
    assert "  class: AutoencoderKL" in out.splitlines()
    (folder / "model_index.json").write_text("{")
    status, out, err = run("inspect", folder)
    assert (status, "valid: no" in out, "model_index.json is not valid JSON" in err) == (2, True, True)
    (folder / "model_index.json").write_text("{}")
    shutil.rmtree(folder / "vae")
    status, out, err = run("inspect", folder)
    assert (status, "valid: no" in out, "is not a model" in err) == (2, True, True)


def test_inspect_describes_a_model(run: Run, tiny_model_folder: Path) -> None:
    status, out, _ = run("inspect", tiny_model_folder)
    assert status == 0
    assert "downsample_factor: 4" in out
    assert "valid: yes" in out


def test_bad_images_are_reported_and_limited_by_max_bad_fraction(
    run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "cats" / "broken.png").write_bytes(b"no picture")
    arguments = ["encode", tiny_model_folder, image_folder, tmp_path / "store", *SMALL]
    status, _, err = run(*arguments)
    assert status == 2
    assert "1 of 13 images" in err
    status, out, _ = run(*arguments[:3], tmp_path / "other", *SMALL, "--max-bad-fraction", 0.2)
    assert status == 0
    assert "12 images, 1 unusable" in out


KL_F8 = str(Path(__file__).parents[2] / "configs" / "kl_f8.yaml")
TRAIN_KL_F8 = [
    "train", "--config", KL_F8, "--data.train", "{images}", "--out", "{tmp}/run",
    "--model.init_args.block_out_channels", "[32, 32, 32, 32]",
]  # fmt: skip


def no_weights(folder: Path) -> Path:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "{model}", "{tmp}/nowhere", "{tmp}/s"], "no such folder or file"),
        (["encode", "{model}", "{tmp}/empty", "{tmp}/s"], "no images in"),
        (["encode", "{tmp}/nowhere", "{images}", "{tmp}/s"], "no such model"),
        (["encode", "{tmp}/empty", "{images}", "{tmp}/s"], "is not a model"),
        (["encode", "{weightless}", "{images}", "{tmp}/s"], "has a config.json but no weights"),
        (
            ["encode", "{model}", "{images}", "{tmp}/s", "--size", "30"],
            "30x30 is not divisible by the model's downsample factor 4",
        ),
        (
            ["encode", "{model}", "{images}", "{tmp}/s", "--size", "many"],
            "expected a number of pixels or native, got 'many'",
        ),
        (["encode", "{model}", "{images}", "{images}", "--size", "32"], "{images}"),
        (["encode", "{model}", "{images}", "{tmp}/file/s", "--size", "32"], "file"),
        (["encode", "{images}"], "STORE"),
        (["encode", "{model}", "{images}"], "{model} is a model, and the arguments after it are missing"),
        (["export", "{model}", "{tmp}/o", "--format", "ldm", "--weights", "fp16"], "remove these options"),
        (["encode", "{model}", "{images}", "{tmp}/s", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["encode", "{model}", "{images}", "{tmp}/s", "--device", "tpu9"], "device 'tpu9' is not available"),
        (["encode", "{model}", "{images}", "{tmp}/s", "--sise", "32"], "--sise"),
        (["encode", "someone/no-such-model", "{images}", "{tmp}/s"], "HF_HUB_OFFLINE is set, and the"),
        (["encode", "{model}", "hf:someone/nothing", "{tmp}/s"], "nothing"),
        (["decode", "{model}", "{tmp}/nowhere", "{tmp}/o"], "nowhere"),
        (["decode", "{model}", "{images}", "{tmp}/o"], "{images}"),
        (["reconstruct", "{model}", "{images}", "{tmp}/full", "--size", "32"], "is not empty"),
        (["export", "{model}", "{tmp}/full"], "holds other files"),
        (["export", "{model}", "{tmp}/o", "--per-channel"], "--per-channel needs --images"),
        (["export", "{model}", "{tmp}/o", "--no-per-channel"], "--no-per-channel needs --images"),
        (["export", "{model}", "{tmp}/o", "--scaling", "measure"], "--scaling measure needs --images"),
        (
            ["export", "{model}", "{tmp}/o", "--scaling", "keep", "--per-channel"],
            "--scaling keep excludes --per-channel",
        ),
        (["export", "{model}", "{tmp}/o", "--format", "ldm", "--scaling", "keep"], "remove these options"),
        (["export", "{model}", "{tmp}/o", "--format", "onnx"], "onnx"),
        (["evaluate", "{model}", "{images}", "--out", "{tmp}/file"], "is a file; give a folder for the report"),
        (["evaluate", "{model}", "{images}", "--out", "{tmp}/full"], "holds other files (precious.txt)"),
        (["evaluate", "{model}", "{images}", "--out", "{tmp}/full", "--overwrite"], "holds other files (precious.txt)"),
        (["export", "{model}", "{tmp}/full", "--format", "ldm", "--overwrite"], "holds other files (precious.txt)"),
        (["import", "nowhere.ckpt", "{tmp}/full", "--overwrite"], "holds other files (precious.txt)"),
        (["decode", "{model}", "{tmp}/nowhere", "{tmp}/full"], "is not empty (precious.txt)"),
        (["quickstart", "--out", "{tmp}/full"], "is not empty (precious.txt); give a new folder for the quickstart"),
        (["evaluate", "{model}", "{images}", "--limit", "0", "--out", "{tmp}/o"], "--limit is 0"),
        (["reconstruct", "{model}", "{images}", "{tmp}/o", "--limit", "0"], "--limit is 0"),
        (
            ["evaluate", "{model}", "{images}", "--out", "{tmp}/o", "--metrics", "psnr", "lpip_alex"],
            "no metric is named 'lpip_alex'; did you mean lpips_alex?",
        ),
        (
            ["evaluate", "{model}", "{images}", "--out", "{tmp}/o", "--features", "auto", "--metrics", "psnr"],
            "--features auto has no effect with --metrics psnr; remove it, or add frechet",
        ),
        (["evaluate", "{model}", "{images}", "--prior", "{model}", "--out", "{tmp}/o"], "does not describe a prior"),
        (
            ["evaluate", "{model}", "{images}", "--size", "32", "--perceptual", "lpips_vgg", "--out", "{tmp}/o"],
            "weights of lpips",
        ),
        (
            [
                "evaluate",
                "{model}",
                "{images}",
                "--metrics",
                "rfid",
                "--inception-weights",
                "{tmp}/no",
                "--out",
                "{tmp}/o",
            ],
            "rFID needs FID's Inception weights, and",
        ),
        (
            [
                "evaluate",
                "{model}",
                "{images}",
                "--metrics",
                "psnr",
                "--inception-weights",
                "{tmp}/no",
                "--out",
                "{tmp}/o",
            ],
            "--inception-weights has no effect with --metrics psnr; remove it, or add rfid",
        ),
        (["import", "{tmp}/nowhere.ckpt", "{tmp}/o"], "no such file"),
        (["import", "{model}/diffusion_pytorch_model.safetensors", "{tmp}/o"], "with its config.json, as MODEL"),
        (["inspect", "{tmp}/nowhere"], "no such path"),
        (
            ["inspect", "{images}/dogs/000.png"],
            "is an image, which evaluate, encode and reconstruct read; inspect reads a model folder, a pipeline",
        ),
        (["inspect", "{tmp}/a.yaml"], "a.yaml is a configuration, which ldm-ae train --config reads; inspect reads a"),
        (["inspect", "{model}/diffusion_pytorch_model.safetensors"], "belongs to a model folder; give"),
        (["inspect", "{tmp}/empty"], "empty"),
        (["train"], "train needs a configuration"),
        (["train", "--config", "{tmp}/nowhere.yaml"], "no such configuration file"),
        (TRAIN_KL_F8, "the ImageNet weights of lpips 'vgg' are missing"),
        (
            [*TRAIN_KL_F8, "--objective.perceptual", "null", "--discriminator.init_args.n_layers", "0"],
            "n_layers and ndf of at least 1, got 0",
        ),
        (["trian"], "did you mean train?"),
    ],
)
def test_invalid_commands_print_one_line_and_return_status_2(
    run: Run, arguments: list[str], words: str, tiny_model_folder: Path, image_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no downloaded weights
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "a.yaml").write_text("seed: 0\n")
    names = {"model": tiny_model_folder, "images": image_folder, "tmp": tmp_path}
    if "{weightless}" in arguments:
        names["weightless"] = no_weights(tiny_model_folder)
    filled = [argument.format(**names) for argument in arguments]
    status, _, err = run(
        *filled, *([] if filled[0] not in ("encode", "reconstruct", "evaluate") else ["--workers", "0"])
    )
    assert status == 2, err
    assert words.format(**names) in err
    lines = err.strip().splitlines()
    start = next(number for number, line in enumerate(lines) if ": error: " in line)
    assert len(lines) - start <= 2, err
    assert start == 0 or filled[0] == "train", "only a run prints its plan before"
    assert "Traceback" not in err
    assert (tmp_path / "full" / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output_is_refused(run: Run, tiny_model_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    status, _, err = run("encode", tiny_model_folder, image_folder, locked / "store", *SMALL)
    assert status == 2
    assert "cannot write" in err


def test_single_image_file_is_accepted(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    smooth_picture(1, 50, 40).save(tmp_path / "photo.jpg")
    status, _, _ = run("reconstruct", tiny_model_folder, tmp_path / "photo.jpg", tmp_path / "out", *SMALL)
    assert status == 0
    assert picture(tmp_path / "out" / "photo.png").shape == (32, 32, 3)


def test_only_the_legacy_reader_unpickles() -> None:
    root = Path(__file__).parents[2] / "ldm_ae"
    calls = ("torch.load(", "pickle.load", "allow_pickle=True", "trust_remote_code=True")
    found = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if any(c in p.read_text() for c in calls)}
    assert found == {"io/legacy.py"}
