"""The values that must be equal in a store and in a trainer's reading of its conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm_ae.latents import LatentDataset, LatentStore
from ldm_ae.latents.formats import FORMATS
from tests.latents.format_readers import Read
from tests.latents.helpers import Content

OPTIONS: dict[str, dict[str, Any]] = {"kohya": {"arch": "sdxl"}, "musubi": {"arch": "zi"}}
HELD: dict[str, dict[str, Any]] = {"tokens": {"indices": True, "codebook_size": 300}}
"""What a synthetic store must have, beyond latents and moments."""
WITH_IMAGES = sorted(name for name, kind in FORMATS.items() if "images" in kind.takes)
PLAIN = sorted(FORMATS.keys() - set(WITH_IMAGES))
"""Those that can be written of a synthetic store, which has no images."""
SCALED = ("datasetfolder", "fast-dit", "mds")
# float32 arithmetic on values up to about 10; float16 has a relative precision of 2**-11.
TOLERANCE: dict[str, dict[str, float]] = {"mds": {"rtol": 2**-11, "atol": 1e-6}}
DEFAULT_TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def content_of(path: Path) -> Content:
    """What lies in a store that an encoder wrote."""
    store, data = LatentStore(path), LatentDataset(path)
    rows = store.good().to_pylist()
    names = data.tensor_names & {
        f"{kind}{view}" for kind in ("latents", "moments", "indices") for view in ("", "_flip")
    }
    return Content(
        path=path, keys=[row["key"] for row in rows], labels=[row["label"] for row in rows],
        captions=[row["caption"] for row in rows], sizes=[(row["height"], row["width"]) for row in rows],
        tensors=[data.tensors(i, names) for i in range(len(data))],
    )  # fmt: skip


def positions_of(names: list[str], content: Content) -> list[int]:
    """Return the position in the store for each of a reader's names: a number, or a key with or without its folder."""
    found: dict[str, int] = {}
    for i, key in enumerate(content.keys):
        whole = key.removesuffix(".png")
        found.setdefault(whole, i)
        found.setdefault(Path(whole).name, i)
    return [found[name] if name in found else int(name) for name in names]


def expect(read: Read, content: Content, positions: list[int], *, scaled: bool, **tolerance: float) -> None:
    """Assert that the reader returns the values of the store's images at `positions`."""
    spec = LatentStore(content.path).spec

    def compare(found: list[np.ndarray], expected: list[torch.Tensor]) -> None:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(other.shape)
            np.testing.assert_allclose(one, other.float().numpy(), **tolerance)  # type: ignore[arg-type]

    held = [content.tensors[position] for position in positions]
    for view in ("", "_flip"):
        if latents := getattr(read, f"latents{view}"):
            values = [tensors[f"latents{view}"].float() for tensors in held]
            compare(latents, [spec.scale(value[None])[0] for value in values] if scaled else values)
        if means := getattr(read, f"mean{view}"):
            moments = [tensors[f"moments{view}"].float().chunk(2) for tensors in held]
            compare(means, [mean for mean, _ in moments])
            compare(getattr(read, f"std{view}"), [(0.5 * log_variance).exp() for _, log_variance in moments])
        if indices := getattr(read, f"indices{view}"):
            compare(indices, [tensors[f"indices{view}"].to(torch.int64) for tensors in held])
    for found, expected in ((read.labels, content.labels), (read.captions, content.captions)):
        assert not found or found == [expected[position] for position in positions]
