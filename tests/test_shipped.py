"""The pretrained models of the package: the numbers of their cards, and the commands that use them by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import ldm_ae
from ldm_ae.cli import main
from ldm_ae.core.resources import DEFAULT_MODEL, shipped_models
from ldm_ae.core.shipped import VERSIONS
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation import evaluate
from ldm_ae.evaluation.metrics.lattice import Lattice
from ldm_ae.latents import LatentDataset, LatentStore, decode_store, encode_images
from ldm_ae.latents.encoding import encoder
from ldm_ae.latents.store.provenance import scaling_of
from ldm_ae.models import KLAutoencoder, VQAutoencoder, load_autoencoder, model_hash
from ldm_ae.models.identity import model_config
from ldm_ae.models.loading.weights import WEIGHTS
from ldm_ae.quantizers import FSQ, VQ

CLASSES = {
    "kl-f8c16-small": diffusers.AutoencoderKL,
    "kl-f8c4-small": diffusers.AutoencoderKL,
    "vq-f8-small": diffusers.VQModel,
}
CHANNELS = {"kl-f8c16-small": 16, "kl-f8c4-small": 4, "vq-f8-small": 4}
ON_HELD_OUT_PHOTOS = re.compile(r"photos:heldout\D*\| *([0-9.]+) dB *\| *([0-9.]+)")


def test_pretrained_models_are_listed() -> None:
    assert set(shipped_models()) == set(CLASSES)
    assert DEFAULT_MODEL in CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_installed_version_is_the_last_of_the_table(name: str) -> None:
    versions = [version for version in VERSIONS if version.name == name]
    assert [version.version for version in versions] == [*range(1, len(versions) + 1)]
    assert [version.is_installed for version in versions] == [False] * (len(versions) - 1) + [True]
    assert all(version.commit for version in versions[:-1])
    assert versions[-1].model_hash == model_hash(load_autoencoder(versions[-1].title))


@pytest.mark.parametrize("name", CLASSES)
def test_pretrained_model_is_a_small_diffusers_folder_with_a_scale(name: str) -> None:
    folder = shipped_models()[name]
    assert (folder / WEIGHTS).stat().st_size < 16e6
    theirs = CLASSES[name].from_pretrained(folder)
    ours = ldm_ae.load(name)
    assert ours.latent_spec.downsample_factor == 8
    assert ours.latent_spec.channels == CHANNELS[name]
    assert ours.sample_size == 256
    assert ours.latent_spec.scaling_factor == theirs.config.scaling_factor != 1.0
    pixels = ldm_ae.load_image(str(_photo()), size=64)
    with torch.no_grad():
        expected = theirs(pixels).sample
        found = ours.decode(ours.encode(pixels).mode())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


OLD_SCALE: dict[str, Any] = {
    "scaling_factor": 0.1858355684146287,
    "shift_factor": 0.0,
    "latents_mean": [2.5446327454885447, -0.11507723355817075, -0.9403579498029582, 0.9957875116227785],
    "latents_std": [7.041963166605435, 4.110333665099579, 4.71916770227239, 4.499987983887738],
}
"""The first configuration of kl-f8c4-small@1: a factor and vectors, to be applied one without the other."""


@pytest.mark.slow
def test_stores_with_the_earlier_scale_decode_and_resume(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source, transform = ldm_ae.load("kl-f8c4-small"), open_source(image_folder), ImageTransform(size=32)
    with monkeypatch.context() as old:
        old.setattr(encoder, "scaling_of", lambda spec: scaling_of(spec) | OLD_SCALE)
        old.setattr(encoder, "model_config", lambda model: model_config(model) | OLD_SCALE | {"shift_factor": None})
        encode_images(model, source, tmp_path / "old", transform=transform, device="cpu", flips=False)
    encode_images(model, source, tmp_path / "new", transform=transform, device="cpu", flips=False)
    before = (tmp_path / "old/store.json").read_bytes()
    assert b"4.719167" in before
    summary = encode_images(model, source, tmp_path / "old", transform=transform, device="cpu", flips=False)
    assert summary.already_complete
    assert (tmp_path / "old/store.json").read_bytes() == before
    assert decode_store(model, tmp_path / "old", tmp_path / "old pictures", device="cpu") == 12
    assert decode_store(model, tmp_path / "new", tmp_path / "new pictures", device="cpu") == 12
    for picture in (tmp_path / "new pictures").rglob("*.png"):
        twin = tmp_path / "old pictures" / picture.relative_to(tmp_path / "new pictures")
        assert picture.read_bytes() == twin.read_bytes()
    # Read with the store's own scale they are whitened, as they were.
    raw = LatentDataset(tmp_path / "old")[0]["latents"]
    scaled = LatentDataset(tmp_path / "old", spec=LatentStore(tmp_path / "old").spec)[0]["latents"]
    mean, std = (torch.tensor(OLD_SCALE[key]).view(4, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(scaled, (raw - mean) / std)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_model_card_states_the_measured_scores(name: str) -> None:
    card = (shipped_models()[name] / "README.md").read_text()
    for heading in ("Data", "Training", "Scores", "Intended use", "Limitations", "Licence"):
        assert f"\n## {heading}" in card
    source = open_source("photos:heldout")
    transform = ImageTransform(size=256, colour_profiles="ignore")  # as on the card
    loader = EvaluationLoader(source, transform, batch_size=1)
    found = evaluate(load_autoencoder(name), loader, source="", transform_description={}, model_name=name, device="cpu")
    said = ON_HELD_OUT_PHOTOS.search(card)
    assert said is not None
    assert found.scores["psnr"] == pytest.approx(float(said[1]), abs=0.05)
    assert found.scores["ssim"] == pytest.approx(float(said[2]), abs=0.001)


LATTICE_LIMIT = 3.0
"""Largest excess in dB of power at the periods of the decoder's strides in flat areas: what counts as no lattice."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_shipped_model_lays_no_lattice_over_flat_areas(name: str) -> None:
    loader = EvaluationLoader(open_source("photos:heldout"), ImageTransform(size=256), batch_size=1)
    found = evaluate(
        load_autoencoder(name), loader, source="", transform_description={}, model_name="",
        metrics=[Lattice()], device="cpu", pictures=0,
    )  # fmt: skip
    assert found.scores["lattice_db"] <= LATTICE_LIMIT


@pytest.mark.slow
def test_commands_use_a_pretrained_model_by_default(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--size", "64", "--workers", "0", "--device", "cpu"]
    images, store = str(image_folder), str(tmp_path / "store")
    assert main(["reconstruct", images, str(tmp_path / "pictures"), *common]) == 0
    assert main(["encode", *common, images, "--shard-size", "8", store]) == 0
    assert main(["decode", store, "--device", "cpu", str(tmp_path / "decoded")]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == len(list((tmp_path / "decoded").rglob("*.png"))) > 0
    assert LatentStore(store).spec == ldm_ae.load().latent_spec
    assert main(["inspect", DEFAULT_MODEL]) == 0
    assert "AutoencoderKL" in capsys.readouterr().out
    assert main(["decode", "vq-f8-small", store, str(tmp_path / "other")]) == 2  # another model wrote it


@pytest.mark.slow
def test_decoding_without_a_model_uses_the_shipped_one_that_made_the_store(
    image_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--size", "32", "--workers", "0", "--device", "cpu", "--no-flips"]
    for name, model in (("codes", "vq-f8-small"), ("own", str(tiny_model_folder))):
        assert main(["encode", model, str(image_folder), str(tmp_path / name), *common]) == 0
    assert main(["decode", str(tmp_path / "codes"), str(tmp_path / "pictures"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 12
    capsys.readouterr()
    assert main(["decode", str(tmp_path / "own"), str(tmp_path / "other"), "--device", "cpu"]) == 2
    assert "own was made by a model that does not ship with ldm_ae (hash " in capsys.readouterr().err


def test_training_starts_from_a_pretrained_model() -> None:
    assert isinstance(KLAutoencoder(pretrained="kl-f8c4-small").net, diffusers.AutoencoderKL)
    assert isinstance(VQAutoencoder(pretrained="vq-f8-small").quantizer, VQ)
    assert isinstance(VQAutoencoder(pretrained="kl-f8c4-small", quantizer=FSQ((8, 8, 8, 8))).quantizer, FSQ)


def test_folder_named_like_a_pretrained_model_has_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    widths = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    KLAutoencoder(**widths).save_pretrained(DEFAULT_MODEL)  # type: ignore[arg-type]
    assert ldm_ae.load(DEFAULT_MODEL).latent_spec.downsample_factor == 2


def _photo() -> Path:
    return next(Path(path) for path in open_source("photos:heldout")._paths)  # type: ignore[attr-defined]
