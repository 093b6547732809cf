"""Every step of the toolkit once, on a CPU, without a network: train, score, encode, decode, export, plug in."""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from ldm_ae.config import train
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.errors import UserError
from ldm_ae.evaluation import EfficientNetLite0Features, evaluate, write_report
from ldm_ae.evaluation.summary import summary_lines
from ldm_ae.files import make_folder, writing
from ldm_ae.interop import export_diffusers, measure_scaling
from ldm_ae.latents import decode_store, encode_images, reconstruct_images
from ldm_ae.losses import ShiftTolerantLPIPS
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.resources import DEFAULT_MODEL, recipe, script

TRAIN, HELD_OUT = "photos:train", "photos:heldout"
SIZE = 256
DIFFUSION_STEPS = 30
console = Console(highlight=False)


def quickstart(folder: Path, *, steps: int | None = None, diffusion_steps: int = DIFFUSION_STEPS) -> None:
    """All of it, into one folder that ends with `index.html`.

    Args:
        folder: For all results. A training run that is there is continued; the rest is made anew.
        steps: Training steps, instead of the recipe's.
        diffusion_steps: Training steps of the diffusion model.

    Raises:
        UserError: the photos are not installed, or the folder cannot be written.
    """
    started = time.monotonic()
    make_folder(folder)
    run, model_folder, store = folder / "run", folder / "model", folder / "latents"
    for made_anew in ("latents", "decoded", "reconstructed", "shipped", "pipeline", "model"):
        shutil.rmtree(folder / made_anew, ignore_errors=True)
    transform = ImageTransform(size=SIZE)
    source = open_source(HELD_OUT)

    with _step("train a KL autoencoder with L1, perceptual and patch-GAN losses"):
        arguments = ["--config", str(recipe("quickstart.yaml")), "--out", str(run)]
        train(arguments if steps is None else [*arguments, "--training.max_steps", str(steps)])
        model = load_autoencoder(run)

    with _step(f"export it with the scaling factor of its latents, as {model_folder}"):
        photos = EvaluationLoader(open_source(TRAIN), transform, batch_size=1)
        export_diffusers(model, model_folder, scaling=measure_scaling(model, photos))
        model = load_autoencoder(model_folder)
        console.print(f"scaling_factor {model.latent_spec.scaling_factor:.4f}")

    with _step("score it on photos that it has not seen"):
        evaluation = evaluate(
            model, EvaluationLoader(source, transform, batch_size=1), source=HELD_OUT,
            transform_description=transform.describe(), model_name=str(model_folder), perceptual=ShiftTolerantLPIPS(),
            features=EfficientNetLite0Features(), device="cpu",
        )  # fmt: skip
        write_report(evaluation, folder / "evaluation")
        console.print("\n".join(summary_lines(evaluation)))

    with _step(f"put the same photos through {DEFAULT_MODEL}, which comes with ldm_ae"):
        shipped = load_autoencoder(DEFAULT_MODEL)
        for network, name in ((model, "reconstructed"), (shipped, "shipped")):
            reconstruct_images(network, source, folder / name, transform=transform, device="cpu")
        console.print(f"{_numbers(shipped)} numbers a photo, where the one above has {_numbers(model)}")

    with _step("encode the photos into a latent store, and decode them again"):
        encode_images(
            model, open_source(TRAIN), store, transform=transform, source_name=TRAIN, device="cpu", batch_size=2
        )
        count = decode_store(model, store, folder / "decoded", device="cpu", batch_size=2)
        console.print(f"{count} photos, each as moments, one sample, and the mirrored image's")

    with _step("train a latent diffusion model on the store for some seconds, and sample from its pipeline"):
        _diffusion(model_folder, store, folder / "pipeline", diffusion_steps)

    _write_index(folder, {name: float(score) for name, score in evaluation.scores.items()})
    console.print(f"\ndone in {time.monotonic() - started:.0f} s. What lies where:")
    for path, text in _contents(folder):
        console.print(f"  {path!s:<40} {text}", soft_wrap=True)
    console.print("\nThe same on your own images:", soft_wrap=True)
    console.print(
        f"  ldm-ae train --config {recipe('quickstart.yaml')} --data.train FOLDER --data.validation null "
        "--data.resize null --out runs/mine",
        soft_wrap=True,
    )
    console.print("  ldm-ae evaluate runs/mine FOLDER && ldm-ae encode runs/mine FOLDER latents", soft_wrap=True)
    console.print("Without training, with the model that comes along:  ldm-ae encode FOLDER latents", soft_wrap=True)


@contextmanager
def _step(text: str) -> Iterator[None]:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)
    started = time.monotonic()
    yield
    console.print(f"[dim]{time.monotonic() - started:.0f} s[/dim]")


def _diffusion(model_folder: Path, store: Path, pipeline_folder: Path, steps: int) -> None:
    """Run the script as a user would, then open what it saved with diffusers alone."""
    from diffusers import DiffusionPipeline

    command = [
        sys.executable, str(script("train_latent_diffusion.py")), "--store", str(store), "--autoencoder",
        str(model_folder), "--out", str(pipeline_folder), "--steps", str(steps), "--batch-size", "2",
        "--width", "32", "--depth", "1", "--log-every", "10",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    pipeline = DiffusionPipeline.from_pretrained(str(pipeline_folder))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images
    for i, image in enumerate(images):
        image.save(pipeline_folder.parent / f"sample-{i}.png")
    console.print(
        f"{type(pipeline).__name__} sampled {len(images)} images; a few seconds of training make texture, no photos"
    )


def _numbers(model: Autoencoder) -> int:
    """How many numbers the latents of one photo are."""
    height, width = model.latent_spec.latent_size(SIZE, SIZE)
    return model.latent_spec.channels * height * width


def _contents(folder: Path) -> list[tuple[Path, str]]:
    found = [
        (folder / "index.html", "this list with pictures"),
        (folder / "evaluation" / "report.html", "originals, reconstructions, error maps, scores"),
        (folder / "run", "the training run: metrics.jsonl, samples/, checkpoints/, TensorBoard logs/"),
        (folder / "model", "the model for diffusers: AutoencoderKL.from_pretrained"),
        (folder / "latents", "the latent store: safetensors, index.parquet, stats.json"),
        (folder / "reconstructed", "held-out photos through the model"),
        (folder / "shipped", f"the same through {DEFAULT_MODEL}, which comes with ldm_ae"),
        (folder / "decoded", "photos decoded from the store"),
        (folder / "pipeline", "a diffusers pipeline with the model inside"),
    ]
    missing = [path for path, _ in found[1:] if not path.exists()]
    if missing:
        raise UserError(f"quickstart did not make {missing[0]}")
    return found


def _write_index(folder: Path, scores: dict[str, float]) -> None:
    """One page with the run's pictures; they are linked, for they lie beside it."""
    grids = sorted((folder / "run" / "samples").glob("*.png"))
    pictures = [(path, f"inputs and reconstructions after {int(path.stem.split('-')[1])} steps") for path in grids]
    for name, text in (("reconstructed", "the model"), ("shipped", DEFAULT_MODEL)):
        photos = sorted((folder / name).rglob("*.png"))
        pictures += [(path, f"{path.stem}, which it has not seen, through {text}") for path in photos]
    pictures += [(path, "a sample of the pipeline") for path in sorted(folder.glob("sample-*.png"))]
    figures = "\n".join(
        f'<figure><img src="{path.relative_to(folder).as_posix()}" alt="">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for path, text in pictures
    )
    rows = "\n".join(f"<tr><td>{html.escape(k)}</td><td>{v:.4g}</td></tr>" for k, v in scores.items())
    contents = "\n".join(
        f'<li><a href="{path.relative_to(folder).as_posix()}">{path.relative_to(folder)}</a> {html.escape(text)}</li>'
        for path, text in _contents(folder)[1:]
    )
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ldm_ae quickstart</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}}
img{{max-width:100%;image-rendering:pixelated}}figure{{margin:1.5rem 0}}td{{padding-right:2rem}}</style>
<h1>ldm_ae quickstart</h1>
<p>A small autoencoder, trained from nothing on a handful of photos. <a href="evaluation/report.html">The report</a>
shows it on photos that it has not seen. {DEFAULT_MODEL} comes with ldm_ae and was trained longer on more photos; the
same ones through it are below.</p>
<ul>{contents}</ul>
<h2>Scores on held-out photos</h2><table>{rows}</table>
<h2>Pictures</h2>
{figures}
</html>
"""
    with writing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
