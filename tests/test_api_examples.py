"""The examples with which the API pages of the documentation site begin run, and the site lists these packages."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import smooth_picture

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(package: str, **replaced: str) -> dict[str, Any]:
    """Run the example of a package and return its names."""
    (code,) = _BLOCK.findall(importlib.import_module(package).__doc__ or "")
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    namespace: dict[str, Any] = {}
    exec(compile(code, package, "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IMAGES").mkdir()
    for i in range(3):
        smooth_picture(i, 70, 64).save(f"IMAGES/{i}.png")
    smooth_picture(9, 70, 64).save("photo.jpg")


def test_example_of_the_package_runs() -> None:
    found = run("ldm_ae", **{"256": "64"})
    assert [image.size for image in found["images"]] == [(64, 64)]


def test_example_of_losses_runs() -> None:
    terms = run("ldm_ae.losses")["terms"]
    assert float(terms.rec_loss) == pytest.approx(0.05, abs=0.005)  # a tenth of the mean of |x| in [-1, 1]
    assert float(terms.nll) == pytest.approx(float(terms.rec_loss + terms.perceptual_loss))


def test_example_of_models_runs() -> None:
    assert run("ldm_ae.models")["reconstructions"].shape == (1, 3, 64, 64)


def test_example_of_data_runs() -> None:
    assert len(run("ldm_ae.data")["batch"]) == 1  # the last of three images in batches of two


def test_example_of_latents_runs() -> None:
    dataset = run("ldm_ae.latents")["dataset"]
    assert len(dataset) == 3
    assert dataset[0]["latents"].shape == (16, 8, 8)
