"""Output folders: what a command refuses to replace, what --overwrite replaces, and the path in the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldm_ae.cli import main
from ldm_ae.commands import _quickstart
from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_diffusers
from ldm_ae.io.files import require_new_folder
from ldm_ae.models import KLAutoencoder

SMALL = ["--size", "32", "--workers", "0", "--device", "cpu"]
QUICK = [*SMALL, "--limit", "1", "--metrics", "psnr"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_folder_must_be_new_or_an_earlier_result(tmp_path: Path) -> None:
    own = ("a.json", "b.html")

    def check(**options: Any) -> None:
        require_new_folder(tmp_path / "out", "the report", **options)

    check()
    (tmp_path / "out").mkdir()
    check(own_files=own, overwrite=False)
    (tmp_path / "out" / "a.json").write_text("1")
    with pytest.raises(UserError, match=r"out is not empty \(a\.json\); give a new folder for the report"):
        check()
    with pytest.raises(
        UserError, match=r"out holds an earlier result \(a\.json\); add --overwrite .*to replace it, or give"
    ):
        check(own_files=own, overwrite=False)
    check(own_files=own, overwrite=True)
    (tmp_path / "out" / "mine.txt").write_text("1")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"out holds other files \(mine\.txt\); give a new or empty folder for the"):
            check(own_files=own, overwrite=overwrite)
    with pytest.raises(UserError, match=r"a\.json is a file; give a folder for the report"):
        require_new_folder(tmp_path / "out" / "a.json", "the report", own_files=own, overwrite=True)


@pytest.mark.parametrize(
    "arguments", [["export"], ["export", "--format", "ldm"], ["import"], ["evaluate"]], ids=" ".join
)
def test_earlier_result_is_replaced_only_with_overwrite(
    arguments: list[str], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    widths = {"block_out_channels": (32, 32), "layers_per_block": 1}
    for name in ("first", "second"):
        KLAutoencoder(**widths).save_pretrained(tmp_path / name)
    if arguments == ["import"]:
        for name in ("first", "second"):
            assert main(["export", str(tmp_path / name), str(tmp_path / f"{name}-ldm"), "--format", "ldm"]) == 0
    out = tmp_path / "out"

    def command(name: str, *more: str) -> list[str]:
        model = str(tmp_path / name)
        if arguments == ["evaluate"]:
            return ["evaluate", model, str(image_folder), "--out", str(out), *QUICK, *more]
        if arguments == ["import"]:
            return ["import", f"{model}-ldm/model.safetensors", str(out), *more]
        return ["export", model, str(out), *arguments[1:], *more]

    assert main(command("first")) == 0
    before = contents(out)
    capsys.readouterr()
    assert main(command("second")) == 2
    error = capsys.readouterr().err
    assert f"{out} holds an earlier result (" in error
    assert "; add --overwrite (overwrite=True in Python) to replace it, or give a new folder for the " in error
    assert contents(out) == before
    assert main(command("second", "--overwrite")) == 0
    after = contents(out)
    assert after.keys() == before.keys()
    assert after != before
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f": {out / 'report.html' if arguments == ['evaluate'] else out}")


def test_refusal_comes_before_the_model_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for command in (["export", "nowhere"], ["decode", "nowhere", "store"], ["reconstruct", "nowhere", "images"]):
        assert main([*command, str(tmp_path)]) == 2
        assert "mine.txt" in capsys.readouterr().err
    assert main(["evaluate", "nowhere", "images", "--out", str(tmp_path)]) == 2
    assert "mine.txt" in capsys.readouterr().err


def test_api_replaces_an_earlier_export_only_with_overwrite(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    out = export_diffusers(tiny_model, tmp_path / "out")
    with pytest.raises(UserError, match="holds an earlier result"):
        export_diffusers(tiny_model, out)
    export_diffusers(tiny_model, out, sample_size=32, overwrite=True)
    assert json.loads((out / "config.json").read_text())["sample_size"] == 32


def test_quickstart_resumes_only_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(_quickstart, "_quickstart", lambda folder, *_: ran.append(folder))
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"is not empty \(model\); give a new folder for the quickstart"):
        _quickstart.quickstart(tmp_path)
    (tmp_path / _quickstart.CARD).write_text("card")
    _quickstart.quickstart(tmp_path)
    _quickstart.quickstart(tmp_path / "new")
    assert ran == [tmp_path, tmp_path / "new"]


@pytest.mark.slow
def test_last_line_of_the_output_is_the_path(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images, store = str(tiny_model_folder), str(image_folder), str(tmp_path / "store")
    commands = {
        "store": ["encode", model, images, store, *SMALL],
        "12 images": ["decode", model, store, str(tmp_path / "decoded"), "--device", "cpu"],
        "12 reconstructions": ["reconstruct", model, images, str(tmp_path / "rebuilt"), *SMALL],
        "12 images for lightningdit": ["convert", store, str(tmp_path / "converted"), "--format", "lightningdit"],
    }
    outputs = ["store", "decoded", "rebuilt", "converted"]
    for (what, command), name in zip(commands.items(), outputs, strict=True):
        assert main(command) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{what}: {tmp_path / name}"
    assert main(commands["store"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"store: {store}", "also if it was complete"
