"""The benchmark and the validation of comparisons, in their short form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.models import KLAutoencoder, for_inference, fp32_fallbacks, load_autoencoder
from tests.pictures import write_class_folders

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture(autouse=True)
def path_of_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def save_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    model = KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    model.set_scaling(scaling_factor=1.1, shift_factor=0.0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [save_model(root / name, seed) for seed, name in enumerate(("one", "two", "three"))]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_class_folders(tmp_path_factory.mktemp("images")))


@pytest.mark.slow
def test_both_sides_of_the_benchmark_compute_the_same_scores(models: list[str], images: str, tmp_path: Path) -> None:
    import compare as benchmark

    four = benchmark.write_models(tmp_path, models[:2])
    assert four[:2] == models[:2]
    assert benchmark.write_models(tmp_path, models[:2]) == four
    work = benchmark.Work(four, images, tmp_path, 32, 5, 4, ("psnr",), "cpu")
    found = {variant.name: variant.build() for variant in benchmark.variants(work)}
    assert list(found) == ["2 evaluations", "comparison of 2", "4 evaluations", "comparison of 4"]
    results = {}
    for name in ("4 evaluations", "comparison of 4"):
        warm_up = [found[name]() for _ in range(benchmark.WARM_UP_CALLS)]
        results[name] = found[name]()
        assert len(warm_up) == 2
    alone = [evaluation.scores["psnr"] for evaluation in results["4 evaluations"]]
    compared = results["comparison of 4"]
    assert [model.scores["psnr"] for model in compared.models] == pytest.approx(alone)
    assert [len(evaluation.images) for evaluation in results["4 evaluations"]] == [5] * 4
    assert len(set(alone)) == 4
    assert compared.protocol["images"]["count"] == 5


def test_amplified_decoder_is_the_same_function_in_fp32_and_overflows_in_fp16(models: list[str]) -> None:
    import validation

    plain, amplified = load_autoencoder(models[0]), load_autoencoder(models[0])
    validation.amplify(validation.GAIN)(amplified)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.decode(latents)
        # The normalizations' epsilon of 1e-6 counts less beside larger activations.
        assert (amplified.decode(latents) - expected).abs().max() < 1e-3 * expected.abs().max()
        half = for_inference(amplified, device="cpu", precision="fp16")
        half.decode(latents)
    assert fp32_fallbacks(half) == 1


def found_scores(**scores: dict[str, float]) -> dict[str, Any]:
    infos = {"psnr": {"direction": "higher"}, "flow_loss": {"direction": "lower"}, "slope": {"direction": ""}}
    return {"models": {name: {"scores": found} for name, found in scores.items()}, "score_infos": infos}


def test_verdicts_of_the_validation_follow_direction_and_seeds() -> None:
    from validation import Expected, verdict

    found = found_scores(
        a={"psnr": 30.0, "flow_loss": 1.0, "slope": -2.0}, b={"psnr": 29.0, "flow_loss": 1.1, "slope": -1.0},
        plain={"psnr": 25.0, "flow_loss": 1.0},
    )  # fmt: skip
    found["models"]["plain, seed 1"] = {"scores": {"psnr": 25.5, "flow_loss": 1.2}}
    keys = ("psnr", "flow_loss", "slope")
    assert [verdict(Expected("a", "b", keys, ""), key, found) for key in keys] == ["right"] * 3
    assert [verdict(Expected("b", "a", keys, ""), key, found) for key in keys] == ["wrong"] * 3
    trained = Expected("a", "b", keys, "", trained=True)
    assert [verdict(trained, key, found) for key in keys] == ["right", "undecided", "right"]
    equal = Expected("a", "b", keys, "", equal=True)
    assert verdict(equal, "psnr", found) == "wrong"
    assert verdict(Expected("a", "a", keys, "", equal=True), "psnr", found) == "right"
    assert verdict(Expected("a", "plain", keys, ""), "slope", found) == "missing"


@pytest.mark.slow
def test_validation_ranks_models_of_known_order(
    models: list[str], images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import validation

    words = [
        "validation.py", "--images", images, "--continuous", models[0], "--discrete", models[1], "--plain", models[2],
        "--size", "32", "--diffusion", "0", "--made-images", "3",
        "--metrics", "psnr", "noise_tolerance",
        "--out", str(tmp_path),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    validation.main()
    found = json.loads((tmp_path / "validation.json").read_text())
    orders = {(row[0], row[1]): row[4] for row in found["orders"]}
    for name in (validation.LARGE, validation.SMALL, validation.OVERFLOWS):
        assert orders[f"{validation.CONTINUOUS} = {name}", "`psnr`"] == "right"
    assert orders[f"{validation.CONTINUOUS} before {validation.DISCRETE}", "`stlpips_vgg`"] == "missing"
    warnings = {(part, name): text for part, name, text in found["warnings"]}
    for name in (validation.LARGE, validation.SMALL):
        assert "where diffusion models expect 1" in warnings["made", name]
    assert "not safe in fp16" in warnings["made", validation.OVERFLOWS]
    assert "fp16 overflowed" in warnings["fp16", validation.OVERFLOWS]
    for part in ("made", "fp16"):
        assert warnings[part, validation.NOT_FINITE].startswith("failed: ")
        assert (part, validation.CONTINUOUS) not in warnings
    assert "| expected order | score |" in capsys.readouterr().out
