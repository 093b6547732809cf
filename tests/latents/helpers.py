"""A small store for the tests of this folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.latents import EncodeSummary, encode_images
from ldm_ae.latents.store.files import write_safetensors
from ldm_ae.latents.store.format import DTYPES, StoreRequest
from ldm_ae.latents.store.provenance import scaling_of
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import Autoencoder, GaussianPosterior, KLAutoencoder, LatentSpec, hash_json
from ldm_ae.models.stored_rows import row_of_tensor


def encode(model: Autoencoder, images: Path, store: Path, **changes: Any) -> EncodeSummary:
    """Encode a folder at 32x32 on the CPU: twelve images, batches of three, shards of five."""
    options: dict[str, Any] = dict(
        transform=ImageTransform(size=32), source_name="images", batch_size=3, device="cpu", shard_size=5
    )
    source = changes.pop("source", None) or open_source(images)
    return encode_images(model, source, store, **(options | changes))


@torch.no_grad()
def overflow_encoder(model: KLAutoencoder, *, by: float) -> None:
    """Multiply two layers of the encoder: values grow by the square of `by`, until the normalization at its end.

    By 1e3 they are beyond fp16, by 1e25 beyond float32 too.
    """
    model.net.encoder.conv_in.weight.mul_(by)
    model.net.encoder.down_blocks[0].downsamplers[0].conv.weight.mul_(by)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder by its path there."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@dataclass
class Content:
    """What lies in a synthetic store, in the order of its index."""

    path: Path
    keys: list[str]
    labels: list[int]
    captions: list[str | None]
    sizes: list[tuple[int, int]]
    """(height, width) of the originals."""
    tensors: list[dict[str, Tensor]]
    """`latents` and `moments` of each image, and with flips those of its mirror image."""


def synthetic_store(
    path: Path,
    *,
    buckets: dict[str, int] | None = None,
    channels: int = 4,
    flips: bool = True,
    labelled: bool = True,
    captioned: bool = True,
    dtype: str = "fp32",
    seed: int = 0,
    shard: int = 3,
    indices: bool = False,
    **scaling: Any,
) -> Content:
    """A store of random latents with a standard deviation of about 3 and a mean of about 1, made without a model.

    Args:
        path: Of the store.
        buckets: Images by HxW of the pixels; the latents are a quarter of that.
        channels: C
        flips: Store mirror images.
        labelled: Labels 0, 1, 2, 0, ...; otherwise none.
        captioned: Captions, with letters outside ASCII.
        dtype: fp32, fp16 or bf16
        seed: Of the values.
        shard: Images of one file.
        indices: In place of moments, of the codebook in `scaling`; random, so that they say nothing of the latents.
        scaling: Of the model's `LatentSpec`.
    """
    spec = LatentSpec(**{"channels": channels, "downsample_factor": 4, "scaling_factor": 0.5} | scaling)
    request = StoreRequest(
        source="images", images=sum((buckets or {"32x32": 7}).values()), keys_hash="", model_hash="0" * 64,
        model_config={}, scaling=scaling_of(spec), transform={}, transform_hash=hash_json({}), dtype=dtype,
        precision="fp32", latents="sample", flips=flips, seed=seed, batch_size=1, shard_size=shard,
        indices=indices,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    writer = StoreWriter(path, request)
    content = Content(path, [], [], [], [], [])
    units = itertools.count()
    for bucket, count in (buckets or {"32x32": 7}).items():
        height, width = (int(side) // 4 for side in bucket.split("x"))
        for start in range(0, count, shard):
            rows, parts = [], []
            for _ in range(start, min(start + shard, count)):
                number = len(content.keys)
                key, size = f"folder {number % 2}/{number:03d}.png", (40 + number, 50 + 2 * number)
                caption = f"a picture, number {number} é" if captioned else None
                tensors = {}
                for view in ("", "_flip") if flips else ("",):
                    mean = 1 + 3 * torch.randn(channels, height, width, generator=generator)
                    log_variance = torch.randn(channels, height, width, generator=generator) - 3
                    moments = torch.cat([mean, log_variance]).to(DTYPES[dtype])
                    noise = seeded_noise(torch.tensor([derive_seed(seed, key, view)]), (channels, height, width))
                    tensors[f"latents{view}"] = (
                        GaussianPosterior(moments[None]).sample(noise=noise)[0].to(DTYPES[dtype])
                    )
                    if indices:
                        shape, narrow = row_of_tensor("indices", bucket, spec, DTYPES[dtype])
                        codes = torch.randint(spec.codebook_size or 0, shape, generator=generator)
                        tensors[f"indices{view}"] = codes.to(narrow)
                    else:
                        tensors[f"moments{view}"] = moments
                content.keys.append(key)
                content.labels.append(number % 3 if labelled else -1)
                content.captions.append(caption)
                content.sizes.append(size)
                content.tensors.append(tensors)
                rows.append({"key": key, "source": "images", "source_hash": f"{number:064d}", "height": size[0],
                             "width": size[1], "crop": [0, 0, size[1], size[0]], "label": content.labels[-1],
                             "caption": caption, "bucket": bucket, "status": "ok"})  # fmt: skip
                parts.append(tensors | {"labels": torch.tensor(content.labels[-1]), "index": torch.tensor(number),
                                        "original_size": torch.tensor(size),
                                        "crop_ltrb": torch.tensor([0, 0, size[1], size[0]])})  # fmt: skip
            stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
            writer.add_unit(next(units), {bucket: stacked}, rows)
    writer.finish()
    return content


def drop_tensors(store: Path, *prefixes: str) -> None:
    """Write the shards of a store again without the tensors of these kinds."""
    for file in store.glob("*/*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(prefixes)}
        with safe_open(file, "pt") as shard:
            header = shard.metadata()
        write_safetensors(file, kept, header)
