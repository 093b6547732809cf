"""The main job, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, DiffusionPipeline

from ldm_ae.inspection import inspect_path
from ldm_ae.quickstart import quickstart


@pytest.mark.slow
def test_quickstart_makes_everything_it_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart(tmp_path, steps=2, diffusion_steps=1)
    words = capsys.readouterr().out
    for name in ("index.html", "evaluation", "run", "model", "latents", "decoded", "pipeline"):
        assert (tmp_path / name).exists()
    page = (tmp_path / "index.html").read_text()
    for name in ("reconstructed", "shipped"):
        photos = list((tmp_path / name).rglob("*.png"))
        assert len(photos) == 3
        for path in photos:
            assert f'src="{path.relative_to(tmp_path).as_posix()}"' in page
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 8
    for name in ("run", "model", "latents"):
        assert inspect_path(tmp_path / name)["problems"] == []
    scores = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["scores"]
    assert scores["bicubic_psnr"] > 20  # the thumbnail is no straw man
    model = AutoencoderKL.from_pretrained(tmp_path / "model")
    assert model.config.scaling_factor != 1.0
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "pipeline")).__name__ == "LDMPipeline"
    assert "ldm-ae train --config" in words
