"""Real images into a store with kills in between, then into every trainer's format and back.

The images are crops of photos, in class folders, with captions beside them. `ldm-ae encode` is killed and given again
until the store is complete (row 2's trial, by its functions). Then `verify` must find nothing; mean and standard
deviation of each channel must be those of one float64 computation over all latents within 1e-6 relative; and what each
format's reader gets, written in the tests from the trainers' own, must be what the store holds. What `convert --format
store` reads back must hold the same latents. `tokens` is written of a second store, of a discrete model's indices.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kill_encoding import SHARD, kill_until_done
from PIL import Image
from trials import Trial, arguments

from ldm_ae.data import decode_image, open_source
from ldm_ae.latents import LatentDataset, LatentStore, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.import_store import import_latents
from ldm_ae.latents.formats import FORMATS
from ldm_ae.models import KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ
from runs import run

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.latents import format_contract as contract
from tests.latents.format_readers import READERS

SIZE = 32
CLASSES = 10
RELATIVE = 1e-6
"""Allowed between the store's statistics, merged shard by shard, and one computation over all latents."""
BACK = ("lightningdit", "edm2-zip")
MODEL = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def main() -> int:
    """Run it from the command line."""
    parser = arguments(__doc__, trials=10)
    parser.add_argument("--images", type=int, default=2000, help="number of crops (default: %(default)s)")
    parser.add_argument("--photos", default="photos:train", help="IMAGES to crop (default: %(default)s)")
    options = parser.parse_args()
    trial = Trial(2, f"{options.images} real images, killed during encoding, converted to {len(FORMATS)} formats "
                  "and back",
                  "the store is valid, its statistics are correct, and every reader gets its latents")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store, codes = encode(trial, Path(folder), options.photos, options.images, options.trials, options.seed)
        check(trial, "statistics", compare_statistics, store)
        for name in sorted(FORMATS):
            check(trial, name, compare_format, codes if name == "tokens" else store, name, Path(folder))
        for name in BACK:
            check(trial, f"back from {name}", compare_back, store, name, Path(folder))
    return trial.finish(options.json)


def encode(trial: Trial, folder: Path, photos: str, images: int, kills: int, seed: int) -> tuple[Path, Path]:
    """The store, made with kills in between, and another model's store of indices, made without."""
    cut(photos, folder / "images", images)
    torch.manual_seed(seed)
    KLAutoencoder(**MODEL).save_pretrained(folder / "model")
    VQAutoencoder(**MODEL, quantizer=VQ(512, 4)).save_pretrained(folder / "vq")
    options = ["--size", str(SIZE), "--shard-size", str(SHARD), "--batch-size", "8", "--device", "cpu"]
    log, store, codes = folder / "log", folder / "store", folder / "codes"
    started = time.monotonic()
    assert run(["encode", str(folder / "vq"), str(folder / "images"), str(codes), *options], log) == [0]
    seconds = time.monotonic() - started
    command = ["encode", str(folder / "model"), str(folder / "images"), str(store), *options]
    done, broken = kill_until_done(command, store, log, 1, kills, seconds, random.Random(seed))
    problems = verify_store(store)
    complete = len(LatentStore(store)) == images
    trial.count(not broken and not problems and complete, f"store: {broken[:3]}, {problems[:3]}, complete: {complete}")
    trial.figures["kills"] = len(done)
    return store, codes


def cut(photos: str, folder: Path, count: int) -> None:
    """`count` crops at places drawn by chance, with captions beside them."""
    source, places = open_source(photos), random.Random(0)
    decoded = [decode_image(source[i].data) for i in range(min(len(source), count))]
    for i in range(count):
        photo = decoded[i % len(decoded)]
        left, top = places.randrange(photo.width - SIZE + 1), places.randrange(photo.height - SIZE + 1)
        path = folder / f"class-{i % CLASSES}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop: Image.Image = photo.crop((left, top, left + SIZE, top + SIZE))
        crop.save(path, compress_level=1)
        path.with_suffix(".txt").write_text(f"a piece of photo {i % len(decoded)}", encoding="utf-8")


def check(trial: Trial, name: str, compare: Callable[..., None], *arguments: object) -> None:
    """Count whether it goes through."""
    try:
        compare(*arguments)
    except (AssertionError, OSError, ValueError) as error:
        trial.count(False, f"{name}: {str(error)[:500]}")
    else:
        trial.count(True, name)


def compare_statistics(path: Path) -> None:
    """The store's against one float64 computation."""
    store, data = LatentStore(path), LatentDataset(path)
    latents = np.stack([data[i]["latents"].double().numpy() for i in range(len(data))])
    statistics = store.statistics
    for found, expected in (
        (statistics.channel_mean, latents.mean(axis=(0, 2, 3))),
        (statistics.channel_std, latents.std(axis=(0, 2, 3))),
    ):
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=RELATIVE, atol=0)


def converted(name: str, folder: Path) -> Path:
    """Where the files of that format lie."""
    return folder / (f"{name}.zip" if name == "edm2-zip" else name)


def compare_format(path: Path, name: str, folder: Path) -> None:
    """What the trainer's reader gets against what the store holds."""
    out = converted(name, folder)
    images = open_source(folder / "images") if "images" in FORMATS[name].takes else None
    convert_store(path, out, name, images=images, **contract.OPTIONS.get(name, {}))
    content, read = contract.content_of(path), READERS[name](out)
    positions = contract.positions_of(read.names, content)
    assert sorted(positions) == list(range(len(content.keys))), "images are missing or duplicated"
    tolerance = contract.TOLERANCE.get(name, contract.DEFAULT_TOLERANCE)
    contract.expect(read, content, positions, scaled=name in contract.SCALED, **tolerance)


def compare_back(path: Path, name: str, folder: Path) -> None:
    """A store made of the converted files against the store that they were made of."""
    back = folder / f"back-{name}"
    import_latents(converted(name, folder), back)
    assert verify_store(back) == []
    first, second = LatentDataset(path, draw="mode"), LatentDataset(back, draw="mode")
    assert first.store.good()["key"].to_pylist() == second.store.good()["key"].to_pylist()
    for i in range(len(first)):
        torch.testing.assert_close(second[i]["latents"], first[i]["latents"], rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    sys.exit(main())
