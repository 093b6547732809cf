"""Reading latents in random order for a trainer: `LatentDataset` against an .npz file for each image.

Both hold samples of 256² images at factor 8, (4, 32, 32) float32, and those of their mirror images. The files are in
the machine's memory after the first call, so the result is the cost of the reading itself. *loader* is a DataLoader
with batches of 64 and one worker process.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measuring
import numpy as np
import torch
from measuring import Variant
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm_ae.core.errors import exit_status
from ldm_ae.latents import LatentDataset
from ldm_ae.latents.store.format import StoreRequest
from ldm_ae.latents.store.provenance import scaling_of
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import LatentSpec, hash_json

SHARD = 256


def make_store(path: Path, count: int) -> Path:
    """Make a store of random latents, once."""
    spec = LatentSpec(channels=4, downsample_factor=8, scaling_factor=1.0)
    request = StoreRequest(
        source="random", images=count, keys_hash="", model_hash="0" * 64, model_config={}, scaling=scaling_of(spec),
        transform={}, transform_hash=hash_json({}), dtype="fp32", precision="fp32", latents="sample", flips=True,
        seed=0, batch_size=1, shard_size=SHARD, content="samples",
    )  # fmt: skip
    writer = StoreWriter(path, request)
    if writer.complete:
        return path
    generator = torch.Generator().manual_seed(0)
    for unit in range(writer.units):
        indices = writer.indices(unit)
        latents = torch.randn(2, len(indices), 4, 32, 32, generator=generator)
        sizes = torch.full((len(indices), 2), 256)
        tensors = {
            "latents": latents[0], "latents_flip": latents[1], "labels": torch.tensor(indices) % 1000,
            "index": torch.tensor(indices), "original_size": sizes,
            "crop_ltrb": torch.cat([torch.zeros_like(sizes), sizes], dim=1),
        }  # fmt: skip
        rows = [
            {"key": f"{index:06d}.jpg", "source": "random", "height": 256, "width": 256, "crop": [0, 0, 256, 256],
             "label": index % 1000, "bucket": "256x256", "status": "ok"}
            for index in indices
        ]  # fmt: skip
        writer.add_unit(unit, {"256x256": tensors}, rows)
    writer.finish()
    return path


def make_files(folder: Path, store: Path) -> Path:
    """Write the same latents as .npz files, once."""
    if folder.exists():
        return folder
    data = LatentDataset(store)
    folder.mkdir()
    for position in range(len(data)):
        found = data.tensors(position, ("latents", "latents_flip", "labels"))
        np.savez(folder / f"{position:06d}.npz", **{name: value.numpy() for name, value in found.items()})
    return folder


class Files(Dataset[dict[str, object]]):
    """A file for each image, as a plain script reads it."""

    def __init__(self, folder: Path):
        self._files = sorted(folder.glob("*.npz"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, object]:
        with np.load(self._files[index]) as content:
            return {"latents": torch.from_numpy(content["latents"]), "label": int(content["labels"])}


def one_by_one(data: Dataset[dict[str, object]]) -> Tensor:
    """Read each sample once in random order; return the sum of their first values, to compare two ways."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return torch.stack([data[i]["latents"][0, 0, 0] for i in order.tolist()]).double().sum()  # type: ignore[index]


def through_a_loader(data: Dataset[dict[str, object]]) -> Tensor:
    """Read the same in batches from a worker process."""
    loader = DataLoader(data, batch_size=64, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(0))
    return torch.cat([batch["latents"][:, 0, 0, 0] for batch in loader]).double().sum()


def variants(folder: Path, count: int) -> list[Variant]:
    """Return both ways, one by one and through a loader."""

    def build(way: Callable[[Dataset[dict[str, object]]], Tensor], ours: bool) -> Callable[[], Tensor]:
        store = folder / "store"
        data: Dataset[dict[str, object]] = LatentDataset(store) if ours else Files(folder / "npz")
        return partial(way, data)

    found = []
    for words, way, target in (("", one_by_one, 5.0), (", loader", through_a_loader, None)):
        base = f".npz for each image{words}"
        found.append(Variant(base, partial(build, way, ours=False), images=count))
        found.append(Variant(f"ours{words}", partial(build, way, ours=True), base, target=target, images=count))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--images", type=int, default=5000, help="number of images (default: 5000)")
    parser.add_argument("--scratch", help="folder of the latents (default: a temporary one)")
    options = parser.parse_args()
    title = f"Reading {options.images:,} latents of (4, 32, 32) float32 in random order"
    if options.scratch is not None:
        measuring.run(title, variants(Path(options.scratch), options.images), options)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder) / "npz", make_store(Path(folder) / "store", options.images))
        sys.argv += ["--scratch", folder]
        measuring.run(title, variants(Path(folder), options.images), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "read_latents"))
