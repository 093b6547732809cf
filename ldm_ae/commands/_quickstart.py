"""Run every step of the toolkit once, on a CPU, without a network: reconstruct, train, score, encode, decode, export,
plug in."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from ldm_ae.commands._inputs import print_path
from ldm_ae.commands._quickstart_page import Contestant, save_images, write_page
from ldm_ae.core.resources import DEFAULT_MODEL, recipe, shipped_models
from ldm_ae.core.terminal import ProgressDisplay, progress_bar
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation import evaluate, write_report
from ldm_ae.interop import export_diffusers, measure_scaling
from ldm_ae.io.files import new_folder, require_new_folder
from ldm_ae.latents import decode_store, encode_images
from ldm_ae.losses import ShiftTolerantLPIPS
from ldm_ae.models import Autoencoder, load_autoencoder
from ldm_ae.training.monitoring.signals import terminable
from ldm_ae.training.run import train

TRAIN, HELD_OUT = "photos:train", "photos:heldout"
SIZE = 256
DIFFUSION_STEPS = 30
CARD = f"{DEFAULT_MODEL}.md"
console = Console(highlight=False)


def quickstart(folder: Path, *, steps: int | None = None, diffusion_steps: int = DIFFUSION_STEPS) -> None:
    """Run all steps into one folder, whose `index.html` shows the first images within seconds.

    Args:
        folder: Folder for all results. An existing training run in it is resumed; everything else is recreated.
        steps: Training steps, instead of the recipe's.
        diffusion_steps: Training steps of the diffusion model.

    Raises:
        UserError: The photos are not installed, or the folder holds anything but a quickstart or cannot be written.
        Stopped: A signal ended the training, which has been saved.
        KeyboardInterrupt: A signal came at another time; Terminated if it was SIGTERM.
    """
    if not (folder / CARD).is_file():  # which an earlier quickstart put there
        require_new_folder(folder, "the quickstart")
    with terminable(), new_folder(folder):
        _quickstart(folder, steps, diffusion_steps)


def _quickstart(folder: Path, steps: int | None, diffusion_steps: int) -> None:
    started = time.monotonic()
    run, model_folder, store = folder / "run", folder / "model", folder / "latents"
    for recreated in ("originals", "shipped", "reconstructed", "latents", "decoded", "pipeline", "diffusion", "model"):
        shutil.rmtree(folder / recreated, ignore_errors=True)
    for sample in folder.glob("sample-*.png"):
        sample.unlink()
    transform = ImageTransform(size=SIZE)
    console.print(
        f"This reconstructs three photos with {DEFAULT_MODEL}, which ships with ldm_ae, then trains a small model "
        "from scratch and compares the two. The training takes most of the time; its progress shows the remaining "
        "time. Press Ctrl-C to stop, and rerun the same command to resume.",
        soft_wrap=True,
    )

    with _step(f"reconstruct photos outside its training set with {DEFAULT_MODEL}"):
        shutil.copyfile(shipped_models()[DEFAULT_MODEL] / "README.md", folder / CARD)
        shipped = _contestant(folder, load_autoencoder(DEFAULT_MODEL), DEFAULT_MODEL, "shipped", transform)
        write_page(folder, [shipped], contents=_contents(folder), commands=_commands())
        console.print("\n".join(_table([shipped])))
        console.print(f"images and scores: {folder / 'index.html'}", soft_wrap=True)

    with _step("train a KL autoencoder from scratch with L1, perceptual and patch-GAN losses"):
        arguments = ["--config", str(recipe("quickstart.yaml")), "--out", str(run)]
        train(arguments if steps is None else [*arguments, "--training.max_steps", str(steps)])
        model = load_autoencoder(run)

    with _step(f"export the model with the scaling factor of its latents to {model_folder}"):
        photos = EvaluationLoader(open_source(TRAIN), transform, batch_size=1)
        with ProgressDisplay("measuring", len(photos)) as progress:
            scaling = measure_scaling(model, photos, progress=progress)
        export_diffusers(model, model_folder, scaling=scaling)
        model = load_autoencoder(model_folder)
        console.print(f"scaling_factor {model.latent_spec.scaling_factor:.4f}")

    with _step("reconstruct the same photos with the trained model"):
        trained = _contestant(folder, model, "trained from scratch", "reconstructed", transform, run)
        console.print("\n".join(_table([shipped, trained])), soft_wrap=True)

    with _step("encode the photos into a latent store, and decode them again"):
        with progress_bar("encoding", None) as progress:
            encode_images(
                model, open_source(TRAIN), store, transform=transform, source_name=TRAIN, device="cpu", batch_size=2,
                progress=progress,
            )  # fmt: skip
        with progress_bar("decoding", None) as progress:
            count = decode_store(model, store, folder / "decoded", device="cpu", batch_size=2, progress=progress)
        console.print(
            f"decoded {count} photos; the store holds the moments and a sample of each, and those of its mirrored image"
        )

    with _step("train a latent diffusion model on the store for some seconds, and sample from its pipeline"):
        _diffusion(model_folder, store, folder / "diffusion", diffusion_steps)

    contents = _contents(folder)
    write_page(folder, [shipped, trained], contents=contents, commands=_commands(), lesson=_lesson(shipped, trained))
    console.print(f"\ndone in {time.monotonic() - started:.0f} s. Results:")
    for path, text in [(folder / "index.html", "page with all images and scores; open it in a browser"), *contents]:
        console.print(f"  {path!s:<40} {text}", soft_wrap=True)
    for text, command in _commands():
        console.print(f"\n{text}\n  {command}", soft_wrap=True)
    print_path("\npage", folder / "index.html")


@contextmanager
def _step(text: str) -> Iterator[None]:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)
    started = time.monotonic()
    yield
    console.print(f"[dim]{time.monotonic() - started:.0f} s[/dim]")


def _contestant(
    folder: Path, model: Autoencoder, name: str, place: str, transform: ImageTransform, run: Path | None = None
) -> Contestant:
    """Score a model on the held-out photos; write its report and images. `run` is the run that trained it."""
    report = "evaluation" if run is not None else "evaluation-shipped"
    loader = EvaluationLoader(open_source(HELD_OUT), transform, batch_size=1)
    height, width = model.latent_spec.latent_size(SIZE, SIZE)
    with ProgressDisplay("evaluating", len(loader)) as progress:
        evaluation = evaluate(
            model, loader, source=HELD_OUT, transform_description=transform.describe(), model_name=name,
            perceptual=ShiftTolerantLPIPS(), device="cpu", pictures=len(loader), progress=progress,
        )  # fmt: skip
    write_report(evaluation, folder / report)
    contestant = Contestant(
        name=name, origin="ships with ldm_ae" if run is None else _training_words(run), folder=place, report=report,
        title="The pretrained model" if run is None else "The model trained here",
        numbers=model.latent_spec.channels * height * width, evaluation=evaluation,
    )  # fmt: skip
    save_images(folder, contestant)
    return contestant


def _training_words(run: Path) -> str:
    """Return the steps and time of a run, summed over all its interruptions."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = [float(line["seconds"]) for line in lines]  # each start of the run counts from 0
    seconds = sum(now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now)
    steps = max(int(line["step"]) for line in lines)
    return f"{steps:,} steps in {seconds / 60:.1f} min" if seconds >= 60 else f"{steps:,} steps in {seconds:.0f} s"


def _table(contestants: list[Contestant]) -> list[str]:
    """Return lines with the scores of each model, the shipped one first."""
    means, thumbnails = [c.score_texts() for c in contestants], [c.score_texts(baseline=True) for c in contestants]
    rows = [["", *(c.name for c in contestants)], ["numbers per photo", *(f"{c.numbers:,}" for c in contestants)]]
    rows += [[label, *(texts[label] for texts in means)] for label in means[0]]
    rows.append(["a thumbnail of equally many numbers", *("" for _ in contestants)])
    rows += [[f"  {label}", *(texts[label] for texts in thumbnails)] for label in means[0]]
    return [f"{row[0]:<40}" + "".join(f"{cell:>22}" for cell in row[1:]) for row in rows]


def _lesson(shipped: Contestant, trained: Contestant) -> str:
    """Return the gain from longer training, as HTML, from the scores of this run."""

    def reached(contestant: Contestant) -> str:
        return ", ".join(" ".join(score) for score in contestant.score_texts().items())

    ratio = trained.numbers / shipped.numbers
    size = "as many numbers" if ratio == 1 else f"{ratio:g} times as many numbers"
    return (
        f"The model trained here ({trained.origin}) keeps {size} of a photo and reaches {reached(trained)}. "
        f"{shipped.name}, which was trained far longer and on more photos, reaches {reached(shipped)}: "
        f'<a href="{CARD}">its card</a> describes its training and its scores on a larger test set.'
    )


def _diffusion(model_folder: Path, store: Path, folder: Path, steps: int) -> None:
    """Train in `folder`, then open the pipeline that it has with diffusers alone."""
    from diffusers import DiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar

    from ldm_ae.training.diffusion import DiffusionConfig, train_diffusion

    disable_progress_bar()
    config = DiffusionConfig(
        steps=steps, batch_size=2, width=32, depth=1, log_every=10, sample_every=0, trackers=()
    )  # fmt: skip
    pipeline_folder = train_diffusion(config, store=store, autoencoder=model_folder, out=folder)
    pipeline = DiffusionPipeline.from_pretrained(str(pipeline_folder))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images
    for i, image in enumerate(images):
        image.save(folder.parent / f"sample-{i}.png")
    console.print(
        f"{type(pipeline).__name__} sampled {len(images)} images; after a few seconds of training they show texture, "
        "not photos"
    )


def _commands() -> list[tuple[str, str]]:
    """Return the commands to run next, each with a short description."""
    training = "ldm-ae train --config quickstart --data.train FOLDER --data.validation null"
    return [
        ("Encode your own images with the shipped model, without training:", "ldm-ae encode FOLDER latents"),
        ("See its reconstructions and scores of your images:", "ldm-ae evaluate FOLDER --out report"),
        ("Train on your own images:", f"{training} --data.resize null --out runs/mine"),
        ("Score the result, and encode with it:", "ldm-ae evaluate runs/mine FOLDER && "
         "ldm-ae encode runs/mine FOLDER latents"),
    ]  # fmt: skip


def _contents(folder: Path) -> list[tuple[Path, str]]:
    """Return the results that exist so far."""
    places = [
        ("evaluation-shipped/report.html", "report on the pretrained model: images, error maps, latents, scores"),
        ("evaluation/report.html", "report on the model trained here"),
        (CARD, f"how the pretrained model {DEFAULT_MODEL} was trained, and its scores"),
        ("run", "the training run: metrics, samples, checkpoints, TensorBoard logs"),
        ("model", "the model trained here, for diffusers: AutoencoderKL.from_pretrained"),
        ("latents", "latents of the photos in a store: safetensors and an index"),
        ("originals", "the held-out photos, cropped"),
        ("shipped", "the held-out photos, reconstructed by the pretrained model"),
        ("reconstructed", "the held-out photos, reconstructed by the model trained here"),
        ("decoded", "photos decoded from the store of latents"),
        ("diffusion/pipeline", "a diffusers pipeline that includes the model trained here"),
    ]
    return [(folder / place, text) for place, text in places if (folder / place).exists()]
