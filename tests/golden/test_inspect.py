"""The JSON of `ldm-ae inspect` for runs and stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm_ae.cli import main
from tests.golden.compare import Golden
from tests.golden.inputs import CONFIGS, STEPS
from tests.golden.test_losses import TOLERANCE
from tests.golden.test_store import KINDS, exact_request, write_exact


def inspected(path: Path, capsys: pytest.CaptureFixture[str], **names: Path) -> Any:
    """The JSON with the names of folders in place of where they lie on this machine."""
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    text = capsys.readouterr().out
    for name, folder in sorted(names.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(folder), f"({name})")
    return json.loads(text)


@pytest.mark.parametrize(
    "name", [name if name == "kl_gan" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_inspect_of_run_checkpoint_and_model_matches(
    name: str, golden: Golden, golden_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = golden_run(name)
    places = {"run": run, "checkpoint": run / "checkpoints" / f"step-{STEPS:08d}", "model": run / "model"}
    for kind, path in places.items():
        found = inspected(path, capsys, run=run)
        assert found["kind"] == kind
        golden.json(f"inspect/{name}_{kind}", found, **TOLERANCE)


@pytest.mark.parametrize("kind", list(KINDS))
def test_inspect_of_a_store_matches(
    kind: str, golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_exact(tmp_path / "store", exact_request(**KINDS[kind]))
    found = inspected(store, capsys, store=store)
    # The index's size differs between versions of pyarrow.
    assert found.pop("bytes") == sum(
        path.stat().st_size for path in store.rglob("*") if path.is_file() and path.name != "store.json"
    )
    golden.json(f"inspect/store_{kind}", found)


def test_inspect_of_an_unfinished_store_matches(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_exact(tmp_path / "store", exact_request(**KINDS["full"]), finish=False)
    assert main(["inspect", str(store), "--json"]) == 2
    text = capsys.readouterr().out.replace(str(store), "(store)")
    golden.json("inspect/store_unfinished", json.loads(text))
