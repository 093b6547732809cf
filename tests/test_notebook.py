"""docs/notebook.ipynb is a valid notebook, and its cells run in order. Jupyter is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_script

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
RUN = """
import ast, json, os, sys
import torch
torch.set_num_threads(1)
os.chdir(sys.argv[1])
space = {"__name__": "__main__"}
for cell in json.load(open("cells.json")):
    *body, last = ast.parse(cell).body  # Jupyter shows the value of the last expression
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    if isinstance(last, ast.Expr):
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        repr(shown)
    else:
        exec(compile(ast.Module([last], []), "cell", "exec"), space)
print(json.dumps({
    "scores": space["scores"], "report": space["report"].metrics, "page": space["report"].page.is_file(),
    "images": len(space["dataset"]), "losses": space["losses"], "shared": shown,
    "samples": [sample.size for sample in space["samples"]],
}))
"""


def notebook() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == "code"]


def on_smaller_photos(cell: str) -> str:
    """The code of a cell on 128 pixels in place of 256, a third of the time."""
    return cell.replace("256", "128").replace("sample_size=32", "sample_size=16")


def test_notebook_is_valid_nbformat_without_outputs() -> None:
    """The schema of nbformat 4.5, as far as this notebook uses it."""
    found = notebook()
    assert found.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert found["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in found["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        assert isinstance(cell["source"], list)
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell.keys() == common | {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        else:
            assert cell["cell_type"] == "markdown"
            assert cell.keys() == common
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_notebook_runs_from_photos_to_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cells.json").write_text(json.dumps([on_smaller_photos(cell) for cell in code_cells()]))
    script, log = tmp_path / "run.py", tmp_path / "log"
    script.write_text(RUN)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert run_script(script, [str(tmp_path)], log) == 0, log.read_text()
    found = json.loads(log.read_text().splitlines()[-1])
    assert 20 < found["scores"]["psnr"] < 40
    assert 20 < found["report"]["psnr"] < 40
    assert found["page"]
    assert found["images"] == 8
    assert found["losses"][-1] < found["losses"][0]
    assert found["samples"] == [[128, 128]] * 2
    assert found["shared"] is True
    assert "Warning" not in log.read_text()
