"""Checkpoints and stores: any byte that changes and any file that is missing or added is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ldm_ae.latents import verify_store
from ldm_ae.models import KLAutoencoder
from ldm_ae.training.checkpoints.checkpoint import problems, write_checkpoint
from ldm_ae.training.checkpoints.snapshot import Snapshot
from tests.latents.helpers import synthetic_store

Verify = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Verify]]:
    """A checkpoint and two stores, and the function that verifies each; tests leave them as they were."""
    folder = tmp_path_factory.mktemp("manifests")
    model = KLAutoencoder(block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False)
    write_checkpoint(folder / "step-00000001", Snapshot(
        step=1, models={"model": model}, networks={"part": nn.Linear(2, 2).state_dict()},
        state={"step": 1, "tensor": torch.arange(3)},
    ))  # fmt: skip
    synthetic_store(folder / "store", buckets={"8x8": 2, "8x16": 1}, channels=1)
    synthetic_store(folder / "codes", buckets={"8x8": 2}, channels=1, indices=True, codebook_size=5)
    found: dict[str, tuple[Path, Verify]] = {
        "checkpoint": (folder / "step-00000001", problems),
        "store": (folder / "store", verify_store),
        "codes": (folder / "codes", verify_store),
    }
    assert all(verify(path) == [] for path, verify in found.values())
    return found


KIND = st.sampled_from(["checkpoint", "store", "codes"])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@settings(max_examples=80)
@given(KIND, st.data())
def test_manifest_detects_any_changed_byte(
    folders: dict[str, tuple[Path, Verify]], kind: str, data: st.DataObject
) -> None:
    folder, verify = folders[kind]
    path = data.draw(st.sampled_from(files(folder)))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        found = verify(folder)
    finally:
        path.write_bytes(content)
    assert found
    assert all(line.isprintable() for line in found)
    assert verify(folder) == []


@given(KIND, st.data())
def test_manifest_detects_any_changed_length(
    folders: dict[str, tuple[Path, Verify]], kind: str, data: st.DataObject
) -> None:
    folder, verify = folders[kind]
    path = data.draw(st.sampled_from(files(folder)))
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    try:
        path.write_bytes(data.draw(st.sampled_from([content[:cut], content + b"\n", content + content])))
        assert verify(folder)
    finally:
        path.write_bytes(content)


@settings(max_examples=20)
@given(KIND, st.data())
def test_manifest_detects_a_missing_file(
    folders: dict[str, tuple[Path, Verify]], kind: str, data: st.DataObject
) -> None:
    folder, verify = folders[kind]
    path = data.draw(st.sampled_from(files(folder)))
    hidden = folder.parent / "hidden"
    shutil.move(path, hidden)
    try:
        assert verify(folder)
    finally:
        shutil.move(hidden, path)
    assert verify(folder) == []


NAME = st.text(st.sampled_from("abc012_- "), min_size=1, max_size=8)


@settings(max_examples=20)
@given(KIND, NAME, st.binary(max_size=8), st.data())
def test_manifest_detects_an_added_file(
    folders: dict[str, tuple[Path, Verify]], kind: str, name: str, content: bytes, data: st.DataObject
) -> None:
    """A store detects an added shard; other files do not belong to it."""
    folder, verify = folders[kind]
    parents = [path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith(".")]
    path = data.draw(st.sampled_from(parents)) / f"{name}.safetensors"
    path.write_bytes(content)
    try:
        assert any(path.name in line for line in verify(folder))
    finally:
        path.unlink()
