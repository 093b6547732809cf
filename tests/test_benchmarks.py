"""The benchmarks at toy size: both sides of each comparison still run, and still compute the same thing."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm_ae.core.precision import SPEED_VARIABLE
from ldm_ae.models import Autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from tests.processes import fork_commands

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"
RECIPES = Path(__file__).parents[1] / "configs"
CPU = torch.device("cpu")
# Two float32 implementations that add the same numbers in another order, through a few dozen layers.
FLOAT32 = 1e-4


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A setting of two narrow levels, 32 pixels, SqueezeNet features."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv(SPEED_VARIABLE, "2")  # the bfloat16 variants are there on every machine
    from training_step import Setting

    return Setting((32, 64), 32, 2, CPU, layers_per_block=1, net="squeeze")


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("original_order", [False, True])
def test_training_step_and_textbook_take_the_same_step(toy: Any, original_order: bool) -> None:
    import training_step

    parts, own_call = training_step.own(toy)
    textbook = training_step.Textbook(toy, original_order=original_order)
    before = [p.detach().clone() for p in textbook.autoencoder.parameters()]
    # Adam's first update is the sign of the gradient, whatever its size; plain descent shows the size too.
    for optimizers, nets in (
        (own_call.args[1], (parts.plain_autoencoder, parts.plain_discriminator)),
        (textbook.optimizers, (textbook.autoencoder, textbook.discriminator)),
    ):
        optimizers[:] = [torch.optim.SGD(net.parameters(), lr=1e-4) for net in nets]
    own_call()
    textbook.step()
    pairs = [(parts.plain_autoencoder, textbook.autoencoder)]
    if not original_order:  # there the discriminator sees what the updated autoencoder makes
        pairs.append((parts.plain_discriminator, textbook.discriminator))
    for mine, theirs in pairs:
        for ours, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(ours, other, rtol=FLOAT32, atol=FLOAT32)
    moved = [(p - old).abs().max() for p, old in zip(textbook.autoencoder.parameters(), before, strict=True)]
    assert max(moved) > 10 * FLOAT32


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderDC", "AutoencoderTiny", "AutoencoderKLWan"])
def test_class_benchmark_compares_the_same_outputs(name: str, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import classes

    def example(name: str) -> Autoencoder:
        torch.manual_seed(0)
        return AUTOENCODERS[name].example(name).eval()

    monkeypatch.setattr(classes, "build", example)
    found = {variant.name: variant.build() for variant in classes.variants(name, 32, CPU)}
    assert len(found) == 6
    own, theirs = found["decode: ours fp32"](), found["decode: diffusers fp32"]()
    assert torch.allclose(own, theirs.sample.reshape(own.shape), rtol=FLOAT32, atol=FLOAT32)  # type: ignore[attr-defined]
    theirs = found["encode: diffusers fp32"]()
    latents = theirs.latent_dist.mode() if hasattr(theirs, "latent_dist") else theirs[0]  # type: ignore[index]
    own = found["encode: ours fp32"]()
    assert torch.allclose(own, latents.reshape(own.shape), rtol=FLOAT32, atol=FLOAT32)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["variants", "term_variants"])
def test_adaptive_step_and_textbook_give_the_same_gradients(toy: Any, at: str) -> None:
    import adaptive_step

    found = {v.name: v.build() for v in getattr(adaptive_step, at)(toy)}
    results = {}
    for name, call in found.items():
        call()
        results[name] = gradients(call.args[0].plain_autoencoder)
        assert gradients(call.args[0].plain_discriminator) == []
    largest = max(
        gradient.norm() for gradient in results["textbook"]
    )  # some, such as a key's bias, consist of rounding only
    for mine, textbook in zip(results["adaptive"], results["textbook"], strict=True):
        assert (mine - textbook).norm() <= FLOAT32 * textbook.norm() + 1e-6 * largest
    assert any(not torch.allclose(a, b) for a, b in zip(results["fixed"], results["adaptive"], strict=True))


def test_loop_and_fused_update_give_the_same_averages(toy: Any) -> None:
    import averages

    loop, power = averages.Loop(toy), averages.PowerEMA(model := averages.placed(toy), averages.LENGTHS, None)
    for step in (1000, 1001):
        with torch.no_grad():
            for mine, parameter in zip(loop.current, model.parameters(), strict=True):
                mine.add_(1.0)
                parameter.add_(1.0)
        loop()
        power.update(step - 1)
    for length, weights in power.copied().averages.items():
        for mine, theirs in zip(weights.values(), loop.averages[length], strict=True):
            assert torch.allclose(mine, theirs, rtol=FLOAT32)
    for variant in averages.variants(toy):
        variant.build()()


def test_every_regularizer_takes_a_step(toy: Any) -> None:
    import regularizers as benchmark

    from ldm_ae.regularizers import REGULARIZERS

    for name, (build, _) in benchmark.REGULARIZERS.items():
        assert REGULARIZERS.by_short_name(name) is type(build())
    other = {"Chain", "Distillation", "EndToEnd", "Identity"}  # of several, or for other trainings
    other |= {"BetaTCVAE", "FactorVAE", "Mode"}  # for vectors of latents
    assert len(benchmark.REGULARIZERS) == len({cls.__name__ for cls in REGULARIZERS.classes()} - other)
    # A quarter of the side is large enough for the perceptual network.
    for variant in benchmark.variants(toy._replace(size=80, batch=1)):
        variant.build()()


def test_perceptual_variants_give_the_same_results(toy: Any) -> None:
    import perceptual

    base, *ours = [v.build()() for v in perceptual.variants("squeeze", 1, 32, CPU)]
    assert torch.allclose(ours[0][0], base[0], rtol=FLOAT32)
    assert torch.allclose(ours[0][1], base[1], rtol=FLOAT32, atol=FLOAT32 * float(base[1].abs().max()))
    error, cosine = perceptual.bfloat16_error("squeeze", 32, CPU)
    assert 0 < error < 0.02
    assert 0.95 < cosine < 1


def test_every_other_perceptual_loss_is_measured_against_lpips() -> None:
    import perceptual

    base, *others = perceptual.variants_of_losses(1, 176, CPU)
    assert {other.against for other in others} == {base.name}
    assert len(others) == len(perceptual.LOSSES)
    assert len(perceptual.variants_of_losses(1, 64, CPU)) == len(others)  # MS-SSIM needs larger images
    for variant in others:
        if variant.name.startswith(("1 - ", "EfficientNet")):
            distance, gradient = variant.build()()
            assert distance > 0
            assert gradient.abs().max() > 0


def test_encode_and_decode_variants_give_the_same_results(toy: Any) -> None:
    import encode

    results = {v.name: v.build()() for v in encode.variants(toy)}
    for task in ("encode", "decode"):
        expected = results[f"{task}: diffusers fp32"]
        assert torch.allclose(results[f"{task}: ours fp32"], expected, atol=FLOAT32)
        if (half := results.get(f"{task}: ours bf16")) is not None:
            assert (half - expected).norm() < 0.03 * expected.norm()  # bfloat16 keeps 8 bits, over a dozen layers


@pytest.mark.parametrize("training", [True, False])
def test_layouts_give_the_same_results(toy: Any, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import layouts

    monkeypatch.setitem(layouts.NETWORKS, "toy", {"block_out_channels": (32, 32), "layers_per_block": 1})
    names = [variant.name for variant in layouts.variants("toy", 16, 1, CPU)]
    assert len(names) == 9
    assert {"train bf16 channels-last", "train fp32 channels-last, Winograd"} < set(names)
    passes = [
        layouts.build("toy", 16, 1, CPU, "fp32", placement, training)
        for placement in layouts.placements(CPU, "fp32", training=False).values()
    ]
    closures = [inspect.getclosurevars(call.__wrapped__ if not training else call).nonlocals for call in passes]
    outputs = [found["model"].decode(found["model"].encode(found["images"]).mode()) for found in closures]
    assert torch.allclose(*outputs, rtol=FLOAT32, atol=FLOAT32)
    assert outputs[0].is_contiguous()
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    for call in passes:
        call()
    if training:
        assert all(parameter.grad is not None for parameter in closures[1]["model"].parameters())


def test_convolutions_give_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import convolutions

    found = [convolutions.build(1, 256, 32, placement)() for placement in convolutions.WAYS.values()]
    for results in found[1:]:
        for result, right in zip(results, found[0], strict=True):
            assert (result - right).norm() < 1e-5 * right.norm()
    assert [variant.against for variant in convolutions.variants(["1x8x16"])] == [None] + [
        "1x8x16 torch, plain rows"
    ] * 2


def test_gpu_variants_are_built_and_run(toy: Any) -> None:
    import gpu

    half = toy._replace(precision="bf16")
    found = gpu.variants(half, half, compiled=True)
    assert [v.name for v in found if "compiled" not in v.name] == [
        f"{task}: {side} bf16" for task in ("train", "encode", "decode") for side in ("diffusers", "ours")
    ]
    for variant in found:
        if "compiled" not in variant.name:
            variant.build()()


def test_nearest_code_searches_give_the_same_results(toy: Any) -> None:
    import nearest_code

    found = {v.name: v.build()() for v in nearest_code.variants(500, 64, 8, CPU)}
    assert list(found) == ["ours D=8", "taming D=8", "vector-quantize-pytorch D=8"]
    latents, table = nearest_code.latents_and_codes(500, 64, 8, CPU)
    expected = torch.cdist(latents.double(), table.double()).argmin(dim=1)
    assert len(expected.unique()) > 32
    for name, indices in found.items():
        assert torch.equal(indices, expected), name
    assert nearest_code.differing(500, 64, 8, CPU) == {"taming": 0, "vector-quantize-pytorch": 0}


def test_gpu_benchmark_refuses_a_machine_without_an_accelerator(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="this machine has no accelerator"):
        gpu.main()


def test_process_of_a_variant_answers_requests(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import measuring

    variant = measuring.Variant("ones", lambda: lambda: torch.ones(50 << 18))  # 50 MiB
    monkeypatch.setattr(sys, "stdin", io.StringIO("warm up\ncall\nmemory\n"))
    measuring.serve(variant, CPU, time.perf_counter)
    warm, call, memory = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert warm == {}
    assert call["seconds"] > 0
    # The process may have had free memory to reuse, and takes a little of its own; where a test before has had it keep
    # its memory, it takes 256 MiB at a time.
    assert memory["before"] <= memory["peak"] <= memory["before"] + 70 + 256


SCRIPT = """
import time, measuring
from measuring import Variant
variants = [Variant("slow", lambda: lambda: time.sleep(0.4)), Variant("fast", lambda: lambda: time.sleep(0.1), "slow")]
measuring.run("Sleeping", variants, measuring.arguments("Sleeps.", runs=3).parse_args())
"""


@pytest.mark.slow
def test_variants_take_turns_in_processes(tmp_path: Path) -> None:
    script = tmp_path / "sleeping.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n{SCRIPT}")
    done = subprocess.run([sys.executable, script, "--device", "cpu"], capture_output=True, text=True, check=True)
    _, fast = [line for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert 2 < float(fast.split("**")[1]) <= 4.5


def test_processes_of_variants_take_the_measured_bfloat16_speed(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measuring

    monkeypatch.delenv(SPEED_VARIABLE)
    monkeypatch.setattr(measuring, "bfloat16_speed", lambda device: 1.25 if device == CPU else 0.0)
    script = tmp_path / "echo.py"
    script.write_text(f"import os, sys\nprint(os.environ[{SPEED_VARIABLE!r}], *sys.argv[1:])\n")
    monkeypatch.setattr(sys, "argv", [str(script), "--runs", "3"])
    answer, _ = measuring._start("ours bf16", CPU).communicate()
    assert answer == "1.25 --runs 3 --serve ours bf16\n"


def test_table_pairs_the_times_of_one_round(toy: Any) -> None:
    import measuring

    variants = [measuring.Variant("a", lambda: print), measuring.Variant("b", lambda: print, "a", target=1.5)]
    # A machine twice as slow in the second round: the ratio is 2 in both.
    times = {"a": [2.0, 4.0], "b": [1.0, 2.0]}
    text = measuring.table(variants, times, {name: {"peak": 5, "before": 3} for name in times})
    assert "| **2.00** × speed of a (2.00-2.00) | >= 1.5: met | 5 (3 before) |" in text


SHORT = [
    "--train", "photos:train", "--test", "photos:heldout", "--limit", "1", "--size", "64", "--steps", "2",
    "--model.init_args.block_out_channels", "[32,32]", "--data.resolution", "32", "--training.batch_size", "2",
    "--objective.perceptual", "null",
]  # fmt: skip
"""Options of a run that takes no time."""


@pytest.mark.slow
def test_rate_distortion_benchmark_sweeps_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rate_distortion
    import short_runs

    fork_commands(monkeypatch, short_runs, tmp_path / "log")
    options = [
        "--config", str(RECIPES / "vq_quickstart.yaml"), *SHORT, "--qualities", "20", "80", "--out", str(tmp_path),
        "--model.init_args.norm_num_groups", "4", "--sweep", "model.init_args.quantizer.init_args.codebook_size=16",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["rate_distortion.py", *options])
    rate_distortion.main()
    points = json.loads((tmp_path / "rate_distortion.json").read_text())["points"]
    rates = {(point["curve"], point["name"]): point["scores"]["bits_per_pixel"] for point in points}
    assert rates["vq_quickstart", "16"] == pytest.approx(4 / 2**2)  # 16 codes, two levels
    assert rates["jpeg", "20"] < rates["jpeg", "80"]
    assert (tmp_path / "rate_distortion.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_fixed_budget_benchmark_scores_its_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fixed_budget
    import short_runs
    from short_runs import Protocol, score

    fork_commands(monkeypatch, short_runs, tmp_path / "log")
    options = ["--config", str(RECIPES / "quickstart.yaml"), *SHORT, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["fixed_budget.py", *options])
    fixed_budget.main()
    words, scores = capfd.readouterr().out.splitlines()[-2:]
    assert "quickstart.yaml" in words
    assert "2 steps" in words
    assert json.loads(scores) == score(tmp_path / "run", Protocol("photos:heldout", 64, limit=1))


@pytest.mark.slow
def test_quantizer_comparison_includes_every_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quantizers as comparison

    from ldm_ae import quantizers
    from ldm_ae.training.run import build_config, config_parser, parse_config

    compared = {kind for kind, _, _ in comparison.QUANTIZERS.values()}
    every = {name for name, value in vars(quantizers).items() if isinstance(value, type)
             and issubclass(value, quantizers.Quantizer) and not inspect.isabstract(value)}  # fmt: skip
    assert compared == every
    parser = config_parser()
    for i, name in enumerate(comparison.QUANTIZERS):
        comparison.write_recipe(name, tmp_path / f"{i}.yaml")
        run = build_config(parse_config(["--config", str(tmp_path / f"{i}.yaml")], parser), parser)
        x = torch.rand(1, 3, 16, 16) * 2 - 1
        terms = run.model(x).posterior.regularization()
        assert terms.keys() >= run.objective.regularization_weights.keys()


def test_start_up_times_each_command_of_each_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import start_up

    for name, seconds in (("fast", 0.0), ("slow", 0.3)):
        (tmp_path / name / "ldm_ae").mkdir(parents=True)
        (tmp_path / name / "ldm_ae" / "cli.py").write_text(f"import time\ntime.sleep({seconds})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start_up, "COMMANDS", ("--help",))
    monkeypatch.setattr(sys, "argv", ["start_up.py", "fast", "slow", "--runs", "1"])
    start_up.main()
    header, _, row = capsys.readouterr().out.splitlines()
    assert header == "| `ldm-ae` | fast | slow |"
    _, command, fast, slow, _ = (cell.strip() for cell in row.split("|"))
    assert command == "`--help`"
    assert float(slow.split()[0]) >= 0.3
    assert float(fast.split()[0]) < float(slow.split()[0])


def test_tasks_of_checkouts_run_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import checkouts

    checkouts.write_images(tmp_path, 2, 128)
    for call in checkouts.tasks(tmp_path, 128).values():
        call()
    before, after = Path("before"), Path("after")
    times = {(place, task): [4.0, 2.0] for place in (before, after) for task in checkouts.TASKS}
    times[after, checkouts.TASKS[0]] = [5.0, 4.0]
    monkeypatch.setattr(checkouts, "interleaved", lambda *_: times)
    monkeypatch.setattr(sys, "argv", ["checkouts.py", "before", "after", "--images", "1", "--side", "32"])
    checkouts.main()
    first, second = capsys.readouterr().out.splitlines()[2:4]
    assert first == f"| {checkouts.TASKS[0]} | 3000 ms | **0.650** × (0.500-0.800) |"
    assert second == f"| {checkouts.TASKS[1]} | 3000 ms | **1.000** × (1.000-1.000) |"


def test_exact_tiling_needs_a_quarter_of_the_memory_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 2048 pixels with Stable Diffusion's widths, counted on tensors without data."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from tiling import WIDTHS, count

    for work in ("decode", "encode"):
        whole, exact = (count(method, work, size=2048, tile=512, widths=WIDTHS) for method in ("whole", "exact"))
        assert 9 << 30 < whole < 13 << 30
        assert exact <= whole / 4


def test_methods_of_tiling_are_measured_on_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from tiling import measure, row

    options = argparse.Namespace(size=64, tile=16, widths=(32, 32), device="cpu", precision="fp32")
    for work in ("decode", "encode"):
        (whole, expected), (exact, found) = (measure(method, work, options) for method in ("whole", "exact"))
        assert (found - expected).abs().max() / expected.abs().max() < FLOAT32
        assert whole.keys() == exact.keys() == {"seconds", "processor", "MiB"}
        exact["difference"] = 1e-6
        whole |= {"processor": 2.0, "MiB": 8.0}
        exact |= {"processor": 3.0, "MiB": 2.0}
        assert row(work, "exact", exact, whole).endswith("| 3.0 (1.50 ×) | 2 (0.25 ×) | 1.0e-06 |")
