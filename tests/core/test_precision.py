"""The choice of precision and memory layout, with measurements replaced where their outcome is the point."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ldm_ae.core import precision
from ldm_ae.core.environment import ENVIRONMENT
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import (
    SPEED_VARIABLE,
    Placement,
    bfloat16_speed,
    inference_numerics,
    machine_name,
    place,
    training_numerics,
    training_placement,
)
from ldm_ae.training.recorded import recorded_numerics
from tests.pictures import smooth_picture
from tests.training.common import TINY, run

CPU = torch.device("cpu")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    precision._warn_if_slow.cache_clear()
    return monkeypatch


@pytest.mark.parametrize(
    ("measured", "expected"), [("2.0", "bf16"), ("1.2", "bf16"), ("1.0", "fp32"), ("0.02", "fp32")]
)
def test_auto_precision_selects_bf16_only_where_it_is_faster(
    measured: str, expected: str, speed: pytest.MonkeyPatch
) -> None:
    speed.setenv(SPEED_VARIABLE, measured)
    assert training_numerics("auto", CPU).precision == expected
    assert inference_numerics("auto", CPU).precision == expected
    assert f"bfloat16 has {float(measured):.2g} times the speed of float32" in inference_numerics("auto", CPU).line()


@pytest.mark.slow
def test_speed_measurement_is_short_cached_and_preserves_the_random_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SPEED_VARIABLE)
    precision._bfloat16_speed.cache_clear()
    precision._measured_placement.cache_clear()
    before = torch.get_rng_state()
    started = time.process_time()
    found = bfloat16_speed(CPU)
    placement = training_placement(CPU, torch.float32)
    # 0.4 s on two quiet cores, 0.8 s of one processor; one that others keep busy may need three times as long.
    assert time.process_time() - started < 3.0
    assert torch.equal(torch.get_rng_state(), before)
    assert found > 0
    started = time.perf_counter()
    assert (bfloat16_speed(CPU), training_placement(CPU, torch.float32)) == (found, placement)
    assert time.perf_counter() - started < 0.01
    precision._bfloat16_speed.cache_clear()
    precision._measured_placement.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_speed_is_measured_in_every_context(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may open a model, whose precision is chosen then, in inference mode."""
    monkeypatch.delenv(SPEED_VARIABLE, raising=False)
    monkeypatch.setattr(precision, "_ratio", lambda calls, rounds, hopeless=0.0: [call() for call in calls] and 2.0)
    precision._bfloat16_speed.cache_clear()
    with context():
        assert bfloat16_speed(CPU) == 2.0
    precision._bfloat16_speed.cache_clear()


def test_emulated_bfloat16_is_rejected_after_the_small_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def slow(device: torch.device, dtype: torch.dtype, channels: int, size: int, placement: object = None):
        sizes.append((channels, size))
        return (lambda: time.sleep(0.02)) if dtype == torch.bfloat16 else (lambda: None)

    monkeypatch.delenv(SPEED_VARIABLE)
    monkeypatch.setattr(precision, "_convolution", slow)
    precision._bfloat16_speed.cache_clear()
    assert bfloat16_speed(CPU) < 1 / 3
    assert set(sizes) == {(64, 32)}
    precision._bfloat16_speed.cache_clear()


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.1, 0.9, 2.0], 2.0),  # the small convolution was delayed once
        ([0.9, 0.6, 1.8], 1.8),  # the large one was
        ([0.9, 0.5, 0.7, 0.6], 0.7),
        ([0.9, 0.01], 0.01),  # each further call would take seconds
        ([0.1, 0.2, 0.1], 0.2),
    ],
)
def test_delayed_measurement_of_bfloat16_is_repeated(
    ratios: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter(ratios)
    monkeypatch.delenv(SPEED_VARIABLE)
    monkeypatch.setattr(precision, "_ratio", lambda *_: next(measured))
    precision._bfloat16_speed.cache_clear()
    assert bfloat16_speed(CPU) == expected
    assert next(measured, None) is None
    precision._bfloat16_speed.cache_clear()


def test_slow_explicit_bf16_warns_once_with_the_factor_and_a_fix(
    speed: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    speed.setenv(SPEED_VARIABLE, "0.02")
    with caplog.at_level(logging.WARNING, logger="ldm_ae"):
        assert training_numerics("bf16", CPU).precision == "bf16"
        training_numerics("bf16", CPU)
        training_numerics("auto", CPU), training_numerics("fp32", CPU)
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    assert "0.02 times the speed of fp32" in message
    assert "--training.precision fp32, or auto" in message


@pytest.mark.parametrize(
    ("dtype", "speed_of_the_other", "expected"),
    [
        (torch.float32, [0.8], Placement("channels_last", "winograd")),
        (torch.float32, [1.2], Placement("channels_last", "winograd")),
        (torch.float32, [1.6, 1.2], Placement("channels_last", "winograd")),
        (torch.float32, [1.6, 1.5], Placement("contiguous")),
        (torch.bfloat16, [0.5], Placement("channels_last")),
        (torch.bfloat16, [2.0, 1.1], Placement("channels_last")),
        (torch.bfloat16, [2.0, 1.9], Placement("contiguous")),
    ],
)
def test_training_placement_changes_only_after_two_clear_measurements(
    dtype: torch.dtype, speed_of_the_other: list[float], expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter(speed_of_the_other)
    monkeypatch.delenv(SPEED_VARIABLE)
    monkeypatch.setattr(precision, "_ratio", lambda *_: next(measured))
    precision._measured_placement.cache_clear()
    assert training_placement(CPU, dtype) == expected
    assert next(measured, None) is None
    precision._measured_placement.cache_clear()


def test_place_moves_weights_into_a_layout_and_outputs_follow() -> None:
    convolution = nn.Conv2d(8, 8, 3)
    for layout, memory_format in precision.LAYOUTS.items():
        place(convolution, CPU, Placement(layout))  # type: ignore[arg-type]
        assert convolution.weight.is_contiguous(memory_format=memory_format)
        assert convolution(torch.randn(2, 8, 6, 6)).is_contiguous(memory_format=memory_format)


def test_recorded_precision_is_kept_and_another_machine_is_reported(speed: pytest.MonkeyPatch) -> None:
    speed.setenv(SPEED_VARIABLE, "1.0")
    here = {"precision": "bf16", "layout": "channels_last", "machine": machine_name(CPU), "reason": ""}
    kept = training_numerics("auto", CPU, here)
    assert (kept.precision, kept.layout, kept.reason) == ("bf16", "channels_last", "as when this run was started")
    moved = training_numerics("auto", CPU, here | {"machine": "cuda: NVIDIA H200"})
    assert (moved.precision, moved.placement) == ("bf16", training_placement(CPU, torch.bfloat16))
    assert "as when this run was started, on cuda: NVIDIA H200" in moved.line()
    # What the user names takes effect.
    assert training_numerics("fp32", CPU, here).precision == "fp32"


@pytest.mark.parametrize("name", ["fp8", "", "float32"])
def test_unknown_precision_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"precision '{name}' is not one of auto, fp32, bf16, fp16"):
        training_numerics(name, CPU)


def test_fp16_training_on_a_cpu_is_refused_with_alternatives() -> None:
    with pytest.raises(UserError, match="fp16 needs an accelerator; use auto, bf16 or fp32 on a CPU"):
        training_numerics("fp16", CPU)


@pytest.mark.slow
def test_run_records_and_keeps_its_numerics(
    tmp_path: Path, speed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        smooth_picture(i, 24, 20).save(images / f"{i}.png")
    tiny = TINY | {"data": TINY["data"] | {"train": str(images)}}
    tiny["training"] = TINY["training"] | {"precision": "auto", "max_steps": 3}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    speed.setenv(SPEED_VARIABLE, "2.0")
    run(tmp_path / "tiny.yaml", tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / ENVIRONMENT).read_text())["numerics"]
    assert (recorded["precision"], recorded["machine"]) == ("bf16", machine_name(CPU))
    assert "precision: bf16, channels-last on cpu" in capsys.readouterr().err
    speed.setenv(SPEED_VARIABLE, "1.0")  # as on a machine without fast bfloat16
    run(tmp_path / "tiny.yaml", tmp_path / "run", "--training.max_steps", "4")
    assert "precision: bf16, channels-last on cpu" in capsys.readouterr().err
    run(tmp_path / "tiny.yaml", tmp_path / "fresh")
    assert "precision: fp32, channels-last with Winograd convolutions on cpu" in capsys.readouterr().err


def test_run_without_a_recorded_precision_resumes_in_bf16(tmp_path: Path) -> None:
    assert recorded_numerics(tmp_path) is None
    (tmp_path / ENVIRONMENT).write_text('{"device": "cpu: x86_64, 2 threads"}')
    recorded = recorded_numerics(tmp_path)
    assert recorded is not None
    assert (recorded["precision"], recorded["layout"]) == ("bf16", "channels_last")


@pytest.mark.parametrize("content", ["[]", "{", '{"numerics": {"precision": "int4"}}', '{"numerics": 3}'])
def test_damaged_precision_record_is_refused_with_a_fix(content: str, tmp_path: Path) -> None:
    (tmp_path / ENVIRONMENT).write_text(content)
    with pytest.raises(UserError, match=r"environment\.json is damaged .*remove it and give --training\.precision"):
        recorded_numerics(tmp_path)
