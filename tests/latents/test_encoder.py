"""Encoding a dataset: the content of the store, reproducibility, and refusals."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.latents import LatentDataset, LatentStore, inspect_store, verify_store
from ldm_ae.models import ChannelStatistics, GaussianPosterior, KLAutoencoder, model_hash
from tests.latents.helpers import contents, encode, overflow_encoder


def all_rows(store: Path) -> dict[str, Tensor]:
    shards = [load_file(path) for path in sorted(store.glob("32x32/*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def reference(model: KLAutoencoder, images: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the images and their mirror images, and labels, without the code under test."""
    batch = next(iter(EvaluationLoader(open_source(images), ImageTransform(size=32), batch_size=12)))
    with torch.no_grad():
        return model.encode(batch.pixel_values).moments, model.encode(batch.pixel_values.flip(3)).moments, batch.labels


def test_store_has_the_documented_files(store: Path) -> None:
    assert sorted(contents(store)) == [
        "32x32/latents_rank00_shard000.safetensors",
        "32x32/latents_rank00_shard001.safetensors",
        "32x32/latents_rank00_shard002.safetensors",
        "32x32/latents_stats.pt",
        "classes.json",
        "index.parquet",
        "stats.json",
        "store.json",
    ]


def test_stored_tensors_equal_the_model_outputs(tiny_model: KLAutoencoder, image_folder: Path, store: Path) -> None:
    moments, mirrored, labels = reference(tiny_model, image_folder)
    rows = all_rows(store)
    assert set(rows) == {
        "latents", "latents_flip", "moments", "moments_flip", "labels", "index", "original_size", "crop_ltrb",
    }  # fmt: skip
    # Another batch size and memory layout reorder float32 sums.
    torch.testing.assert_close(rows["moments"], moments, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows["moments_flip"], mirrored, atol=1e-5, rtol=1e-5)
    assert torch.equal(rows["labels"], labels)
    assert labels.unique().tolist() == [0, 1]
    assert rows["index"].tolist() == list(range(12))
    # The central square of an image of w x h: see the fixture and ImageTransform.
    source = open_source(image_folder)
    for i in range(12):
        number = int(source.key(i).split("/")[-1].split(".")[0])
        assert rows["original_size"][i].tolist() == [62 - number, 40 + 2 * number]
        left, top, right, bottom = rows["crop_ltrb"][i].tolist()
        assert right - left == pytest.approx(min(62 - number, 40 + 2 * number), abs=1)
        assert bottom - top == pytest.approx(right - left, abs=1)


def test_latents_are_the_mean_plus_scaled_unit_noise(store: Path) -> None:
    rows = all_rows(store)
    drawn = []
    for suffix in ("", "_flip"):
        posterior = GaussianPosterior(rows[f"moments{suffix}"])
        noise = (rows[f"latents{suffix}"] - posterior.mean) / torch.exp(0.5 * posterior.log_variance)
        # 12 * 4 * 8 * 8 = 3072 independent normals: four standard errors of mean and standard deviation.
        assert abs(float(noise.mean())) < 4 / math.sqrt(3072)
        assert abs(float(noise.std()) - 1) < 4 / math.sqrt(2 * 3072)
        drawn.append(noise.flatten(1))
    # Two samples, or an image and its mirror image, have different noise: correlations of 256 independent normals.
    correlations = torch.corrcoef(torch.cat(drawn)) - torch.eye(24)
    assert float(correlations.abs().max()) < 5 / math.sqrt(256)


@pytest.mark.slow
def test_noise_depends_only_on_seed_and_key(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "one")
    (image_folder / "cats/000_first.png").write_bytes((image_folder / "cats/001.png").read_bytes())
    encode(tiny_model, image_folder, tmp_path / "more", batch_size=2, shard_size=4)
    encode(tiny_model, image_folder, tmp_path / "other", seed=1)

    def by_key(path: Path) -> dict[str, Tensor]:
        data = LatentDataset(path)
        return {data[i]["key"]: data[i]["latents"] for i in range(len(data))}

    one, more, other = (by_key(tmp_path / name) for name in ("one", "more", "other"))
    assert len(more) == 13
    for key, latents in one.items():
        # Another batch around it may reorder float32 sums; other noise would differ by about 1.
        torch.testing.assert_close(more[key], latents, atol=1e-5, rtol=1e-5)
        assert (other[key] - latents).abs().mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16", "precision": "bf16"}, {"workers": 1}])
def test_encoding_is_byte_reproducible(
    changes: dict[str, object], tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    first = encode(tiny_model, image_folder, tmp_path / "one", **changes)
    second = encode(tiny_model, image_folder, tmp_path / "two", **changes)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not first.already_complete
    assert first.images == second.images == 12


def test_manifest_describes_the_store(image_folder: Path, store: Path) -> None:
    rows = pq.read_table(store / "index.parquet").to_pylist()
    assert [row["key"] for row in rows] == [open_source(image_folder).key(i) for i in range(12)]
    for i, row in enumerate(rows):
        assert row["source_hash"] == hashlib.sha256((image_folder / row["key"]).read_bytes()).hexdigest()
        assert (row["shard"], row["row"]) == (f"latents_rank00_shard{i // 5:03d}.safetensors", i % 5)
        assert (row["bucket"], row["source"], row["status"], row["error"]) == ("32x32", "images", "ok", None)
        number = int(Path(row["key"]).stem)
        assert (row["width"], row["height"]) == (40 + 2 * number, 62 - number)
        assert row["caption"] is None
        assert row["label"] in (0, 1)


def test_shard_header_contains_the_request(tiny_model: KLAutoencoder, store: Path) -> None:
    with safe_open(store / "32x32/latents_rank00_shard002.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format_version"] == "1"
    assert header["rows"] == "2"
    assert header["model_hash"] == model_hash(tiny_model)
    assert json.loads(header["model_config"])["latent_channels"] == 4
    assert json.loads(header["scaling"])["scaling_factor"] == 1.0
    assert (header["dtype"], header["seed"], header["value_range"]) == ("fp32", "0", "[-1, 1]")
    assert len(header["transform_hash"]) == 64


def test_statistics_are_those_of_the_stored_latents(store: Path) -> None:
    latents = all_rows(store)["latents"].double()
    statistics = json.loads((store / "stats.json").read_text())
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3), correction=0)
    # The same float64 sums in another order.
    assert statistics["channel_mean"] == pytest.approx(mean.tolist(), rel=1e-12)
    assert statistics["channel_std"] == pytest.approx(std.tolist(), rel=1e-12)
    assert statistics["scaling_factor"] == pytest.approx(1 / float(latents.std(correction=0)), rel=1e-12)
    assert statistics["images"] == 12
    lightningdit = torch.load(store / "32x32/latents_stats.pt", weights_only=True)
    assert {name: value.shape for name, value in lightningdit.items()} == {"mean": (1, 4, 1, 1), "std": (1, 4, 1, 1)}
    assert torch.equal(lightningdit["mean"].flatten(), mean.float())
    assert torch.equal(lightningdit["std"].flatten(), std.float())


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrow_dtypes_store_the_rounded_latents(
    dtype: str, kind: torch.dtype, tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    encode(tiny_model, image_folder, tmp_path / "narrow", dtype=dtype)
    wide, narrow = all_rows(store), all_rows(tmp_path / "narrow")
    for name in ("latents", "latents_flip", "moments", "moments_flip"):
        assert torch.equal(narrow[name], wide[name].to(kind))
    statistics = ChannelStatistics(4)
    statistics.update(narrow["latents"])
    assert LatentStore(tmp_path / "narrow").statistics.channel_mean.tolist() == pytest.approx(
        statistics.channel_mean.tolist(), rel=1e-12
    )
    assert verify_store(tmp_path / "narrow") == []


def test_encoding_without_flips_stores_the_mode(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    encode(tiny_model, image_folder, tmp_path / "store", flips=False, latents="mode")
    rows = all_rows(tmp_path / "store")
    assert not any(name.endswith("_flip") for name in rows)
    assert torch.equal(rows["latents"], rows["moments"][:, :4])
    assert verify_store(tmp_path / "store") == []


def test_encoding_does_not_change_the_model(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    before = model_hash(tiny_model)
    encode(tiny_model, image_folder, tmp_path / "store", precision="bf16", dtype="bf16")
    assert model_hash(tiny_model) == before
    assert next(tiny_model.parameters()).requires_grad


def test_model_hash_covers_weights_and_network_not_scaling(tiny_model: KLAutoencoder) -> None:
    before = model_hash(tiny_model)
    tiny_model.set_scaling(scaling_factor=0.5)
    assert model_hash(tiny_model) == before
    with torch.no_grad():
        tiny_model.last_layer[0, 0, 0, 0] += 1e-6
    assert model_hash(tiny_model) != before
    with pytest.raises(UserError, match="float32"):
        model_hash(tiny_model.bfloat16())  # type: ignore[arg-type]


def test_progress_reaches_the_total(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode(tiny_model, image_folder, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in (3, 5, 8, 10, 12, 12)]


def test_bad_images_are_listed_and_good_ones_stored(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    (image_folder / "cats/001.png").write_bytes(b"not an image")
    (image_folder / "dogs/zzz.png").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 13 images cannot be used") as error:
        encode(tiny_model, image_folder, tmp_path / "store")
    assert len(str(error.value).splitlines()) == 2
    store = LatentStore(tmp_path / "store")
    assert len(store) == 11
    assert set(store.bad()) == {"cats/001.png", "dogs/zzz.png"}
    assert verify_store(tmp_path / "store") == []
    rows = all_rows(tmp_path / "store")
    assert rows["index"].tolist() == list(range(1, 12))  # row 0 and row 12 of the manifest are the bad ones
    summary = encode(tiny_model, image_folder, tmp_path / "store", max_bad_fraction=0.2)
    assert summary.already_complete
    assert len(summary.bad) == 2


def test_encoding_only_bad_images_is_refused(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"none of the 1 images can be used; the first, a\.png"):
        encode(tiny_model, tmp_path / "images", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_complete_store_is_not_encoded_again(tiny_model: KLAutoencoder, image_folder: Path, store: Path) -> None:
    before = contents(store)
    assert encode(tiny_model, image_folder, store).already_complete
    with pytest.raises(UserError, match=r"made with seed 0 \(now 1\); use"):
        encode(tiny_model, image_folder, store, seed=1)
    with pytest.raises(UserError, match="made with dtype"):
        encode(tiny_model, image_folder, store, dtype="bf16")
    (image_folder / "cats/001.png").rename(image_folder / "cats/renamed.png")
    with pytest.raises(UserError, match="holds 12 images, of which 1 are not among these"):
        encode(tiny_model, image_folder, store)
    assert contents(store) == before


@pytest.mark.slow
def test_unfinished_store_is_completed(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(tiny_model, image_folder, tmp_path / "again", progress=stop)
    assert "32x32/latents_rank00_shard000.safetensors" in contents(tmp_path / "again")
    assert verify_store(tmp_path / "again") == [f"{tmp_path / 'again'} is not complete; rerun the command that made it"]
    with pytest.raises(UserError, match=r"made with seed 0 \(now 1\); use"):
        encode(tiny_model, image_folder, tmp_path / "again", seed=1)
    (tmp_path / "again/32x32/.latents_rank00_shard001.safetensors.99.tmp").write_bytes(b"half")
    assert not encode(tiny_model, image_folder, tmp_path / "again").already_complete
    assert contents(tmp_path / "again") == contents(store)


def test_other_folders_are_not_overwritten(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    before = contents(image_folder)
    with pytest.raises(UserError, match=r"is not empty \(cats\) and is not a latent store"):
        encode(tiny_model, image_folder, image_folder)
    assert contents(image_folder) == before
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is a file"):
        encode(tiny_model, image_folder, tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": ImageTransform(size=30)}, "not divisible by the model's downsample factor 4"),
        ({"transform": ImageTransform(size=32, flip=True)}, "a store needs a fixed crop"),
        ({"transform": ImageTransform(size=32, crop="random")}, "a store needs a fixed crop"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one of fp32, bf16, fp16"),
        ({"shard_size": 0}, "at least 1"),
        ({"precision": "fp8"}, "precision 'fp8' is not one of"),
        ({"device": "cuda"}, "device 'cuda' is not available"),
    ],
)
def test_refused_encoding_leaves_no_folder(
    changes: dict[str, object], message: str, tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        encode(tiny_model, image_folder, tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


def test_values_beyond_the_fp16_range_are_refused(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.net.quant_conv.weight.mul_(1e6)
    with pytest.raises(
        UserError, match=r"latents of cats/001\.png are too large to be stored as fp16; store bf16 or fp32$"
    ):
        encode(tiny_model, image_folder, tmp_path / "store", dtype="fp16")
    assert not list((tmp_path / "store").rglob("*.safetensors"))
    assert encode(tiny_model, image_folder, tmp_path / "wide").images == 12


@pytest.mark.slow
def test_batches_that_overflow_in_fp16_are_encoded_in_float32_and_counted(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def latents(store: Path) -> Tensor:
        return torch.stack([LatentDataset(store).read(i) for i in range(12)])

    assert encode(tiny_model, image_folder, tmp_path / "safe", precision="fp16").fp32_fallbacks == 0
    overflow_encoder(tiny_model, by=1e3)
    encode(tiny_model, image_folder, tmp_path / "fp32")
    assert not caplog.messages
    summary = encode(tiny_model, image_folder, tmp_path / "fp16", precision="fp16")
    assert len(caplog.messages) == 1
    # Shards of 5, 5 and 2 in batches of three: 2 + 2 + 1, and as many of mirror images.
    assert summary.fp32_fallbacks == LatentStore(tmp_path / "fp16").fp32_fallbacks == 10
    assert inspect_store(tmp_path / "fp16")["redone_batches"] == 10
    assert torch.equal(latents(tmp_path / "fp16"), latents(tmp_path / "fp32"))
    assert verify_store(tmp_path / "fp16") == []
    again = encode(tiny_model, image_folder, tmp_path / "fp16", precision="fp16")
    assert (again.already_complete, again.fp32_fallbacks) == (True, 10)


def test_encoder_non_finite_in_float32_is_refused(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    overflow_encoder(tiny_model, by=1e25)
    with pytest.raises(UserError, match=r"latents of cats/001\.png, .* is not finite in fp16 and in fp32; the weights"):
        encode(tiny_model, image_folder, tmp_path / "store", precision="fp16")
    assert not list((tmp_path / "store").rglob("*.safetensors"))
