"""Indices of every size survive the store and the format tokens."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_ae.latents import LatentDataset
from ldm_ae.latents.conversion.convert import convert_store
from tests.latents.format_readers import read_tokens
from tests.latents.helpers import synthetic_store

SIZES = st.sampled_from([1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 2**31, 2**32])
SIDE = st.integers(1, 4).map(lambda places: 4 * places)


@settings(max_examples=8)
@given(SIZES, st.none() | st.integers(2, 3), SIDE, SIDE, st.booleans(), st.sampled_from(["safetensors", "npy"]))
def test_tokens_unpack_to_the_stored_indices(
    size: int, levels: int | None, height: int, width: int, flips: bool, files: Literal["safetensors", "npy"]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = synthetic_store(
            Path(folder) / "store", buckets={f"{height}x{width}": 2}, channels=1, flips=flips, shard=2, indices=True,
            codebook_size=size, codebook_levels=levels,
        )  # fmt: skip
        dataset = LatentDataset(content.path, draw="indices")
        convert_store(content.path, Path(folder) / "out", "tokens", files=files)
        read = read_tokens(Path(folder) / "out")
        assert len(read.indices_flip) == (2 if flips else 0)
        for i, tensors in enumerate(content.tensors):
            expected = tensors["indices"]
            assert expected.shape == (
                (height // 4, width // 4) if levels is None else (levels, height // 4, width // 4)
            )
            np.testing.assert_array_equal(read.indices[i], expected.numpy())
            assert 0 <= int(expected.long().min()) <= int(expected.long().max()) < size
            if not flips:  # a data set draws one of the two views
                assert torch.equal(dataset[i]["indices"], expected.long())
        for found, tensors in zip(read.indices_flip, content.tensors, strict=False):
            np.testing.assert_array_equal(found, tensors["indices_flip"].numpy())
