"""The benchmarks of objectives and of distilled decoders: valid variants, and numbers that are what they are called."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae import discriminators, regularizers
from ldm_ae.discriminators import DISCRIMINATORS
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.images.uint8 import rounded
from ldm_ae.models import KLAutoencoder, load_autoencoder
from ldm_ae.regularizers import REGULARIZERS
from ldm_ae.training.configuration.parsing import config_parser, parse_config
from ldm_ae.training.run import build_config
from tests.processes import fork_commands

pytestmark = pytest.mark.slow  # each builds networks or trains

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"
NOT_COMPARED = {
    "AdditiveNoise", "Chain", "Distillation", "EndToEnd", "Identity",  # for other purposes, or without a weight alone
    "BetaTCVAE", "FactorVAE", "Mode",  # for vectors of latents
    "DINODiscriminator",  # needs weights of a hub
}  # fmt: skip


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import objectives

    return objectives


def test_comparison_of_objectives_includes_every_regularizer_and_discriminator(objectives: Any) -> None:
    compared = {name for name, _, _ in objectives.REGULARIZERS.values() if name is not None}
    compared |= {name for name, _, _ in objectives.DISCRIMINATORS.values()}
    every = {cls.__name__ for registry in (REGULARIZERS, DISCRIMINATORS) for cls in registry.classes()}
    ours = {name for name in every if hasattr(regularizers, name) or hasattr(discriminators, name)}
    assert compared == ours - NOT_COMPARED


def test_every_compared_objective_can_be_built(objectives: Any, tmp_path: Path) -> None:
    options = argparse.Namespace(steps=10, train="photos:train", size=64)
    parser = config_parser()
    for name in objectives.variants():
        objectives.write_recipe(name, tmp_path / "recipe.yaml")
        arguments = [*objectives.arguments_of(options, tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
        run = build_config(parse_config(arguments, parser), parser)
        assert (run.discriminator is None) == (name in objectives.REGULARIZERS)
        terms = objectives.REGULARIZERS[name][2] if name in objectives.REGULARIZERS else {"kl": 1e-6}
        assert run.objective.regularization_weights == terms


def test_an_objective_is_scored_once_and_kept(
    objectives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import short_runs

    fork_commands(monkeypatch, short_runs, tmp_path / "log")
    words = (
        "objectives.py --train photos:train --test photos:heldout --steps 2 --diffusion-steps 2 --samples 4 --size 32"
    )
    fast = "--model.init_args.block_out_channels [16,16,16] --model.init_args.norm_num_groups 4 --training.batch_size 2"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(tmp_path), "--only", "none", *fast.split()])
        objectives.main()
    row = capfd.readouterr().out.splitlines()[-1]
    found = json.loads((tmp_path / "objectives.json").read_text())["none"]
    assert row.startswith(f"| none | {found['psnr']:.2f} |")
    losses = [found[f"flow_loss_{level}"] for level in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert found["flow_loss"] == pytest.approx(sum(losses) / len(losses))
    assert found["step_time"] == 1.0
    assert math.isfinite(found["sample_frechet_efficientnet_lite0"])


def test_students_decode_the_teachers_latents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import students
    from short_runs import Protocol

    names = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        KLAutoencoder.example("AutoencoderKL").save_pretrained(tmp_path / str(seed))
        names.append(str(tmp_path / str(seed)))
    protocol = Protocol("photos:heldout", 32, limit=3)
    found = students.measure(names, protocol, "fp32", torch.device("cpu"))
    teacher, student = map(load_autoencoder, names)
    expected = []
    with torch.inference_mode():
        for batch in protocol.loader():
            latents = student.unscale(teacher.scale(teacher.encode(batch.pixel_values).mode()))
            expected.append(psnr(rounded(student.decode(latents)), rounded(batch.pixel_values)))
    assert found[names[1]]["psnr"] == pytest.approx(float(torch.cat(expected).mean()), abs=1e-3)
    assert found[names[0]]["psnr"] != found[names[1]]["psnr"]
    assert found[names[0]]["ratio"] == 1.0
    assert found[names[1]]["ratio"] > 0
