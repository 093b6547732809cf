"""`import ldm_ae`, as a person in a notebook uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldm_ae
from ldm_ae.cli import main
from ldm_ae.core import precision
from ldm_ae.core.errors import UserError
from ldm_ae.images.uint8 import from_levels
from ldm_ae.models import KLAutoencoder, OverflowGuard, Tiled, VQAutoencoder
from ldm_ae.quantizers import FSQ, VQ
from tests.images.test_transforms import center_crop_arr
from tests.models.patch_linear import PatchLinear
from tests.pictures import smooth_picture

SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False}


def photo(seed: int = 1, width: int = 32, height: int = 24) -> Image.Image:
    return smooth_picture(seed, width, height)


@pytest.fixture
def model(tiny_model: KLAutoencoder) -> KLAutoencoder:
    return tiny_model.eval()


# ------------------------------------------------------------------------------------------------------------ imports


def test_import_is_cheap_and_lazy() -> None:
    code = (
        "import sys, ldm_ae; heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'accelerate'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert {'losses', 'models', 'latents', 'data', 'load', 'metrics', 'evaluate', 'wrap'} <= set(dir(ldm_ae));"
        "assert not {*heavy, 'ldm_ae.losses', 'ldm_ae.api'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_listed_name_is_there_and_others_are_not() -> None:
    for name in dir(ldm_ae):
        assert getattr(ldm_ae, name) is not None or name == "__builtins__", name
    assert ldm_ae.load is ldm_ae.load
    with pytest.raises(AttributeError, match="module 'ldm_ae' has no attribute 'lod'"):
        ldm_ae.lod  # noqa: B018


# --------------------------------------------------------------------------------------------------------------- load


def test_api_loads_encodes_and_decodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    photo(1, 64, 48).save(tmp_path / "photo.png")
    model = ldm_ae.load(tiny_model_folder, device="cpu")
    x = ldm_ae.load_image(tmp_path / "photo.png", size=32)
    assert x.shape == (1, 3, 32, 32)
    assert -1 <= x.min() < x.max() <= 1
    latents = model.encode(x).mode()
    assert torch.equal(model.encode_images(tmp_path / "photo.png", size=32), latents)
    (decoded,) = model.decode_to_pil(latents)
    expected = model(x, torch.zeros_like(latents)).reconstructions
    assert np.array_equal(np.array(decoded), np.array(ldm_ae.evaluation.to_uint8_image(expected[0])))


@pytest.mark.parametrize(("dtype", "expected"), [
    (None, torch.float32), ("fp32", torch.float32), (torch.float32, torch.float32), ("auto", torch.float32),
    ("bf16", torch.bfloat16), (torch.bfloat16, torch.bfloat16), ("fp16", torch.float16),
])  # fmt: skip
def test_load_takes_a_dtype(tiny_model_folder: Path, dtype: object, expected: torch.dtype) -> None:
    model = ldm_ae.load(tiny_model_folder, device="auto", dtype=dtype)  # type: ignore[arg-type]
    assert (model.dtype, model.device.type, model.training) == (expected, "cpu", False)
    assert isinstance(model, OverflowGuard) == (expected == torch.float16)
    latents = model.encode_images(photo())
    assert (latents.dtype, latents.requires_grad) == (torch.float32, False)
    assert model.decode_to_pil(latents)[0].size == (32, 24)


def test_load_refuses_with_the_errors_of_the_commands(tiny_model_folder: Path, model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match="did you mean kl-f8c4-small"):
        ldm_ae.load("kl-f8c4-smal")
    with pytest.raises(UserError, match="device 'gpu' is not available"):
        ldm_ae.load(tiny_model_folder, device="gpu")
    for dtype in ("int8", torch.int8, 16):
        with pytest.raises(UserError, match="dtype must be auto, fp32, bf16, fp16, None"):
            ldm_ae.load(tiny_model_folder, dtype=dtype)  # type: ignore[arg-type]
    for other in (model, None):
        with pytest.raises(UserError, match="model must be a path or a name, got a"):
            ldm_ae.load(other)  # type: ignore[arg-type]


def test_invalid_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"photo\.png: "):
        ldm_ae.load_image(tmp_path / "photo.png", size=32)


def test_load_warns_about_a_slow_dtype_in_its_own_terms(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(precision.SPEED_VARIABLE, "0.1")
    precision._warn_if_slow.cache_clear()
    ldm_ae.load(tiny_model_folder, device="cpu", dtype="bf16")
    precision._warn_if_slow.cache_clear()
    (message,) = caplog.messages
    assert "bf16 is slow" in message
    assert "dtype='fp32'" in message
    assert "--" not in message


# ------------------------------------------------------------------------------------------------- images and latents


def test_encode_images_does_not_depend_on_the_container_or_the_batch(model: KLAutoencoder) -> None:
    pictures = [photo(i) for i in range(3)]
    levels = np.stack([np.array(picture) for picture in pictures])
    expected = model.encode(from_levels(torch.from_numpy(levels).permute(0, 3, 1, 2))).mode()
    assert expected.shape == (3, 4, 6, 8)
    # 1e-5: convolutions add in another order in another memory layout, and for one image in place of three.
    for images in (pictures, levels, list(levels), torch.from_numpy(levels).permute(0, 3, 1, 2), levels / 255.0):
        for batch_size in (1, 8):
            assert torch.allclose(model.encode_images(images, batch_size=batch_size), expected, atol=1e-5)


def test_encode_images_draws_on_request(model: KLAutoencoder) -> None:
    first, second = (
        model.encode_images(photo(), sample=True, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, model.encode_images(photo()))


def test_encode_images_names_the_fix_of_a_size(model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match=r"30x40 is not divisible .* factor 4; use for example 28x40, or give size=256"):
        model.encode_images(photo(1, 40, 30))
    with pytest.raises(UserError, match="images must have one size, got height x width 24x32, 32x24; give size="):
        model.encode_images([photo(), photo(1, 24, 32)])
    assert model.encode_images([photo(), photo(1, 24, 32)], size=16).shape == (2, 4, 4, 4)


def test_decode_to_pil_gives_an_image_for_each_latent(model: KLAutoencoder) -> None:
    latents = torch.randn(3, 4, 4, 6)
    images = model.decode_to_pil(latents, batch_size=2)
    assert [(image.mode, image.size) for image in images] == [("RGB", (24, 16))] * 3
    last = ldm_ae.evaluation.to_uint8_image(model.decode(latents[2:]).detach()[0])
    assert np.array_equal(np.array(images[2]), np.array(last))


def test_decode_to_pil_refuses_what_is_not_latents(model: KLAutoencoder) -> None:
    for latents, message in (
        (torch.zeros(4, 4, 4), r"latents must be \(B, 4, h, w\), got \(4, 4, 4\)"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.int64), "latents must be a floating-point tensor, got torch.int64"),
        (np.zeros((1, 4, 4, 4)), "latents must be a floating-point tensor, got ndarray"),
        (torch.full((1, 4, 4, 4), torch.nan), "latents must be finite"),
        (torch.full((1, 4, 4, 4), 3e38), "decoded from latents\\[0\\] is not finite"),
    ):
        with pytest.raises(UserError, match=message):
            model.decode_to_pil(latents)
    with pytest.raises(UserError, match="batch_size is 0"):
        model.decode_to_pil(torch.zeros(1, 4, 4, 4), batch_size=0)
    assert model.decode_to_pil(torch.zeros(0, 4, 4, 4)) == []
    codes = VQAutoencoder(quantizer=FSQ((4, 4, 3)), **SMALL).eval()
    with pytest.raises(UserError, match=r"model\.codebook\.latents\(indices\)"):
        codes.decode_to_pil(torch.zeros(1, 4, 4, dtype=torch.int64))


def test_scale_and_unscale_are_those_of_the_specification(model: KLAutoencoder) -> None:
    model.set_scaling(scaling_factor=0.5, shift_factor=0.25)
    latents = torch.randn(2, 4, 4, 4)
    assert torch.equal(model.scale(latents), (latents - 0.25) * 0.5)
    assert torch.allclose(model.unscale(model.scale(latents)), latents, atol=1e-6)
    for convert in (model.scale, model.unscale):
        with pytest.raises(UserError, match=r"latents must be \(B, 4, h, w\)"):
            convert(torch.zeros(2, 16, 4, 4))


# ------------------------------------------------------------------------------------------------ ranges of `encode`


@pytest.mark.parametrize(("pixel_values", "message"), [
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"got torch\.uint8; call model\.encode_images\(images\)"),
    (torch.rand(1, 3, 8, 8) * 255, r"must be in \[-1, 1\], got values .* call model\.encode_images"),
    (torch.full((1, 3, 8, 8), -1.6), r"must be in \[-1, 1\]"),
    (torch.full((1, 3, 8, 8), torch.nan), "must be finite"),
    (torch.zeros(1, 3, 8, 8, device="meta"), r"must be on the model's device cpu, got meta"),
    (np.zeros((1, 3, 8, 8)), "got ndarray; call model.encode_images"),
    (photo(), "got Image; call model.encode_images"),
])  # fmt: skip
def test_encode_refuses_other_ranges_and_types(model: KLAutoencoder, pixel_values: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.encode(pixel_values)  # type: ignore[arg-type]


def test_values_are_not_checked_in_training(model: KLAutoencoder) -> None:
    """A training step would wait for the accelerator; the type costs nothing and is checked."""
    model.train()
    model.encode(torch.full((1, 3, 8, 8), 2.0))
    with pytest.raises(UserError, match="uint8"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# --------------------------------------------------------------------------------------------------------------- wrap


def test_wrap_shares_the_parameters(model: KLAutoencoder) -> None:
    vae = model.net.half()
    wrapped = ldm_ae.wrap(vae)
    assert wrapped.net is vae
    assert (wrapped.dtype, wrapped.spec) == (torch.float16, model.spec)
    assert ldm_ae.wrap(wrapped) is wrapped
    vae.float()
    assert torch.equal(wrapped.encode_images(photo()), model.encode_images(photo()))


@pytest.mark.parametrize("legacy", [False, True])
def test_wrap_of_a_vq_model_of_diffusers(legacy: bool) -> None:
    vq = diffusers.VQModel(
        block_out_channels=(8, 16), norm_num_groups=4, num_vq_embeddings=16, vq_embed_dim=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    nn.init.normal_(vq.quantize.embedding.weight)
    if legacy:
        vq.register_to_config(legacy_beta=True)
    own = vq.quantize
    wrapped = ldm_ae.wrap(vq)
    assert isinstance(wrapped, VQAutoencoder)
    assert isinstance(wrapped.quantizer, VQ)
    assert (wrapped.quantizer.legacy, wrapped.quantizer.training) == (legacy, False)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in vq.parameters()}
    assert vq.quantize is own, "the pipeline's network has changed"
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        # 1e-5: distances to the codes are computed in another order.
        assert torch.allclose(wrapped(x).reconstructions, vq(x).sample, atol=1e-5)
        own.embedding.weight += 1.0
        assert torch.allclose(wrapped(x).reconstructions, vq(x).sample, atol=1e-5)
    wrapped.set_scaling(scaling_factor=2.0)
    assert vq.config.scaling_factor != 2.0


def test_wrap_refuses_other_objects(model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match=r"cannot wrap a Linear; expected one of .*AutoencoderKL, .*VQModel"):
        ldm_ae.wrap(nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"open it by ldm_ae\.load\('vq-f8-small'\)"):
        ldm_ae.wrap("vq-f8-small")
    for name in ("vae", "vqvae"):
        with pytest.raises(UserError, match=rf"ldm_ae\.wrap\(pipeline\.{name}\)"):
            ldm_ae.wrap(SimpleNamespace(**{name: model.net}))


@pytest.mark.usefixtures("patch_linear")
def test_wrap_takes_classes_of_plugins_and_their_subclasses() -> None:
    class Derived(PatchLinear):
        pass

    net = Derived()
    wrapped = ldm_ae.wrap(net)
    assert (type(wrapped).__name__, wrapped.net) == ("PatchLinearAutoencoder", net)
    assert wrapped.encode_images(photo()).shape == (1, 6, 6, 8)


# ------------------------------------------------------------------------------------------------ metrics and evaluate


@pytest.mark.slow
def test_metrics_are_those_of_the_command(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    places = [str(tiny_model_folder), str(image_folder), "--out", str(out)]
    options = ["--size", "32", "--workers", "0", "--limit", "4", "--perceptual", "stlpips_alex", "--features", "none"]
    assert main(["evaluate", *places, *options]) == 0
    scores = json.loads((out / "metrics.json").read_text())["scores"]
    model = ldm_ae.load(tiny_model_folder, device="cpu")
    originals = torch.cat([ldm_ae.load_image(path, size=32) for path in sorted(image_folder.rglob("*.png"))[:4]])
    reconstructions = model.decode(model.encode(originals).mode())
    found = ldm_ae.metrics(originals, reconstructions, perceptual="stlpips_alex")
    assert list(found) == ["psnr", "ssim", "stlpips_alex"]
    for name, value in found.items():
        # 1e-4: convolutions of another memory layout move single values across the border between two levels.
        assert value == pytest.approx(scores[name], rel=1e-4), name
    report = ldm_ae.evaluate(tiny_model_folder, image_folder, size=32, limit=4, perceptual="stlpips_alex",
                             metrics=("psnr", "ssim", "perceptual"), out=tmp_path / "report")  # fmt: skip
    assert report.metrics == {name: pytest.approx(scores[name], rel=1e-4) for name in found}
    assert report.page == tmp_path / "report" / "report.html"
    assert report.page.is_file()
    assert repr(report).splitlines()[1].startswith("psnr ↑")


def test_metrics_of_equal_and_of_known_images() -> None:
    pictures = [photo(1), photo(2, 40, 48)]
    assert ldm_ae.metrics(pictures, pictures, metrics=("psnr", "ssim")) == {"psnr": 100.0, "ssim": pytest.approx(1.0)}
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    # The error is a fifth of the range everywhere: 20 log10(5) dB.
    for other in (grey, grey / 255.0, Image.fromarray(grey)):
        assert ldm_ae.metrics(black, other, metrics="psnr")["psnr"] == pytest.approx(13.9794, abs=1e-4)


def test_metrics_refuse(model: KLAutoencoder) -> None:
    with pytest.raises(UserError, match="must be as many, got 2 and 1"):
        ldm_ae.metrics([photo(), photo()], photo())
    with pytest.raises(UserError, match=r"image 0 and its reconstruction must have one size, got .* 24x32 and 16x16"):
        ldm_ae.metrics(photo(), photo(1, 16, 16), metrics=["psnr"])
    with pytest.raises(UserError, match="did you mean psnr"):
        ldm_ae.metrics(photo(), photo(), metrics=["psn"])
    with pytest.raises(UserError, match="SSIM needs images of at least 11x11 pixels"):
        ldm_ae.metrics(photo(1, 8, 8), photo(1, 8, 8), metrics=["psnr", "ssim"])
    with pytest.raises(UserError, match="Rate has no value"):
        ldm_ae.metrics(photo(), photo(), metrics=["rate"])
    with pytest.raises(UserError, match="reconstructions is a tensor without negative values"):
        ldm_ae.metrics(photo(), torch.rand(3, 24, 32), metrics=["psnr"])


def test_evaluate_leaves_the_model_as_it_is(model: KLAutoencoder, image_folder: Path) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = ldm_ae.evaluate(model, image_folder, size=16, limit=3, metrics=["psnr"])
    assert set(report.metrics) == {"psnr"}
    assert (len(report.evaluation.images), report.page) == (3, None)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_evaluate_uses_the_precision_of_the_model(tiny_model_folder: Path, image_folder: Path, dtype: str) -> None:
    model = ldm_ae.load(tiny_model_folder, device="cpu", dtype=dtype)
    report = ldm_ae.evaluate(model, image_folder, size=16, limit=2, metrics=["psnr"])
    assert report.evaluation.protocol["precision"] == dtype
    (first, second) = (model.encode_images(photo()) for _ in range(2))
    assert torch.equal(first, second)


def test_evaluate_refuses(model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or file"):
        ldm_ae.evaluate(model, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"got Image; ldm_ae\.metrics takes images in memory"):
        ldm_ae.evaluate(model, photo())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not divisible"):
        ldm_ae.evaluate(model, image_folder, size=30)
    with pytest.raises(UserError, match="limit is 0"):
        ldm_ae.evaluate(model, image_folder, limit=0)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        ldm_ae.evaluate(model, image_folder, batch_size=0)
    out = tmp_path / "out"
    options = {"size": 16, "limit": 2, "metrics": ["psnr"], "out": out}
    ldm_ae.evaluate(model, image_folder, **options)
    with pytest.raises(UserError, match=r"holds an earlier result .*overwrite=True in Python"):
        ldm_ae.evaluate(model, image_folder, **options)
    page = ldm_ae.evaluate(model, image_folder, **options, overwrite=True).page
    assert page == out / "report.html"
    (out / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis\.tex\)"):
        ldm_ae.evaluate(model, image_folder, **options, overwrite=True)


@pytest.mark.slow
def test_evaluate_accepts_native_sizes_and_tiles(model: KLAutoencoder, image_folder: Path) -> None:
    whole = ldm_ae.evaluate(model, image_folder, size="native", metrics="psnr", batch_size=2)
    tiled = ldm_ae.evaluate(Tiled(model, tile=16), image_folder, size="native", metrics="psnr", batch_size=2)
    assert len(whole.evaluation.images) == 12
    assert whole.evaluation.protocol["images"]["size"] == "9 sizes from 40x60 to 60x52"  # type: ignore[index]
    assert "tiling" not in whole.evaluation.protocol
    assert str(tiled.evaluation.protocol["tiling"]).startswith("exact")
    assert tiled.metrics["psnr"] == pytest.approx(whole.metrics["psnr"], abs=1e-3)
    with pytest.raises(UserError, match="size must be a number of pixels or 'native', got 'big'"):
        ldm_ae.evaluate(model, image_folder, size="big")  # type: ignore[arg-type]


def test_evaluate_takes_the_crop_of_adm(model: KLAutoencoder, tmp_path: Path) -> None:
    for folder in ("photos", "cropped"):
        (tmp_path / folder).mkdir()
    for seed in range(2):
        picture = photo(seed, 90, 70)
        picture.save(tmp_path / "photos" / f"{seed}.png")
        Image.fromarray(center_crop_arr(picture, 16)).save(tmp_path / "cropped" / f"{seed}.png")
    found = ldm_ae.evaluate(model, tmp_path / "photos", size=16, crop="adm", metrics="psnr")
    assert found.metrics == ldm_ae.evaluate(model, tmp_path / "cropped", size=16, metrics="psnr").metrics
    assert found.metrics != ldm_ae.evaluate(model, tmp_path / "photos", size=16, metrics="psnr").metrics
    with pytest.raises(UserError, match="size='native' and crop='adm' exclude each other"):
        ldm_ae.evaluate(model, tmp_path / "photos", size="native", crop="adm")
    with pytest.raises(UserError, match='crop is \'random\'; it must be "center" or "adm"'):
        ldm_ae.evaluate(model, tmp_path / "photos", size=16, crop="random")  # type: ignore[arg-type]
