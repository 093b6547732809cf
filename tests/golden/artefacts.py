"""Runs and stores as an earlier commit wrote them, for `test_artefacts.py`.

    python -m tests.golden.artefacts NAME

trains the two runs of `inputs.CONFIGS` until they are stopped half way, encodes a store and half of another with the
first one's model, and packs them into `artefacts/NAME/`, which must be new: an artefact is what it is because nobody
writes it again. Before a format changes, add the artefacts of the last commit with the old one under another name, for
instance VERSION-COMMIT. Resuming is compared with `expected/losses`, which began with the same mathematics: a change of
these on purpose needs runs of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from ldm_ae.cli import main as ldm_ae
from tests.golden.inputs import CONFIGS, STOP, stop_at, train_golden, write_images

FOLDER = Path(__file__).parent / "artefacts"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
ENCODE = "--size 8 --workers 0 --batch-size 4 --shard-size 4 --seed 3 --device cpu"
"""Three shards of four images."""


def encode(model: Path, images: Path, store: Path) -> None:
    """Encode the images, or the remaining ones, as the artefacts' stores were."""
    assert ldm_ae(["encode", str(model), str(images), str(store), *ENCODE.split()]) == 0


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder's content without times, owners and the machine's name of the folder."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, 0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        for path in sorted(folder.rglob("*")):
            if path.name != ".lock":
                packed.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive of `pack` into a new folder."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


def unfinish(store: Path, finished: Path, units: int) -> None:
    """Check that `store` is `finished`, with only the first `units` shards."""
    shards = sorted(path.name for path in store.glob("*/*.safetensors"))
    assert shards == sorted(path.name for path in finished.glob("*/*.safetensors"))[:units]
    assert "files" not in json.loads((store / "store.json").read_text())


class _EnoughError(Exception):
    """Raised in place of a kill, after enough images."""


def encode_until(images: int, model: Path, source: Path, store: Path) -> None:
    """Encode until `images` are done, and stop there as a killed process does."""
    from unittest.mock import patch

    from ldm_ae.latents.store.writer import StoreWriter

    add_unit = StoreWriter.add_unit

    def count(self: StoreWriter, unit: int, *rest: object, **more: object) -> None:
        if len(self.indices(unit)) * unit >= images:
            raise _EnoughError
        add_unit(self, unit, *rest, **more)  # type: ignore[arg-type]

    with patch.object(StoreWriter, "add_unit", count):
        try:
            encode(model, source, store)
        except _EnoughError:
            return
    raise AssertionError("the encoding ended before it was stopped")


def write(name: str) -> None:
    """Write the artefacts of the present commit."""
    place = (FOLDER / name).resolve()
    place.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # so that config.yaml holds no path of this machine
        here = Path()
        write_images(here / "images")
        for run in CONFIGS:
            with stop_at(STOP):
                train_golden(run, here, here / "images")
            pack(here / run, place / f"{run}.tar.gz")
        model, stores = here / "kl_gan", here / "stores"
        encode(model, here / "images", stores / "finished")
        encode_until(4, model, here / "images", stores / "unfinished")
        unfinish(stores / "unfinished", stores / "finished", 1)
        pack(stores, place / "stores.tar.gz")


if __name__ == "__main__":
    # As in tests/conftest.py: the layout in memory is not measured, and one thread sums.
    os.environ.update(LDM_AE_BF16_SPEED="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    write(sys.argv[1])
