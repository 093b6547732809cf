"""Speed, memory and size of a model, with a clock that the test sets."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import Tensor

from ldm_ae.evaluation import evaluate
from ldm_ae.evaluation.metrics import cost
from ldm_ae.evaluation.metrics.cost import CALLS, MOST_CALLS, Cost
from ldm_ae.evaluation.metrics.interface import Metric, Setting
from ldm_ae.evaluation.metrics.psnr import PSNR
from ldm_ae.evaluation.result import Evaluation
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.models import KLAutoencoder, Posterior
from tests.evaluation.stubs import IdentityAutoencoder, loader, pictures


class Clock:
    """A clock that only the models of these tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(IdentityAutoencoder):
    """Calls of `encode` and `decode` take the seconds of a list, in turn, and memory of a known size."""

    def __init__(self, clock: Clock, encode: list[float], decode: list[float]) -> None:
        super().__init__()
        self.clock, self.seconds = clock, {"encode": encode, "decode": decode}
        self.calls = {"encode": 0, "decode": 0}

    def _work(self, part: str) -> None:
        seconds = self.seconds[part]
        self.clock.now += seconds[self.calls[part] % len(seconds)]
        self.calls[part] += 1
        torch.empty((1 if part == "encode" else 3) * 2**18)  # 1 or 3 MiB

    def encode(self, pixel_values: Tensor) -> Posterior:
        self._work("encode")
        return super().encode(pixel_values)

    def decode(self, latents: Tensor) -> Tensor:
        self._work("decode")
        return latents


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(cost, "time", found)
    return found


def run(model, *metrics: Metric, precision: str = "fp32") -> Evaluation:
    return evaluate(
        model, loader(6, batch_size=4), source="pictures", transform_description={}, model_name="tiny",
        metrics=metrics, precision=precision, device="cpu", pictures=0,
    )  # fmt: skip


def test_speed_is_the_batch_over_the_median_time(clock: Clock) -> None:
    scoring = Scoring([Cost()], Setting(model=(model := Slow(clock, [9.0, 2.0, 4.0, 1.0], [9.0, 0.5, 0.25, 0.125]))
                                        , device=torch.device("cpu")))  # fmt: skip
    images = pictures(4)
    posterior = IdentityAutoencoder().encode(images)
    scoring.update(images, images, posterior)
    scoring.update(images[:2], images[:2], posterior)
    found = scoring.compute()
    # The first call is the warm-up. Encoding takes over a second; decoding is measured on: 0.5, 0.25, 0.125, 9.0.
    assert model.calls == {"encode": 1 + CALLS, "decode": 1 + CALLS + 1}
    assert found["encode_images_per_second"] == 4 / 2.0
    assert found["decode_images_per_second"] == 4 / median([0.5, 0.25, 0.125, 9.0])
    assert found["encode_peak_mib"] == 1.0
    assert found["decode_peak_mib"] == 3.0
    assert list(found) == list(Cost.scores)


def test_fast_calls_are_timed_more_often_but_not_forever(clock: Clock) -> None:
    model = Slow(clock, [0.001], [0.2])
    found = run(model, metric := Cost())
    assert metric.protocol()["cost"]["calls"] == {"encode": MOST_CALLS, "decode": 5}  # type: ignore[index]
    assert found.scores["encode_images_per_second"] == pytest.approx(4000)
    assert found.scores["decode_images_per_second"] == pytest.approx(20)


def test_parameters_are_those_of_the_networks_parts(tiny_model: KLAutoencoder) -> None:
    found = run(tiny_model, Cost()).scores
    net = tiny_model.net

    def numbers(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    assert found["encoder_parameters"] == numbers(net.encoder, net.quant_conv)
    assert found["decoder_parameters"] == numbers(net.decoder, net.post_quant_conv)
    assert found["latents_per_image"] == 4 * 8 * 8


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cost_is_measured_in_the_precision_of_the_evaluation(precision: str, tiny_model: KLAutoencoder) -> None:
    seen = []
    tiny_model.net.decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    result = run(tiny_model, PSNR(), metric := Cost(), precision=precision)
    described = metric.protocol()["cost"]
    assert result.protocol["cost"] == described
    assert {key: described[key] for key in ("precision", "batch_size", "size")} == {  # type: ignore[index]
        "precision": precision, "batch_size": 4, "size": "32x32"
    }  # fmt: skip
    assert described["machine"].startswith("cpu: ")  # type: ignore[index]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen.count(dtype) >= 2 + 1 + CALLS  # of two batches, and of the measurement of the first
    half = run(tiny_model, PSNR(), precision=precision)
    assert result.scores["psnr"] == half.scores["psnr"]


@pytest.mark.slow
def test_peak_memory_counts_feature_maps(tiny_model: KLAutoencoder) -> None:
    # At full resolution two images of 8 channels exist at the same time, for 4 images of 32x32 pixels. What a CPU needs
    # besides in half the precision depends on its kind.
    maps = 2 * 4 * 8 * 32 * 32 / 2**20
    for precision, size in (("fp32", 4), ("bf16", 2)):
        found = run(tiny_model, Cost(), precision=precision).scores
        assert maps * size <= found["decode_peak_mib"] < 20 * maps * size
        assert found["encode_peak_mib"] >= maps * size


def test_unknown_memory_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "peak_memory", lambda _call, _device: None)
    result = run(IdentityAutoencoder(), Cost())
    assert [key for key in result.scores if "peak" in key] == []
    assert result.scores["encode_images_per_second"] > 0
    assert result.protocol["cost"]["memory"] == "not measured: torch has no peak memory of cpu"  # type: ignore[index]


def test_cost_needs_a_model() -> None:
    scoring = Scoring([Cost()], Setting(model=None, device=torch.device("cpu")))
    scoring.update(pictures(1), pictures(1))
    assert scoring.compute() == {}
    assert scoring.skipped == {"cost": "Cost needs a model"}
