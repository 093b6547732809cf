"""The recipes of images other than RGB in 8 bits, trained for minutes: scores on held-out images, and pictures.

    python scripts/benchmarks/other_images.py --steps 200 --rgba EMOJI --out runs/other_images

Each recipe starts from kl-f8c4-small, and `before` has the scores of this start. The images of 64² pixels are
generated: phantoms of 16 bits, and scenes of five bands of 16 bits in which some samples are missing. EMOJI is a folder
of small PNGs with transparency, such as `img/google/64` of npm's emoji-datasource-google; without it, shapes with soft
edges are generated. OUT keeps the images, the runs and the pictures; an existing run is resumed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ldm_ae.core.environment import git_commit
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.precision import machine_name
from ldm_ae.core.resources import recipe
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.data.holdout import split_keys
from ldm_ae.evaluation import evaluate, named_metrics
from ldm_ae.images.in_memory import to_uint8_image
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import Bands, View, shown_view
from ldm_ae.images.writing import encode_image
from ldm_ae.io.files import make_folder, write_json, writing
from ldm_ae.models import Autoencoder, KLAutoencoder, load_autoencoder

SIZE = 64
START = "kl-f8c4-small"
"""Model that the recipes start from."""
METRICS = ("psnr", "ssim")
SHOWN = 8
"""Number of held-out images in a picture."""
GREY16 = PixelSpec(channels=1, meaning="grey", bits=16)
BANDS = PixelSpec(channels=5, meaning="channels", bits=16, missing=0)
RGBA = PixelSpec(channels=4, meaning="rgba")
SPECTRA = np.array([
    [900, 700, 450, 300, 180],  # water
    [350, 750, 420, 1900, 3900],  # meadow
    [250, 420, 280, 1100, 2500],  # forest
    [900, 1300, 1800, 2200, 2700],  # soil
    [1500, 1600, 1700, 1800, 1950],  # buildings
], dtype=np.float64)  # fmt: skip
"""Reflectances times 10,000 of five classes of land in blue, green, red, red edge and near infrared."""
VARIANT = re.compile(r"-?\b(1f3f[b-f]|1f46[89]|1f9d1|2640|2642|200d|fe0f)\b")
"""The parts of an emoji's name that distinguish skin tones and genders of one emoji."""


def fields(rng: np.random.Generator, count: int, scale: float) -> NDArray[np.float64]:
    """Return smooth random fields (count, SIZE, SIZE) of mean 0 and standard deviation 1."""
    noise = rng.standard_normal((count, SIZE, SIZE))
    smooth = np.stack([gaussian_filter(plane, scale, mode="wrap") for plane in noise])
    return (smooth - smooth.mean(axis=(1, 2), keepdims=True)) / smooth.std(axis=(1, 2), keepdims=True)


def ellipse(rng: np.random.Generator, largest: float, softness: float = 0.7) -> NDArray[np.float64]:
    """Return a random ellipse (SIZE, SIZE) in [0, 1]; its edge is about `softness` pixels wide."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    (dx, dy), angle, (a, b) = rng.uniform(-20, 20, 2), rng.uniform(0, np.pi), rng.uniform(2.5, largest, 2)
    u, v = (x - dx) * np.cos(angle) + (y - dy) * np.sin(angle), (y - dy) * np.cos(angle) - (x - dx) * np.sin(angle)
    distance = (np.hypot(u / a, v / b) - 1) * min(a, b)
    return np.asarray(1 / (1 + np.exp(np.clip(distance / softness, -40, 40))))


def phantom(rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return a section (1, SIZE, SIZE) of a body with organs, with noise of 64 levels of 65535."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    radius = np.hypot(x / rng.uniform(25, 30), y / rng.uniform(25, 30))
    body = 1 / (1 + np.exp((radius - 1) * 30))
    image = 0.3 * body + 0.45 * body * np.exp(-(((radius - 0.93) / 0.05) ** 2))  # a bright shell
    for _ in range(int(rng.integers(4, 12))):
        image += body * (radius < 0.88) * rng.uniform(-0.15, 0.3) * ellipse(rng, 11)
    image *= 1 + 0.08 * fields(rng, 1, 16)[0]
    image += 0.012 * body * fields(rng, 1, 1.5)[0]  # texture
    levels = np.clip(image + 0.02, 0, 1) * 65535 + rng.normal(0, 64, image.shape)
    return np.asarray(np.clip(levels.round(), 0, 65535), np.uint16)[None]


def shapes(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return ellipses with soft edges on a transparent ground, (4, SIZE, SIZE), colours not multiplied by alpha."""
    colours, alpha = np.zeros((3, SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for _ in range(int(rng.integers(3, 9))):
        cover = ellipse(rng, 18, rng.uniform(0.4, 3)) * rng.uniform(0.4, 1)
        shade = rng.uniform(0.1, 1, 3)[:, None, None] * (1 + 0.1 * fields(rng, 1, 6))
        whole = cover + alpha * (1 - cover)
        colours = (shade * cover + colours * alpha * (1 - cover)) / np.maximum(whole, 1e-6)
        alpha = whole
    planes = np.concatenate([colours * (alpha > 0.5 / 255), alpha[None]])
    return np.asarray(np.clip(planes * 255, 0, 255).round(), np.uint8)


def scene(rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return a scene (5, SIZE, SIZE) of classes of land with shared light, own texture of each band, and noise; 0 marks
    missing samples, in half of the scenes a spot in all bands or lines in one."""
    affinity = 4 * fields(rng, len(SPECTRA), rng.uniform(4, 9)) + rng.normal(0, 2, (len(SPECTRA), 1, 1))
    mixture = np.exp(affinity - affinity.max(axis=0))
    mixture /= mixture.sum(axis=0)
    reflectance = np.einsum("cb,chw->bhw", SPECTRA * rng.uniform(0.85, 1.15, SPECTRA.shape), mixture)
    reflectance *= 1 + 0.15 * fields(rng, 1, 2) + 0.04 * fields(rng, 5, 1.5)
    planes = np.clip(reflectance + rng.normal(0, 15, reflectance.shape), 1, 10000).round().astype(np.uint16)
    if (kind := rng.random()) < 0.25:
        planes[:, ellipse(rng, 9) > 0.5] = 0
    elif kind < 0.5:
        planes[rng.integers(5), rng.integers(0, SIZE, 2)] = 0
    return planes


def write_generated(folder: Path, count: int, pixels: PixelSpec, make: Callable[..., NDArray[Any]]) -> None:
    """Write `count` images, each from a seed of its own, of which one in eight is held out."""
    keys = [f"{number:04}" for number in range(count)]
    held_out = set(split_keys(keys, count // 8, seed=0)[1])
    kind = "npy" if pixels.meaning == "channels" else "png"
    for number, key in enumerate(keys):
        part = make_folder(folder / ("heldout" if number in held_out else "train"))
        with writing(part / f"{key}.{kind}") as temporary:
            temporary.write_bytes(encode_image(make(np.random.default_rng(number)), pixels, kind))


def copy_files(folder: Path, source: Path, count: int) -> None:
    """Copy `count` PNGs, of which one in eight is held out; both are chosen by hash, and variants of one emoji are
    on one side."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(source.glob("*.png")):
        groups.setdefault(VARIANT.sub("", path.stem), []).append(path)
    if len(groups) < 2:
        raise UserError(f"--rgba {source} must have two PNGs or more of different names, got {len(groups)}")
    keys = list(groups)
    held_out = set(split_keys(keys, max(len(keys) // 8, 1), seed=0)[1])
    for part, wanted in (("heldout", max(count // 8, 1)), ("train", count - max(count // 8, 1))):
        paths = [path for i, key in enumerate(keys) if (i in held_out) == (part == "heldout") for path in groups[key]]
        chosen = split_keys([path.name for path in paths], min(wanted, len(paths) - 1), seed=1)[1]
        for i in chosen or [0]:
            with writing(make_folder(folder / part) / paths[i].name) as temporary:
                temporary.write_bytes(paths[i].read_bytes())


def write_images(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Write `folder/train` and `folder/heldout` for a recipe, unless they exist."""
    if folder.exists():
        return
    if name == "rgba_f8" and options.rgba is not None:
        copy_files(folder, options.rgba, options.images)
    else:
        write_generated(folder, options.images, *GENERATED[name])


GENERATED: dict[str, tuple[PixelSpec, Callable[..., NDArray[Any]]]] = {
    "grey16_f8": (GREY16, phantom),
    "rgba_f8": (RGBA, shapes),
    "multispectral_f8": (BANDS, scene),
}
"""The recipes, the samples of their files, and the generator of one image."""


def train(name: str, folder: Path, data: Path, steps: int, overrides: list[str]) -> Path:
    """Train a recipe as users do, in a new process, and return the run's folder."""
    run = folder / "run"
    arguments = ["--config", str(recipe(f"{name}.yaml")), "--model.init_args.pretrained", START,
                 "--data.train", str(data / "train"),
                 "--data.resolution", str(SIZE), "--data.workers", "0", "--data.validation_images", "0",
                 "--training.batch_size", "8", "--training.max_steps", str(steps),
                 "--optimizer.warmup_steps", str(min(20, steps // 2)), "--optimizer.cooldown_steps", str(steps // 3),
                 "--training.ema_decay", "0.98", "--training.log_every", "10",
                 "--training.sample_every", str(steps), "--training.checkpoint_every", str(steps)]  # fmt: skip
    command = [sys.executable, "-m", "ldm_ae.cli", "train", *arguments, *overrides, "--out", str(run)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return run


def scores_of(model: Autoencoder, heldout: Path) -> dict[str, float]:
    """Return PSNR and SSIM, their parts, and `psnr CHANNEL` of each band, beside those of a bicubic thumbnail."""
    transform = ImageTransform(size=SIZE, pixels=model.pixel_spec)
    found = evaluate(
        model, EvaluationLoader(open_source(heldout), transform, batch_size=8), source=str(heldout),
        transform_description=transform.describe(), model_name="", metrics=named_metrics(METRICS), device="cpu",
    )  # fmt: skip
    channels: Any = found.details.get("psnr", {}).get("channels", {})
    return {**found.scores, **{f"psnr {channel}": value for channel, value in channels.items()}}


def write_picture(path: Path, models: list[Autoencoder], heldout: Path) -> None:
    """Write some held-out images and below them each model's reconstructions, as people see them; of bands in
    true colours, and in near infrared, red and green."""
    pixels = models[0].pixel_spec
    transform = ImageTransform(size=SIZE, pixels=pixels)
    source = open_source(heldout)
    spread = range(0, len(source), max(len(source) // SHOWN, 1))[:SHOWN]
    images = next(iter(EvaluationLoader(source, transform, batch_size=SHOWN, indices=spread))).pixel_values
    bands = ["near infrared", "red", "green"]
    false_colour = [Bands(bands=bands).of(pixels)] if {*bands} <= {*pixels.names} else []
    views: list[View | None] = [shown_view(pixels), *false_colour]
    with torch.no_grad():
        rows = [images, *(model.decode(model.encode(images).mode()) for model in models)]
    shown = [row if view is None else view.single(row) for view in views for row in rows]
    grid = torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1)
    with writing(path) as temporary:
        to_uint8_image(grid.clamp(-1, 1)).save(temporary, format="JPEG", quality=75, subsampling=0)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1024, help="images of each kind (default: %(default)s)")
    parser.add_argument("--rgba", type=Path, help="folder of PNGs with transparency (default: generated shapes)")
    parser.add_argument("--only", choices=GENERATED, action="append", help="train only this recipe (repeatable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images, the runs and the results")
    options, overrides = parser.parse_known_args()
    lines: list[str] = []
    for name in options.only or GENERATED:
        folder = make_folder(options.out / name)
        write_images(name, folder / "images", options)
        run = train(name, folder, folder / "images", options.steps, overrides)
        trained = load_autoencoder(run)
        start = KLAutoencoder(pretrained=START, pixels=trained.pixel_spec.to_json()).eval()
        heldout = folder / "images" / "heldout"
        before, after = (scores_of(model, heldout) for model in (start, trained))
        write_json(folder / "scores.json", {"before": before, "after": after})
        write_picture(folder / f"{name}.jpg", [start, trained], heldout)
        for key in (key for key in after if not key.startswith("bicubic_")):
            thumbnail = f"{after[f'bicubic_{key}']:.3g}" if f"bicubic_{key}" in after else ""
            lines.append(f"| {name} | {key} | {before[key]:.4g} | {after[key]:.4g} | {thumbnail} |")
    machine = machine_name(torch.device("cpu"))
    print(f"{options.steps} steps, {machine}, torch {torch.__version__}, commit {git_commit()}\n")
    print("| recipe | score | before | after | bicubic thumbnail |\n|---|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(exit_status(main, "other_images"))
