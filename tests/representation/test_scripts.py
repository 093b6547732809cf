"""The scripts that measure bound, disentanglement and usefulness run on tiny models and write what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm_ae.losses import Bernoulli
from ldm_ae.models import VectorAutoencoder
from ldm_ae.models.likelihoods import record_likelihood
from ldm_ae.representation.disentanglement import SCORES
from tests.scripts import load_script

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow  # commands on tiny models, seconds together


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random VAE of grey images of 16x16 pixels with three latents."""
    torch.manual_seed(0)
    network = VectorAutoencoder(pixels="grey", architecture="mlp", image_size=16, latent_channels=3, hidden=(16,))
    record_likelihood(network.net, Bernoulli())
    folder = tmp_path_factory.mktemp("model")
    network.save_pretrained(folder)
    return str(folder)


def test_bound_orders_the_bounds_and_draws_the_posterior(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("bound")
    few = "--images 3 --k 10 200 --ais-steps 20 --ais-chains 8 --optimizer-steps 20 --draws 10 --warmup 10 --device cpu"
    assert script.main([model, "digits:test", "--out", str(tmp_path / "out"), *few.split()]) == 0
    found = json.loads((tmp_path / "out" / "bound.json").read_text())
    rows = {name: row["nats"] for name, row in found["rows"].items()}
    assert rows["elbo"] < rows["iwae 200"]
    assert rows["gap"] == pytest.approx(rows["approximation gap"] + rows["amortization gap"], abs=1e-3)
    assert found["rows"]["elbo"]["bits_per_dimension"] == pytest.approx(-rows["elbo"] / 256 / 0.693147, rel=1e-4)
    assert (tmp_path / "out" / "posterior.png").read_bytes().startswith(b"\x89PNG")
    assert "bits/dim" in capsys.readouterr().out
    assert script.main([model, "digits:test", "--out", str(tmp_path / "other"), "--images", "0"]) == 2
    assert "--images must be at least 1" in capsys.readouterr().err


def test_bound_refuses_models_without_a_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VectorAutoencoder(pixels="grey", architecture="mlp", image_size=16, hidden=(8,)).save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "digits:test", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert load_script("bound").main(arguments) == 2
    assert "the model has no likelihood" in capsys.readouterr().err


def test_disentanglement_prints_every_score_of_a_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("disentanglement")
    arguments = [
        model,
        "--images",
        "sprites:400",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--jpeg-images",
        "9",
    ]
    assert script.main(arguments) == 0
    [scores] = json.loads((tmp_path / "out" / "disentanglement.json").read_text())["scores"].values()
    assert {*SCORES, "elbo", "rate", "error", "total_correlation", "active_units"} == scores.keys()
    assert all(0 <= scores[name] <= 1 for name in SCORES)
    assert (tmp_path / "out" / "rate_distortion.png").is_file()
    printed = capsys.readouterr().out
    assert all(title in printed for title in SCORES.values())
    assert script.main([model, "--images", "digits:test", "--out", str(tmp_path / "other")]) == 2
    assert "digits:test has no known factors" in capsys.readouterr().err
    assert script.main(["--out", str(tmp_path / "other")]) == 2
    assert "give models to score, or --config" in capsys.readouterr().err


def test_disentanglement_compares_the_runs_of_a_sweep() -> None:
    script = load_script("disentanglement")
    runs, found = [], {}
    for beta in (1.0, 4.0):
        for seed in (0, 1):
            run = script.Run(f"{beta} {seed}", "", beta, seed)
            runs.append(run)
            # The better weight for MIG is 4 with seed 0 and 1 with seed 1; the ELBO falls with the weight.
            found[run.name] = dict.fromkeys(SCORES, 0.5) | {
                "mig": 0.2 + 0.1 * ((beta == 4) == (seed == 0)),
                "elbo": -beta,
            }
    lines = script.lines_of_sweep(runs, found)
    [mig] = [line for line in lines if line.startswith("MIG") and "best" in line]
    assert mig.split()[1:] == [
        "1:",
        "0.250",
        "+-",
        "0.050",
        "4:",
        "0.250",
        "+-",
        "0.050",
        "best",
        "weight",
        "by",
        "seed:",
        "4,",
        "1",
    ]
    [ranks] = [line for line in lines if line.startswith("MIG") and "best" not in line]
    assert ranks.split() == ["MIG", "ELBO", "+0.00"]
    assert script.rank_correlation(runs, found, "elbo", "elbo") == pytest.approx(1.0)
    figure = script.sweep_figure(runs, found)
    assert [len(axes.lines) for axes in figure.axes] == [2] * 8


def test_usefulness_scores_latents_beside_pixels(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("usefulness")
    arguments = [
        model, "--train", "digits:train", "--test", "digits:test", "--out", str(tmp_path / "out"),
        *["--train-limit", "120", "--test-limit", "100", "--labels", "20", "1000", "--steps", "3"],
        *["--diffusion-steps", "2", "--device", "cpu"],
    ]  # fmt: skip
    assert script.main(arguments) == 0
    scores = json.loads((tmp_path / "out" / "usefulness.json").read_text())["scores"]
    assert {"probe 20", "probe 120", "knn", "nmi", "ari"} == scores["pixels"].keys()
    assert scores[model].keys() == scores["pixels"].keys() | {"cas gaussian", "cas diffusion", "reconstructed", "real"}
    assert scores["pixels"]["probe 120"] > 0.7
    assert "knn" in capsys.readouterr().out
