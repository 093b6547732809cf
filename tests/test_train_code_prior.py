"""The trainer of priors over codes: its rates are correct, its output opens, and its samples are images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm_ae.cli import main as ldm_ae
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.latents import LatentDataset, LatentStore, encode_images
from ldm_ae.models import HierarchicalVQAutoencoder, KLAutoencoder, VQAutoencoder
from ldm_ae.priors import HierarchicalPixelCNN, load_prior
from ldm_ae.quantizers import VQ, ResidualVQ
from tests.scripts import load_script

pytestmark = pytest.mark.slow  # commands and trainings, half a second and longer together with their set-up

SIZES = {"width": 32, "depth": 1}


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    return load_script("train_code_prior")


def encode(model: Any, images: Path, folder: Path, **options: Any) -> Path:
    """Twelve images in two classes as 8x8 codes in `folder`/store, beside `folder`/model."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder / "model")
    transform = ImageTransform(size=options.pop("size", 32))
    encode_images(model, open_source(images), folder / "store", transform=transform, device="cpu", **options)
    return folder / "store"


def discrete(levels: int = 1) -> VQAutoencoder:
    """Return a discrete model with all codes near the encoder's latents."""
    quantizers = VQ(16, 4), VQ(16, 4)
    quantizer = quantizers[0] if levels == 1 else ResidualVQ(quantizers[0], levels)
    model = VQAutoencoder(
        quantizer=quantizer, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            if name.endswith("embedding.weight"):
                value.normal_(std=0.3)
    return model


@pytest.fixture
def store(image_folder: Path, tmp_path: Path) -> Path:
    return encode(discrete(), image_folder, tmp_path / "made")


def run(trainer: ModuleType, store: Path, out: Path, **changes: Any) -> int:
    options = dict(prior="pixelcnn", steps=4, batch_size=4, log_every=2, held_out=0.25, **SIZES) | changes
    model = options.pop("model", store.parent / "model")
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return trainer.main(["--store", str(store), "--model", str(model), "--out", str(out), *words])


@pytest.mark.parametrize("prior", ["pixelcnn", "transformer"])
def test_training_writes_rates_and_samples_and_evaluate_uses_the_prior(
    prior: str, trainer: ModuleType, store: Path, image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "prior"
    assert run(trainer, store, out, prior=prior, coded=3) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()[:2]] == ["step 2", "step 4"]
    assert "3 of them round-tripped through the range coder" in printed
    found = json.loads((out / "metrics.json").read_text())
    assert found["images"] == {"training": 9, "held_out": 3, "coded": 3}
    rates = {name: rate["bits_per_code"] for name, rate in found["held_out"].items()}
    for rate in found["held_out"].values():
        assert rate["bits_per_pixel"] == pytest.approx(rate["bits_per_code"] * 64 / 1024)
    assert rates["fixed_length"] == 4.0
    assert rates["prior_of_the_coded"] == pytest.approx(rates["prior_given_class"], rel=1e-5)  # all three were coded
    assert rates["range_coder"] == pytest.approx(rates["prior_of_the_coded"], rel=0.01, abs=64 / 64)
    # The saved prior gives the same numbers for the held-out images.
    saved = load_prior(out)
    assert saved.prior.init_args["classes"] == 2
    data = LatentDataset(store, draw="indices")
    chosen, left_out = trainer.split_keys(LatentStore(store).good()["key"].to_pylist(), 3, 0)
    indices = torch.stack([data[i]["indices"] for i in left_out])
    labels = torch.tensor([data[i]["label"] for i in left_out])
    own, others = (
        torch.stack([data[i]["indices"] for i in rows]).flatten().bincount(minlength=16).double()
        for rows in (left_out, chosen)
    )
    shares, costs = own / own.sum(), -((others + 1) / (others + 1).sum()).log2()
    assert rates["entropy"] == pytest.approx(float(torch.special.entr(shares).sum()) / math.log(2))
    assert rates["frequencies"] == pytest.approx(float((shares * costs).sum()))
    assert rates["prior"] == pytest.approx(float(saved.prior.bits(indices).mean()) / 64, rel=1e-5)
    assert rates["prior_given_class"] == pytest.approx(float(saved.prior.bits(indices, labels).mean()) / 64, rel=1e-5)
    with Image.open(out / "samples.png") as grid:
        assert grid.size == (3 * 64 + 2 * 4, 2 * 64 + 2)  # enlarged from 32 pixels
        pixels = torch.tensor(list(grid.convert("L").tobytes())).view(130, -1)
    assert pixels[:64, :64].float().std() > 1
    assert pixels[66:, :64].float().std() > 1
    evaluation = tmp_path / "evaluation"
    arguments = ["evaluate", store.parent / "model", image_folder, "--size", 32, "--out", evaluation, "--prior", out,
                 "--features", "none", "--perceptual", "none", "--workers", 0]  # fmt: skip
    assert ldm_ae([str(argument) for argument in arguments]) == 0
    scores = json.loads((evaluation / "metrics.json").read_text())["scores"]
    everyone = torch.stack([data[i]["indices"] for i in range(12)])
    # Another batch may move a latent across the border of two codes.
    assert scores["prior_bits_per_pixel"] == pytest.approx(float(saved.prior.bits(everyone).mean()) / 1024, rel=0.01)


def test_prior_supports_residual_levels(
    trainer: ModuleType, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = encode(discrete(levels=2), image_folder, tmp_path / "levels", flips=False)
    assert run(trainer, store, tmp_path / "refused") == 2
    assert "use the transformer" in capsys.readouterr().err
    assert run(trainer, store, tmp_path / "prior", prior="transformer") == 0
    assert load_prior(tmp_path / "prior").prior.shape == (2, 8, 8)
    rates = json.loads((tmp_path / "prior/metrics.json").read_text())["held_out"]
    assert rates["fixed_length"] == {"bits_per_code": 4.0, "bits_per_pixel": 4.0 * 128 / 1024}
    assert rates["entropy"]["bits_per_code"] <= rates["frequencies"]["bits_per_code"]


def test_maps_have_a_pixelcnn_each_and_their_rates_add_up(
    trainer: ModuleType, image_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = HierarchicalVQAutoencoder(
        quantizer=VQ(16, 3), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2
    )
    for quantizer in model.quantizers:
        quantizer.state_dict()["embedding.weight"].normal_(std=0.3)
    store = encode(model.eval(), image_folder, tmp_path / "maps", flips=False, content="lean")
    out = tmp_path / "prior"
    assert run(trainer, store, out) == 0
    prior = load_prior(out).prior
    assert isinstance(prior, HierarchicalPixelCNN)
    assert (prior.shape, prior.lengths) == ((5, 8, 8), [64, 256])
    rates = json.loads((out / "metrics.json").read_text())["held_out"]
    assert rates["fixed_length"] == {"bits_per_code": 4.0, "bits_per_pixel": 4.0 * 320 / 1024}
    maps = [rates[f"prior_map_{number}"] for number in range(2)]
    assert [rate["bits_per_code"] * codes / 1024 for rate, codes in zip(maps, (64, 256), strict=True)] == pytest.approx(
        [rate["bits_per_pixel"] for rate in maps]
    )
    assert sum(rate["bits_per_pixel"] for rate in maps) == pytest.approx(rates["prior"]["bits_per_pixel"])
    assert (out / "samples.png").is_file()


@pytest.mark.slow
def test_prior_learns_beyond_code_frequencies(
    trainer: ModuleType, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nine images it becomes better than the code frequencies, from which it starts."""
    options = dict(prior="transformer", steps=60, log_every=15, dropout=0.0, learning_rate=0.01)
    assert run(trainer, store, tmp_path / "prior", **options) == 0
    learned = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    rates = json.loads((tmp_path / "prior/metrics.json").read_text())["held_out"]
    assert learned[-1] < 0.9 * rates["frequencies"]["bits_per_code"] < learned[0]


def test_prior_training_is_reproducible(trainer: ModuleType, store: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(trainer, store, tmp_path / name, seed=seed) == 0
    first, again, other = ((tmp_path / name / "prior.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    assert (tmp_path / "a/samples.png").read_bytes() == (tmp_path / "b/samples.png").read_bytes()


def test_unlabelled_codes_train_a_prior_without_classes(
    trainer: ModuleType, image_folder: Path, tmp_path: Path
) -> None:
    for path in image_folder.rglob("*.png"):
        path.rename(image_folder / path.name)
    store = encode(discrete(), image_folder, tmp_path / "made", content="lean")
    assert run(trainer, store, tmp_path / "prior", steps=1) == 0
    rates = json.loads((tmp_path / "prior/metrics.json").read_text())["held_out"]
    assert "prior_given_class" not in rates
    assert load_prior(tmp_path / "prior").prior.classes == 0
    assert all(math.isfinite(rate["bits_per_pixel"]) for rate in rates.values())


def test_damaged_store_is_refused_before_training(
    trainer: ModuleType, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = store.glob("32x32/*.safetensors")
    tensors = load_file(shard)
    tensors["indices"][3, 2, 1] = 16
    save_file(tensors, shard)
    assert run(trainer, store, tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "indices outside [0, 16)" in printed.err
    assert "step" not in printed.out


def test_invalid_options_are_refused_in_one_line(
    trainer: ModuleType, store: Path, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    kl = encode(tiny_model, image_folder, tmp_path / "kl")
    samples = encode(discrete(), image_folder, tmp_path / "samples", content="samples")
    other = encode(discrete(), image_folder, tmp_path / "other")
    for place, target, changes, message in (
        (kl, out, {}, "holds no indices"),
        (samples, out, {}, "holds no indices"),
        (store, out, dict(model=other.parent / "model"), "made by another model"),
        (store, out, dict(model=tmp_path / "nowhere"), "no such model"),
        (image_folder, out, dict(model=store.parent / "model"), "not a latent store"),
        (store, store, {}, "is not empty"),
        (store, out, dict(steps=0), "--steps must be at least 1"),
        (store, out, dict(held_out=1.0), "--held-out is 1.0"),
        (store, out, dict(held_out=0.99), "at least one must be left to train on"),
        (store, out, dict(prior="transformer", width=33), "needs a multiple of 32"),
        (store, out, dict(depth=0), "depth is 0"),
    ):
        assert run(trainer, place, target, **changes) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert not out.exists()
