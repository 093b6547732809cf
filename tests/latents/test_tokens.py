"""Sequences of codes: order, width, mirror images, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.store.files import look_at
from tests.latents.format_readers import Read, read_tokens
from tests.latents.helpers import Content, encode, synthetic_store
from tests.latents.test_indices import discrete


def expect(read: Read, content: Content, *, flips: bool = True) -> None:
    assert read.names == [str(i) for i in range(len(content.keys))]
    assert read.labels == content.labels
    for found, name in ((read.indices, "indices"), (read.indices_flip, "indices_flip")):
        assert len(found) == (len(content.keys) if flips or name == "indices" else 0)
        for one, tensors in zip(found, content.tensors, strict=False):
            np.testing.assert_array_equal(one, tensors[name].numpy())


@pytest.mark.parametrize("files", ["safetensors", "npy"])
@pytest.mark.parametrize("codebook", [{"codebook_size": 65536}, {"codebook_size": 65537, "codebook_levels": 3}])
def test_token_files_contain_every_sequence(
    codebook: dict[str, Any], files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64x32 pixels are 16 rows of 8 columns, so that rows and columns cannot be confused."""
    content = synthetic_store(tmp_path / "store", buckets={"64x32": 7}, indices=True, **codebook)
    monkeypatch.setattr("ldm_ae.latents.formats.tokens._TOKENS", 5 * 128 * codebook.get("codebook_levels", 1))
    summary = convert_store(content.path, tmp_path / "out", "tokens", files=files)
    assert (summary.images, summary.warnings) == (7, [])
    assert len(list((tmp_path / "out").glob(f"tokens_*.{files}"))) == 4  # 14 sequences, two pairs a shard
    expect(read_tokens(tmp_path / "out"), content)


def test_tokens_are_ordered_by_place_then_level(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", indices=True, codebook_size=300, codebook_levels=2, shard=7)
    convert_store(content.path, tmp_path / "out", "tokens", no_flips=True)
    shard = load_file(tmp_path / "out/tokens_00000.safetensors")
    indices = content.tensors[3]["indices"]
    expected = [indices[0, 0, 0], indices[1, 0, 0], indices[0, 0, 1], indices[1, 0, 1]]
    assert shard["tokens"][3][:4].tolist() == [int(value) for value in expected]
    assert shard["tokens"].shape == (7, 128)


def test_no_flips_omits_mirror_images(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", indices=True, codebook_size=300)
    convert_store(content.path, tmp_path / "out", "tokens", no_flips=True)
    expect(read_tokens(tmp_path / "out"), content, flips=False)
    content = synthetic_store(tmp_path / "plain", indices=True, codebook_size=300, flips=False)
    assert convert_store(content.path, tmp_path / "plain out", "tokens").warnings == []
    expect(read_tokens(tmp_path / "plain out"), content, flips=False)


def test_unsupported_token_conversions_are_refused(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "latents")
    with pytest.raises(UserError, match=r"holds indices, and .* has none; encode with a discrete model"):
        convert_store(content.path, tmp_path / "out", "tokens")
    with pytest.raises(UserError, match="--no-flips has no effect in the format mar; remove it"):
        convert_store(content.path, tmp_path / "out", "mar", no_flips=True)
    content = synthetic_store(tmp_path / "store", indices=True, codebook_size=2**40)
    with pytest.raises(UserError, match="has 32 bits, but the codebook has 1099511627776 codes"):
        convert_store(content.path, tmp_path / "out", "tokens")
    with pytest.raises(UserError, match="--fold has no effect in the format tokens: codes have no scale; remove it"):
        convert_store(content.path, tmp_path / "out", "tokens", fold=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["uint16", "levels"])
def test_convert_command_writes_tokens(
    kind: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command converts a store of only indices."""
    encode(discrete(kind), image_folder, tmp_path / "store", content="lean")
    assert main(["convert", str(tmp_path / "store"), str(tmp_path / "out"), "--format", "tokens"]) == 0
    assert "12 images for tokens" in capsys.readouterr().out
    data = LatentDataset(tmp_path / "store", draw="indices")
    read = read_tokens(tmp_path / "out")
    found = torch.stack([torch.from_numpy(indices) for indices in read.indices])
    stored = torch.stack([data[int(name)]["indices"] for name in read.names])
    assert torch.equal(found, stored)
    assert len(read.indices_flip) == 12
    again = ["convert", str(tmp_path / "store"), str(tmp_path / "npy"), "--format", "tokens", "--files", "npy"]
    assert main([*again, "--no-flips"]) == 0
    assert look_at(tmp_path / "npy/tokens_00000.npy").size == 128 + 2 * 12 * 256 * (3 if kind == "levels" else 1)
    about = json.loads((tmp_path / "npy/ldm_ae.json").read_text())["tokens"]
    assert (about["height"], about["width"], about["levels"]) == (16, 16, 3 if kind == "levels" else 1)
