"""Measure how well each score of `ldm-ae outliers` finds images that are strange in a known way.

    python scripts/outliers.py MODEL IMAGES --out runs/outliers
    python scripts/outliers.py MODEL digits:test --against emoji=EMOJI photos=photos:heldout --out runs/outliers

Normal images are random crops of IMAGES; three times as many others are the reference. The strange ones are the normal
images with noise, blurred, and after JPEG at a low quality; black images, images of one random colour, and random
pixels; and images of the sources of --against. It prints the AUROC of each score for each kind of strange images, and
the mean over kinds. OUT/images has all images, OUT/outliers.json the numbers.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import ldm_ae
from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.data import ImageTransform, TrainingLoader, open_source
from ldm_ae.images.in_memory import to_uint8_image
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.io.files import require_new_folder, write_json, writing_folder
from ldm_ae.outliers import Outliers, auroc

REFERENCES = 3
"""Number of reference images for each normal one."""


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a standard deviation of a tenth of the range."""
    levels = np.asarray(image, dtype=np.float64) + rng.normal(scale=25.5, size=np.asarray(image).shape)
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))


def blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur with a radius of 2 pixels, of 1 in images below 32 pixels."""
    del rng
    return image.filter(ImageFilter.GaussianBlur(2 if image.width >= 32 else 1))


def compressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compress by JPEG at quality 10."""
    del rng
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert(image.mode)


def black(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a black image."""
    del rng
    return Image.new(image.mode, image.size)


def constant(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image of one random colour."""
    colour = tuple(rng.integers(0, 256, 3).tolist())
    return Image.new(image.mode, image.size, colour if image.mode == "RGB" else colour[0])


def static(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return uniformly random pixels."""
    return Image.fromarray(rng.integers(0, 256, np.asarray(image).shape, dtype=np.uint8))


STRANGE: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "noise": noisy, "blur": blurred, "jpeg": compressed, "black": black, "constant": constant, "static": static,
}  # fmt: skip


def crops(source: str, pixels: PixelSpec, count: int, *, size: int, resize: int | None, seed: int) -> list[Image.Image]:
    """Return random crops of the images of a source, all of which are used before one is used again."""
    transform = ImageTransform(size=size, resize=resize, crop="random")  # grey images may be made of coloured ones
    loader = TrainingLoader(open_source(source), transform, batch_size=count, seed=seed)
    (batch,) = next(iter(loader.steps()))
    images = [to_uint8_image(image) for image in batch.pixel_values]
    return [image.convert("L") for image in images] if pixels.meaning == "grey" else images


def write(images: Sequence[Image.Image], folder: Path) -> str:
    """Write images as numbered PNG files into a new folder and return it."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:04d}.png")
    return str(folder)


def measure(args: argparse.Namespace) -> None:
    """Make the images, score them, and print and write the AUROC."""
    require_new_folder(args.out, "the images and the results")
    if args.count < 2:
        raise UserError(f"--count is {args.count}; it must be at least 2")
    model = ldm_ae.load(args.model, device=args.device)
    size = args.size or model.sample_size
    if model.pixel_spec.meaning not in ("rgb", "grey"):
        raise UserError(f"the strange images are RGB or grey, but the model's are {model.pixel_spec}")
    others = [text.partition("=") for text in args.against]
    for name, equals, _ in others:
        if not equals or name in STRANGE:
            raise UserError(f"--against {name}: expected NAME=IMAGES with a new name, such as emoji=FOLDER")
    with writing_folder(args.out) as folder:
        drawn = crops(
            args.images, model.pixel_spec, (1 + REFERENCES) * args.count, size=size, resize=args.resize, seed=args.seed
        )  # fmt: skip
        normal, rng = drawn[: args.count], np.random.default_rng(args.seed)
        kinds = {name: [change(image, rng) for image in normal] for name, change in STRANGE.items()}
        for name, _, source in others:
            kinds[name] = crops(source, model.pixel_spec, args.count, size=size, resize=None, seed=args.seed)
        for name, images in kinds.items():
            write(images, folder / "images" / "strange" / name)
        found = ldm_ae.find_outliers(
            model, write(normal, folder / "images" / "normal"), size=size, prior=args.prior,
            reference=write(drawn[args.count :], folder / "images" / "reference"),
            against=folder / "images" / "strange",
        )  # fmt: skip
        areas = areas_of(found, list(kinds))
        write_json(folder / "outliers.json", {
            "auroc": areas, "skipped": found.skipped, "protocol": found.protocol | {"seed": args.seed},
        })  # fmt: skip
    report(areas, found.skipped)


def areas_of(found: Outliers, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the AUROC by score and kind, with the mean over kinds."""
    areas: dict[str, dict[str, float]] = {}
    for name, values in found.against_scores.items():
        rows = {kind: [i for i, key in enumerate(found.against_keys) if key.startswith(f"{kind}/")] for kind in kinds}
        areas[name] = {kind: auroc(found.scores[name], values[rows[kind]]) for kind in kinds}
        areas[name]["mean"] = sum(areas[name].values()) / len(kinds)
    return areas


def report(areas: dict[str, dict[str, float]], skipped: dict[str, str]) -> None:
    """Print the table, in Markdown."""
    kinds = list(next(iter(areas.values())))
    print(f"| score | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name, row in areas.items():
        print(f"| `{name}` | {' | '.join(f'{row[kind]:.2f}' for kind in kinds)} |")
    for name, why in skipped.items():
        print(f"{name} is skipped: {why}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Measure how well scores find images that are strange in a known way.")
    parser.add_argument("model", metavar="MODEL", help="MODEL, as for ldm-ae outliers")
    parser.add_argument("images", metavar="IMAGES", help="normal images, as for ldm-ae outliers")
    parser.add_argument("--out", required=True, help="new folder for the images and outliers.json")
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME=IMAGES", help="more strange images, with a "
                        "name for each source")  # fmt: skip
    parser.add_argument("--prior", metavar="FOLDER", help="prior over the model's codes")
    parser.add_argument("--count", type=int, default=64, help="number of images of each kind (default: %(default)s)")
    parser.add_argument("--size", type=int, help="side of the crops (default: the size of the model's training)")
    parser.add_argument("--resize", type=int, help="shorter side of normal images before the crop (default: the size)")
    parser.add_argument("--seed", type=int, default=0, help="seed of crops and noise (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        measure(build_parser().parse_args(argv))

    return exit_status(command, "outliers")


if __name__ == "__main__":
    sys.exit(main())
