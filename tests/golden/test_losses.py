"""Every logged term of two short seeded runs in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.compare import Golden
from tests.golden.inputs import CONFIGS, STEPS, metrics

# Six steps on AVX512, AVX2 and plain SSE differ by at most 1.3e-5 of a value and, where a value is near 0 or rounded to
# 8 bits (SSIM), by 5e-6: last bits of float32 that grow from step to step.
TOLERANCE = {"relative": 1e-4, "absolute": 2e-5}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONFIGS))
def test_losses_of_a_seeded_run_match(name: str, golden: Golden, golden_run: Callable[[str], Path]) -> None:
    run = golden_run(name)
    numerics = json.loads((run / "environment.json").read_text())["numerics"]
    assert (numerics["precision"], numerics["layout"]) == ("fp32", "channels_last")
    lines = metrics(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    golden.json(f"losses/{name}", lines, **TOLERANCE)
