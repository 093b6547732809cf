"""Stores in uint8: how far off they are, that they say so, and that every reader gets floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.latents import LatentDataset, LatentStore, decode_store, inspect_store, verify_store
from ldm_ae.latents.conversion.convert import convert_store
from ldm_ae.latents.conversion.import_store import import_latents
from ldm_ae.latents.store.files import write_safetensors
from ldm_ae.latents.store.quantize_uint8 import dequantize_uint8, pack, quantize_uint8, unpack
from ldm_ae.models import ChannelStatistics, KLAutoencoder, VQAutoencoder
from tests.latents.format_readers import READERS
from tests.latents.helpers import contents, encode
from tests.latents.test_content import SMALL, tensors
from tests.latents.test_decoder import read
from tests.latents.test_formats import content_of, expect
from tests.latents.test_indices import discrete, rewrite_description

pytestmark = pytest.mark.slow

SHARD = "32x32/latents_rank00_shard001.safetensors"


def test_uint8_error_is_at_most_half_a_step() -> None:
    values = torch.randn(50, 3, 32, 32) * torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1) + 5
    levels, scale = quantize_uint8(values)
    assert levels.dtype == torch.uint8
    assert levels.amin(dim=(2, 3)).eq(0).all()
    assert levels.amax(dim=(2, 3)).eq(255).all()
    span = values.amax(dim=(2, 3)) - values.amin(dim=(2, 3))
    error = (dequantize_uint8(levels, scale) - values).abs().amax(dim=(2, 3))
    assert (error <= span / 255 * 0.5 + 2e-6).all()  # float32 near 5 has a spacing of 5e-7
    # A uniform error of a step's width has a standard deviation of step / sqrt(12).
    measured = (dequantize_uint8(levels, scale) - values)[:, 1].square().mean().sqrt()
    assert measured == pytest.approx(float((span[:, 1] / 255).square().mean().sqrt()) / 12**0.5, rel=0.02)


def test_constant_channels_are_exact() -> None:
    values = torch.tensor([0.1, -7.25, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(dequantize_uint8(*quantize_uint8(values)), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_latents_have_a_non_finite_scale(value: float) -> None:
    values = torch.randn(2, 3, 4, 4)
    values[1, 2, 3, 3] = value
    _, scale = quantize_uint8(values)
    assert not scale[1, 2].isfinite().all()
    assert scale[0].isfinite().all()


def test_packing_records_the_error_of_the_read_latents() -> None:
    floats = {"latents": torch.randn(2, 3, 8, 8), "indices": torch.arange(8).view(2, 2, 2)}
    packed = pack(floats, lambda found: found["latents"])
    assert packed.keys() == {"latents", "latents_scale", "indices", "squared_error"}
    assert packed["indices"] is floats["indices"]
    read_back = unpack(packed)["latents"]
    torch.testing.assert_close(packed["squared_error"], (read_back - floats["latents"]).square().mean(dim=(2, 3)))
    assert pack({"indices": floats["indices"]}, lambda found: found["latents"]).keys() == {"indices"}


def test_uint8_errors_merge_exactly() -> None:
    parts, whole = [ChannelStatistics(2), ChannelStatistics(2)], ChannelStatistics(2)
    total = torch.zeros(2, dtype=torch.float64)
    for part, size in zip(parts, (4, 8), strict=True):  # of different sizes, so that places count and not images
        latents, errors = torch.randn(3, 2, size, size), torch.rand(3, 2)
        part.update(latents, squared_error=errors)
        total += errors.double().sum(dim=0) * size**2
        whole.merge(ChannelStatistics.from_state(json.loads(json.dumps(part.state()))))
    assert whole.relative_error is not None
    torch.testing.assert_close(whole.relative_error, (total / whole.count).sqrt() / whole.channel_std)
    assert ChannelStatistics.from_state(whole.state()).state() == whole.state()
    exact = ChannelStatistics(1)
    exact.update(torch.ones(1, 1, 2, 2), squared_error=torch.zeros(1, 1))
    assert exact.relative_error is not None
    assert exact.relative_error.tolist() == [0.0]  # of a constant channel
    assert ChannelStatistics(1).relative_error is None
    with pytest.raises(ValueError, match="lists of one length"):
        ChannelStatistics.from_state(whole.state() | {"errors": [1.0]})


@pytest.mark.parametrize("content", ["full", "samples", "lean"])
def test_recorded_error_equals_that_of_the_read_latents(
    content: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "exact", content=content)
    encode(tiny_model, image_folder, tmp_path / "store", content=content, dtype="uint8")
    kinds = {"full": ["latents", "moments"], "samples": ["latents"], "lean": ["moments"]}[content]
    names = [f"{kind}{view}" for kind in kinds for view in ("", "_flip")]
    found = tensors(tmp_path / "store")
    assert found.keys() == SMALL | {*names, *(f"{name}_scale" for name in names), "squared_error"}
    assert all(found[name].dtype == torch.uint8 for name in names)
    assert verify_store(tmp_path / "store") == []

    def latents(name: str) -> torch.Tensor:
        if content != "lean":
            return torch.stack([LatentDataset(tmp_path / name)[i]["latents"] for i in range(12)])
        # The draws of conversions, whose noise does not depend on the moments.
        data = LatentDataset(tmp_path / name, draw="sample")
        return torch.stack([data[i]["latents"] for i in range(12)])

    difference = (latents("store") - latents("exact")).double()
    std = latents("exact").double().std(dim=(0, 2, 3), correction=0)
    measured = difference.square().mean(dim=(0, 2, 3)).sqrt() / std
    reported = torch.tensor(json.loads((tmp_path / "store/stats.json").read_text())["relative_error"])
    assert 0 < reported.min() <= reported.max() < 0.01
    # The encoder's noise is another than that of draws; its part in the error is small.
    torch.testing.assert_close(reported.double(), measured, rtol=1e-3 if content != "lean" else 0.2, atol=0)
    assert inspect_store(tmp_path / "store")["statistics"]["relative_error"] == pytest.approx(reported.tolist())
    assert "relative_error" not in inspect_store(tmp_path / "exact")["statistics"]
    # Statistics are of what is read.
    if content != "lean":
        statistics = LatentStore(tmp_path / "store").statistics
        torch.testing.assert_close(statistics.channel_mean, latents("store").double().mean(dim=(0, 2, 3)))


def test_every_reader_returns_floats(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8")
    stored = tensors(tmp_path / "store")
    assert not list(tmp_path.glob("store/*/latents_stats.pt")), "LightningDiT would normalize levels with it"
    data = LatentDataset(tmp_path / "store")
    expected = dequantize_uint8(stored["latents"], stored["latents_scale"])
    assert all(torch.equal(data[i]["latents"], expected[i]) for i in range(12))
    moments = dequantize_uint8(stored["moments"], stored["moments_scale"])
    assert torch.equal(LatentDataset(tmp_path / "store", draw="mode")[7]["latents"], moments[7, :4])
    content = content_of(tmp_path / "store")
    for name in ("lightningdit", "mar", "fast-dit"):
        convert_store(tmp_path / "store", tmp_path / name, name)
        found = READERS[name](tmp_path / name)
        positions = [int(number) for number in found.names]
        expect(found, content, positions, scaled=name == "fast-dit", rtol=1e-6, atol=1e-6)
    shard = load_file(next((tmp_path / "lightningdit").glob("*.safetensors")))
    assert shard["latents"].dtype == torch.float32
    import_latents(tmp_path / "lightningdit", tmp_path / "back")
    assert verify_store(tmp_path / "back") == []
    assert LatentStore(tmp_path / "back").request.dtype == "fp32"


def test_images_decoded_from_uint8_latents_are_close(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    for dtype in ("fp32", "uint8"):
        encode(tiny_model, image_folder, tmp_path / dtype, dtype=dtype)
        decode_store(tiny_model, tmp_path / dtype, tmp_path / f"{dtype} out", device="cpu")
    for picture in (tmp_path / "fp32 out").rglob("*.png"):
        other = tmp_path / "uint8 out" / picture.relative_to(tmp_path / "fp32 out")
        assert abs(read(picture) - read(other)).max() <= 4  # of 255; the latents are off by about 1 % at most


@pytest.mark.parametrize("content", ["full", "lean"])
def test_uint8_store_resumes_to_the_same_bytes(
    content: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    """An image does not depend on the others of its file, nor does it matter in which run the others were encoded."""
    encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8", content=content)
    before = contents(tmp_path / "store")
    assert encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8", content=content).already_complete
    (tmp_path / "store" / SHARD).write_bytes(b"damaged")
    summary = encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8", content=content)
    assert not summary.already_complete
    assert contents(tmp_path / "store") == before
    encode(tiny_model, image_folder, tmp_path / "other", dtype="uint8", content=content, shard_size=12)
    ours, others = tensors(tmp_path / "store"), tensors(tmp_path / "other")
    assert all(torch.equal(value, others[name]) for name, value in ours.items())


@pytest.mark.parametrize("content", ["full", "lean"])
def test_uint8_store_keeps_indices_of_discrete_models(content: str, image_folder: Path, tmp_path: Path) -> None:
    """Indices are stored unchanged, and a store of only indices has no error."""
    model: VQAutoencoder = discrete("uint16")
    encode(model, image_folder, tmp_path / "store", dtype="uint8", content=content)
    assert verify_store(tmp_path / "store") == []
    found = tensors(tmp_path / "store")
    assert found["indices"].dtype == torch.uint16
    assert ("squared_error" in found) is (content == "full")
    assert (LatentStore(tmp_path / "store").statistics.relative_error is None) is (content == "lean")


def test_non_finite_latents_are_not_stored(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.net.quant_conv.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"latents of .* is not finite in fp32; the weights"):
        encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8")
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def without_error(found: dict[str, torch.Tensor]) -> None:
    del found["squared_error"]


def wide_scale(found: dict[str, torch.Tensor]) -> None:
    found["moments_scale"] = found["moments_scale"].double()


def no_scale(found: dict[str, torch.Tensor]) -> None:
    found["latents_flip_scale"][2, 1, 0] = float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_error, "has other tensors or shapes"),
        (wide_scale, "has other dtypes"),
        (no_scale, "has values in latents_flip_scale that are not finite"),
    ],
)
def test_wrong_scales_are_detected(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, tiny_model: KLAutoencoder, image_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    encode(tiny_model, image_folder, tmp_path / "store", dtype="uint8")
    found = load_file(tmp_path / "store" / SHARD)
    with safe_open(tmp_path / "store" / SHARD, "pt") as file:
        header = file.metadata()
    change(found)
    written = write_safetensors(tmp_path / "store" / SHARD, found, header)

    def sign(content: dict[str, Any]) -> None:
        content["files"][SHARD] = written._asdict()

    rewrite_description(tmp_path / "store", sign)
    [problem] = verify_store(tmp_path / "store")
    assert problem.startswith(f"{SHARD} {message}")


def test_encode_prints_the_uint8_error(
    tiny_model_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_model_folder), str(image_folder), str(tmp_path / "store"), "--size", "32", "--workers", "0"]
    assert main(["encode", *arguments, "--device", "cpu", "--dtype", "uint8"]) == 0
    error = LatentStore(tmp_path / "store").statistics.relative_error
    assert error is not None
    overall, largest = error.square().mean().sqrt(), error.max()
    words = f"error of uint8: {overall:.2%} of a channel's standard deviation, at most {largest:.2%}"
    assert words in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "store")]) == 0
    assert "relative_error: 0.0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["encode", *arguments, "--dtype", "uint8", "--bf16"])
    assert "--bf16: not allowed with argument --dtype" in capsys.readouterr().err
