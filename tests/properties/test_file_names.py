"""Names of the files that conversions write: one for each image, inside the folder, or the conversion is refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentStore
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.file_names import file_stem, stem
from tests.latents.helpers import synthetic_store

# Keys in the index are valid Unicode. Names are short enough for every file system.
CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from("./\\ab")
KEY = st.text(CHARACTERS, min_size=1, max_size=12) | st.tuples(
    st.sampled_from(["a", "b", "..", ".", "a.b", "", "\\xff", "a/.."]),
    st.sampled_from(["x.png", "x.jpg", ".png", "..png"]),
).map("/".join)


@given(KEY)
@example("..png")
@example("a/...png")
@example("\0.png")
@example("../a.png")
@example("..\\a.png")
@example("/etc/passwd")
def test_output_file_stays_inside_the_folder(key: str) -> None:
    for name in (stem, file_stem):
        try:
            found = name(key)
        except UserError as error:
            assert str(error).isprintable()
            continue
        path = os.path.normpath(os.path.join("/folder", found + ".npz"))
        assert path.startswith("/folder/")
        assert "\0" not in path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Stores of 4 and of 16 channels, two images each."""
    folder = tmp_path_factory.mktemp("stores")
    for channels in (4, 16):
        synthetic_store(folder / str(channels), buckets={"8x8": 2}, channels=channels)
    return {channels: folder / str(channels) for channels in (4, 16)}


@settings(max_examples=20)
@given(st.lists(KEY, min_size=2, max_size=2, unique=True), st.sampled_from(["kohya", "musubi", "pixart"]))
@example(["a/x.png", "a/x.jpg"], "kohya")
@example(["a/x.png", "b/x.png"], "musubi")
@example(["a/x.png", "a_x.png"], "pixart")
def test_output_file_names_are_unique(stores: dict[int, Path], keys: list[str], kind: str) -> None:
    store = LatentStore(stores[16 if kind == "musubi" else 4])
    store._rows = store._rows.set_column(0, store._rows.schema.field(0), pa.chunked_array([keys]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        try:
            arch = {"kohya": "sd", "musubi": "zi", "pixart": None}[kind]
            convert_store(store, out, kind, arch=arch)
        except UserError as error:
            assert str(error).isprintable()
            written = 0
        else:
            written = len(store)
        found = [path for path in out.rglob("*") if path.suffix in (".npz", ".npy", ".safetensors")]
        assert len(found) == written
        assert list(Path(folder).iterdir()) == ([out] if written else [])
