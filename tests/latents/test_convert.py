"""Conversion: constants folded into the latents, limits of formats, and atomic output."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.data import open_source
from ldm_ae.latents import LatentDataset, LatentStore
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.fold import Constants, Fold
from ldm_ae.models import ChannelStatistics, KLAutoencoder, LatentSpec
from tests.latents.format_readers import READERS, read_kohya, read_mar, read_musubi
from tests.latents.helpers import Content, drop_tensors, encode, synthetic_store

# What each trainer does to a value before its diffusion model sees it: (value - shift) * factor.
RAW_MEAN, RAW_STD = (np.array(v).reshape(4, 1, 1) for v in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]))
TRAINERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "datasetfolder": lambda z: z,
    "edm2-zip": lambda z: (
        (z * (0.5 / RAW_STD) - RAW_MEAN * (0.5 / RAW_STD)) / 0.5
    ),  # its target is a standard deviation of 0.5
    "fast-dit": lambda z: z,
    "mar": lambda z: z * 0.2325,
    "maskdit": lambda z: z * 0.18215,
    "mds": lambda z: z.astype(np.float64),
}


def seen(name: str, out: Path, content: Content, trainer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(C, everything): the input of the diffusion model, drawn with the noise of the stored latents."""
    read = READERS[name](out)
    order = np.argsort([int(found) for found in read.names])
    values = []
    for place in order:
        if read.latents:
            values.append(read.latents[place])
            continue
        number = int(read.names[place])
        mean, log_variance = content.tensors[number]["moments"].chunk(2)
        noise = (content.tensors[number]["latents"] - mean) / (0.5 * log_variance).exp()
        values.append(read.mean[place] + read.std[place] * noise.numpy())
    return np.concatenate([trainer(value).reshape(len(value), -1) for value in values], axis=1)


@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_fold_trainer_matches_what_each_trainer_expects(name: str, tmp_path: Path) -> None:
    if name == "maskdit":
        pytest.importorskip("lmdb")
    content = synthetic_store(tmp_path / "store")
    out = tmp_path / ("out.zip" if name == "edm2-zip" else "out")
    convert_store(content.path, out, name, fold="trainer")
    values = seen(name, out, content, TRAINERS[name])
    # The statistics are of these very latents: what is left is float32's rounding, float16's for mds.
    tolerance = 1e-3 if name == "mds" else 1e-5
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=tolerance)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=tolerance)


@pytest.mark.parametrize("name", ["mar", "fast-dit"])
def test_fold_by_a_number_scales_latents(name: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    convert_store(content.path, tmp_path / "out", name, fold=0.7)
    values = seen(name, tmp_path / "out", content, lambda z: z * 0.7)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-5)


def test_fold_applies_the_shift(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", channels=16)
    for name, arch, read, factor, shift in (
        ("kohya", "flux", read_kohya, 0.3611, 0.1159),
        ("musubi", "zi", read_musubi, 0.3611, 0.1159),
    ):
        convert_store(content.path, tmp_path / name, name, arch=arch, fold="trainer")
        latents = np.concatenate([z.reshape(16, -1) for z in read(tmp_path / name, arch).latents], axis=1)
        values = (latents.astype(np.float64) - shift) * factor
        np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-5)


def test_folded_latents_decode_with_the_recorded_inverse(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    """A trainer's samples, divided by its constant and unfolded, decode to the same images."""
    encode(tiny_model, image_folder, tmp_path / "store", latents="mode")
    convert_store(tmp_path / "store", tmp_path / "out", "mar", fold=0.2325)
    fold = Fold.from_json(json.loads((tmp_path / "out" / "ldm_ae.json").read_text())["values"])
    read = read_mar(tmp_path / "out")
    data = LatentDataset(tmp_path / "store")
    for name, mean in zip(read.names, read.mean, strict=True):
        of_trainer = torch.tensor(mean) * 0.2325
        latents = fold.unfold(of_trainer / 0.2325)
        stored = data[int(name)]["latents"]
        torch.testing.assert_close(latents, stored, atol=1e-5, rtol=1e-5)  # two roundings of float32
        with torch.no_grad():
            # The network adds its own float32 rounding to that.
            torch.testing.assert_close(
                tiny_model.decode(latents[None]), tiny_model.decode(stored[None]), atol=1e-4, rtol=1e-4
            )


def test_fold_and_unfold_are_inverse() -> None:
    statistics = ChannelStatistics(3)
    statistics.update(torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 2)
    fold = Fold.for_trainer(statistics, Constants(factor=(0.5,), shift=(1.0, 2.0, 3.0)))
    assert Fold.from_json(json.loads(json.dumps(fold.to_json()))) == fold
    moments = torch.randn(5, 6, 4, 4)
    torch.testing.assert_close(fold.unfold_moments(fold.fold_moments(moments)), moments)
    torch.testing.assert_close(fold.unfold(fold.fold(moments[0, :3])), moments[0, :3])
    per_channel: dict[str, Any] = {"latents_mean": (1.0, 2.0, 3.0), "latents_std": (0.5, 1.0, 2.0)}
    for scaling in ({"scaling_factor": 0.3, "shift_factor": 0.2}, {"scaling_factor": 1.0} | per_channel):
        spec = LatentSpec(channels=3, downsample_factor=8, **scaling)
        torch.testing.assert_close(Fold.of_model(spec).fold(moments[:, :3]), spec.scale(moments[:, :3]))
    with pytest.raises(UserError, match="constants are for 4 channels, the latents have 3"):
        Fold.for_trainer(statistics, Constants(factor=(1.0,) * 4))
    constant = ChannelStatistics(1)
    constant.update(torch.ones(2, 1, 4, 4))
    with pytest.raises(UserError, match="is constant"):
        Fold.for_trainer(constant, Constants(factor=(1.0,)))


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "no such format": ("webp", {}, {}, "no latent format is named 'webp'; there are datasetfolder, "),
    "flips": ("mar", {"flips": False}, {}, "MAR needs the mirror images' latents"),
    "flips of lightningdit": ("lightningdit", {"flips": False}, {}, "LightningDiT needs the mirror images' latents"),
    "flips of maskdit": ("maskdit", {"flips": False}, {}, "MaskDiT needs the mirror images' latents"),
    "labels": ("fast-dit", {"labelled": False}, {}, "fast-DiT needs a label for each image, 7 of 7 have none"),
    "labels in folders": ("datasetfolder", {"labelled": False}, {}, "DatasetFolder needs a label for each image"),
    "captions": ("mds", {"captioned": False}, {}, "micro_diffusion needs a caption for each image, 7 of 7 have none"),
    "captions of pixart": ("pixart", {"captioned": False}, {}, "PixArt needs a caption"),
    "images": ("repa", {}, {}, "REPA also reads the images; give them with --images"),
    "no architecture": ("kohya", {}, {}, "kohya needs --arch: one of sd, sdxl, sd3, flux"),
    "odd architecture": ("musubi", {}, {"arch": "sd"}, "musubi does not support --arch sd: one of hv"),
    "needless architecture": ("mar", {}, {"arch": "sd"}, "--arch has no effect in the format mar"),
    "needless name": ("repa", {}, {"name": "vae"}, "--name has no effect in the format repa"),
    "fold of statistics": (
        "lightningdit",
        {},
        {"fold": 0.5},
        "LightningDiT reads mean and standard deviation from a file",
    ),
    "fold of nothing": ("mar", {}, {"fold": 0.0}, "--fold is 0.0; it must be a positive number"),
    "fold of no number": ("mar", {}, {"fold": float("nan")}, "it must be a positive number"),
    "unknown constant": ("pixart", {}, {"fold": "trainer"}, "is in its configuration"),
    "constants of 4": ("edm2-zip", {"channels": 8}, {"fold": "trainer"}, "are for 4 channels, the latents have 8"),
    "no square": ("mds", {"buckets": {"32x64": 2}}, {}, "mds holds squares only"),
    "no square of pixart": ("pixart", {"buckets": {"32x64": 2}}, {}, "is for square images, these are 64x32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_stores_that_a_format_cannot_represent_are_refused(case: str, tmp_path: Path) -> None:
    name, store, options, message = REFUSED[case]
    if name == "maskdit":
        pytest.importorskip("lmdb")
    content = synthetic_store(tmp_path / "store", **store)
    with pytest.raises(UserError, match=message) as error:
        convert_store(content.path, tmp_path / ("out.zip" if name == "edm2-zip" else "out"), name, **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["edm2-zip", "mar", "pixart"])
def test_formats_of_moments_refuse_stores_of_samples(name: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    drop_tensors(content.path, "moments")
    with pytest.raises(UserError, match=r"draws from moments, mean and variance, and .* holds samples only"):
        convert_store(content.path, tmp_path / "out.zip", name)
    convert_store(content.path, tmp_path / "fine", "fast-dit")
    with pytest.raises(UserError, match="has no moments to draw from"):
        LatentDataset(content.path, draw="mode")


def test_edm2_format_requires_all_labels_or_none(tmp_path: Path) -> None:
    """EDM2 takes labels for all or for none; kohya needs none."""
    content = synthetic_store(tmp_path / "none", labelled=False)
    convert_store(content.path, tmp_path / "none.zip", "edm2-zip")
    assert READERS["edm2-zip"](tmp_path / "none.zip").labels == []
    original = LatentStore(tmp_path / "none")
    labels = original.good()["label"].to_pylist()
    labels[3] = 1
    column = original.index.schema.get_field_index("label")
    index = original.index.set_column(column, original.index.schema.field(column), [labels])
    original.index, original._rows = index, index
    with pytest.raises(UserError, match=r"requires labels for all images or for none; folder 0/000\.png has none"):
        convert_store(original, tmp_path / "some.zip", "edm2-zip")


WARNED: dict[str, tuple[str, dict[str, Any], str]] = {
    "flips": ("pixart", {}, "no place for mirror images; they are skipped"),
    "channels": ("maskdit", {"channels": 8}, "MaskDiT's code is written for 4 channels, these latents have 8"),
    "squares": ("fast-dit", {"buckets": {"32x64": 3}}, "written for square images, these are 32x64"),
    # The latents have a standard deviation of 3: times 0.2325 that is 0.7, and times the model's own 0.1 it is 0.3.
    "constants": (
        "mar",
        {},
        r"MAR would scale these latents to 0\.(69|7\d?) times the standard deviation that it expects; convert with",
    ),
    "scale": (
        "fast-dit",
        {"scaling_factor": 0.1},
        r"fast-DiT would scale these latents to 0\.3\d? times the standard deviation",
    ),
    "embeddings": ("mds", {}, "also reads caption_latents"),
    "sizes": ("mds", {}, "reads latents of 32x32 from images of 256 .* these are 8x8 from 32"),
}


@pytest.mark.parametrize("case", WARNED)
def test_trainer_limitations_cause_a_warning(case: str, tmp_path: Path) -> None:
    name, store, message = WARNED[case]
    if name == "maskdit":
        pytest.importorskip("lmdb")
    content = synthetic_store(tmp_path / "store", **store)
    warnings = convert_store(content.path, tmp_path / "out", name).warnings
    assert not any("\n" in warning for warning in warnings)
    assert any(re.search(message, warning) for warning in warnings), warnings


def test_valid_conversions_cause_no_warnings(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    for name, options in (("mar", {"fold": "trainer"}), ("mar", {"fold": 0.2325}), ("lightningdit", {})):
        out = tmp_path / f"{name} {options}"
        assert convert_store(content.path, out, name, **options).warnings == []  # type: ignore[arg-type]


def test_labels_with_gaps_cause_a_warning_and_are_recorded(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", buckets={"64x64": 2, "32x32": 1})  # labels 0, 1 and 2
    summary = convert_store(content.path, tmp_path / "out", "mar", bucket="32x32", fold="trainer")
    assert summary.warnings == [
        "the 1 labels are not 0 to 0; MAR numbers the class folders from 0, so its labels will differ"
    ]
    assert read_mar(tmp_path / "out").labels == [0]
    assert (tmp_path / "out" / "0002").is_dir()
    assert json.loads((tmp_path / "out" / "ldm_ae.json").read_text())["labels"] == [2]


@pytest.mark.parametrize(("name", "module"), [("repa-e", "h5py"), ("maskdit", "lmdb")])
def test_missing_package_is_refused_by_name(
    name: str, module: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    content = synthetic_store(tmp_path / "store")
    images = open_source(image_folder) if name == "repa-e" else None
    with pytest.raises(
        UserError, match=rf"needs the package {module}, which is missing; pip install 'ldm_ae\[formats\]'"
    ):
        convert_store(content.path, tmp_path / "out", name, images=images)


def test_convert_does_not_overwrite_existing_files(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"precious")
    (tmp_path / "mine.zip").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"is not empty \(photo\.png\)"):
        convert_store(content.path, tmp_path / "mine", "mar")
    with pytest.raises(UserError, match="already exists"):
        convert_store(content.path, tmp_path / "mine.zip", "edm2-zip")
    with pytest.raises(UserError, match="is a file"):
        convert_store(content.path, tmp_path / "mine.zip", "mar")
    with pytest.raises(UserError, match=r"must end in \.zip"):
        convert_store(content.path, tmp_path / "mine", "edm2-zip")
    assert (tmp_path / "mine" / "photo.png").read_bytes() == (tmp_path / "mine.zip").read_bytes() == b"precious"
    (tmp_path / "empty").mkdir()
    convert_store(content.path, tmp_path / "empty", "mar")
    assert len(read_mar(tmp_path / "empty").names) == 7


def test_failed_conversion_leaves_no_files(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", scaling_factor=1e5)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="do not fit into float16"):
        convert_store(content.path, tmp_path / "out", "mds")
    for out, name in (("out", "mar"), ("out.zip", "edm2-zip")):
        with pytest.raises(KeyboardInterrupt):
            convert_store(content.path, tmp_path / out, name, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("key", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_keys_outside_the_output_folder_are_refused(key: str, tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store")
    store = LatentStore(content.path)
    keys = [key, *content.keys[1:]]
    store._rows = store._rows.set_column(0, store._rows.schema.field(0), [keys])
    for name, options in (("kohya", {"arch": "sd"}), ("musubi", {"arch": "zi"}), ("pixart", {})):
        with pytest.raises(UserError, match="is not a path inside a folder"):
            convert_store(store, tmp_path / "out", name, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_colliding_output_names_are_refused(tmp_path: Path) -> None:
    content = synthetic_store(tmp_path / "store", buckets={"32x32": 2})
    store = LatentStore(content.path)
    store._rows = store._rows.set_column(0, store._rows.schema.field(0), [["a/x.png", "a/x.jpg"]])
    with pytest.raises(UserError, match=r"two images would be a_x\.npy in this format; the second is a/x\.jpg"):
        convert_store(store, tmp_path / "out", "pixart")


def test_convert_command_prints_images_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = synthetic_store(tmp_path / "store")
    store, out = str(content.path), str(tmp_path / "out")
    assert main(["convert", store, out, "--format", "pixart"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"7 images for pixart: {out}\n"
    assert captured.err == "note: the format pixart has no place for mirror images; they are skipped\n"
    assert main(["convert", store, out, "--format", "pixart"]) == 2
    assert capsys.readouterr().err.startswith(f"ldm-ae: error: {out} is not empty")
    for arguments, message in (
        (["--format", "mar", "--fold", "x"], "--fold is 'x'; give a number, or trainer"),
        (["--format", "mar", "--model", "x"], "--model has no effect without --format store"),
        (["--format", "store", "--bucket", "1x1"], "--bucket has no effect with --format store"),
        (["--format", "store"], f"{store} is a latent store already"),
    ):
        assert main(["convert", store, str(tmp_path / "other"), *arguments]) == 2
        assert message in capsys.readouterr().err
    folded = tmp_path / "folded.zip"
    assert main(["convert", store, str(folded), "--format", "edm2-zip", "--fold", "trainer"]) == 0
    assert main(["convert", str(folded), str(tmp_path / "back"), "--format", "store"]) == 0
    assert "store of 7 images of edm2-zip: " in capsys.readouterr().out
    torch.testing.assert_close(
        LatentDataset(tmp_path / "back")[3]["latents"], content.tensors[3]["latents"], atol=1e-5, rtol=1e-5
    )  # moments go through exp, log and the fold in float32
