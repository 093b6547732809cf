"""A folder of JPEG files into a finished store, at kl_f8 widths: ours against the scripts that people write for it.

*plain*: PIL and torchvision's transforms in a DataLoader, diffusers' AutoencoderKL in float32 and NCHW under
`torch.no_grad()`, all samples in one safetensors file at the end. *npy* writes a file for each image. Ours does the
same and more: it hashes every image, flushes and hashes all files, and writes index and statistics. All store one
sample of each image and nothing of its mirror image, and decode with the same number of worker processes.

`--memory` measures the peak memory over 1,000 and over 10,000 images with a tiny model, which shows the growth with
the data set; `--bytes` measures the bytes of a store per image.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import encode as one_batch
import measuring
import numpy as np
import torch
from measuring import Variant
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from training_step import KL_F8, Setting, make_autoencoder

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.core.precision import FAST, bfloat16_speed
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.latents import encode_images
from ldm_ae.models import KLAutoencoder, pick_device


class Work(NamedTuple):
    """The images and the setting of one encoding."""

    setting: Setting
    """The setting, whose batch is that of one forward pass."""
    images: Path
    out: Path
    """A folder for the variants' results; each variant has its own subfolder."""
    workers: int
    latents: Literal["sample", "mode"] = "sample"


class Photos(Dataset[Tensor]):
    """Images as a plain script reads them, (3, H, W) in [-1, 1]."""

    def __init__(self, folder: Path, size: int):
        self.files = sorted(folder.glob("*.jpg"))
        self._transform = v2.Compose(
            [
                v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size), v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5]),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self._transform(image.convert("RGB"))


class Emptied:
    """A way of encoding, called with a folder that does not exist yet."""

    def __init__(self, folder: Path, way: Callable[[Path], object]):
        self.folder = folder
        self._way = way

    def __call__(self) -> Path:
        self._way(self.folder)
        return self.folder

    def settle(self) -> None:
        """Remove the result, and flush everything to the disk."""
        shutil.rmtree(self.folder)
        os.sync()


def script(work: Work, *, one_file: bool) -> Callable[[Path], None]:
    """Return a plain script's loop, as a function of its output folder."""
    model = one_batch.diffusers(work.setting, torch.float32)
    photos = Photos(work.images, work.setting.size)

    @torch.no_grad()
    def run(folder: Path) -> None:
        folder.mkdir(parents=True)
        loader = DataLoader(photos, batch_size=work.setting.batch, num_workers=work.workers)
        parts, done = [], 0
        for batch in loader:
            posterior = model.encode(batch.to(work.setting.device)).latent_dist
            latents = (posterior.sample() if work.latents == "sample" else posterior.mode()).cpu()
            if one_file:
                parts.append(latents)
                continue
            for row in latents:
                np.save(folder / f"{photos.files[done].stem}.npy", row.numpy())
                done += 1
        if one_file:
            save_file({"latents": torch.cat(parts).contiguous()}, folder / "latents.safetensors")

    return run


def own(work: Work, model: KLAutoencoder, precision: str, **options: object) -> Callable[[Path], None]:
    """Return `encode_images`, as a function of its output folder."""
    source = open_source(str(work.images))

    def run(folder: Path) -> None:
        arguments: dict[str, object] = dict(
            transform=ImageTransform(size=work.setting.size), batch_size=work.setting.batch, workers=work.workers,
            device=work.setting.device, precision=precision, latents=work.latents, compiled=work.setting.compiled,
        )  # fmt: skip
        encode_images(model, source, folder, **(arguments | options))  # type: ignore[arg-type]

    return run


def variants(work: Work) -> list[Variant]:
    """Return the two scripts, ours in float32, ours in bfloat16 on devices that are fast in it."""
    images = len(sorted(work.images.glob("*.jpg")))

    def theirs(name: str, *, one_file: bool) -> Emptied:
        return Emptied(work.out / name, script(work, one_file=one_file))

    def ours(precision: str) -> Emptied:
        keep_freed_memory(work.setting.device)  # as in `ldm-ae encode`
        model = make_autoencoder(work.setting)
        return Emptied(work.out / precision, own(work, model, precision, content="samples", flips=False))

    base = "plain script fp32"
    found = [
        Variant(base, partial(theirs, "plain", one_file=True), images=images),
        Variant("a .npy for each image, fp32", partial(theirs, "npy", one_file=False), base, images=images),
        Variant("ours fp32", partial(ours, "fp32"), base, target=1.3, images=images),
    ]
    if bfloat16_speed(work.setting.device) >= FAST:
        found.append(Variant("ours bf16", partial(ours, "bf16"), base, target=2.2, images=images))
    return found


def tiny_model() -> KLAutoencoder:
    """Return a model of downsample factor 8, as kl_f8, with almost no computation."""
    torch.manual_seed(0)
    return KLAutoencoder(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )


def memory_variants(folder: Path, device: torch.device, few: int, many: int) -> list[Variant]:
    """Return the same encoding of few and of many images of 64², decoded in the measured process."""

    def build(count: int) -> Emptied:
        images = make_images(folder / f"{count} images", count, different=100, size=(80, 64))
        work = Work(Setting((), 64, 32, device), images, folder, workers=0)
        return Emptied(folder / f"{count}", own(work, tiny_model(), "fp32", shard_size=256))

    return [Variant(f"{count:,} images", partial(build, count), images=count) for count in (few, many)]


def bytes_per_image(folder: Path, device: torch.device, *, count: int, size: int) -> list[str]:
    """Return a Markdown table of a store's bytes on the disk, by its contents."""
    images = make_images(folder / "images", count, different=16, size=(size, size))
    work = Work(Setting((), size, 32, device), images, folder, workers=0)
    lines = ["| content | dtype | with mirror images | bytes per image |", "|---|---|---|---|"]
    for content in ("full", "samples", "lean"):
        for dtype in ("fp32", "bf16"):
            for flips in (True, False):
                store = Emptied(
                    folder / "store", own(work, tiny_model(), "fp32", content=content, dtype=dtype, flips=flips)
                )
                total = sum(file.stat().st_size for file in store().rglob("*") if file.is_file())
                store.settle()
                lines.append(f"| {content} | {dtype} | {'yes' if flips else 'no'} | {round(total / count):,} |")
    return lines


def make_images(folder: Path, count: int, *, different: int, size: tuple[int, int]) -> Path:
    """Make JPEG files of (width, height), smooth with grain; some of them link to the same file. They are made once."""
    if folder.exists():
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    for number in range(count):
        file = temporary / f"{number:06d}.jpg"
        if number >= different:
            os.link(temporary / f"{number % different:06d}.jpg", file)
            continue
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        grain = random.normal(0, 8, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    if not folder.exists():  # Another variant's process may have been faster.
        os.rename(temporary, folder)
    return folder


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__, runs=5)
    parser.add_argument("--images", type=int, default=64, help="number of images (default: 64)")
    parser.add_argument("--folder", help="folder of JPEG files to encode instead of generated ones of 500x375 pixels")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: 2)")
    parser.add_argument(
        "--compile", action="store_true", help="also compile ours with --compile, in the first untimed call"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--memory", action="store_true", help="measure peak memory by the number of images")
    mode.add_argument("--bytes", action="store_true", help="measure the bytes of a store by its content")
    # All processes of one run use one folder.
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = pick_device(options.device)
    if options.scratch is not None:
        measure(options, Path(options.scratch), device)
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += ["--scratch", folder]
        measure(options, Path(folder), device)


def measure(options: argparse.Namespace, folder: Path, device: torch.device) -> None:
    """Run the requested measurement."""
    if options.bytes:
        lines = bytes_per_image(folder, device, count=256, size=options.size)
        print(f"### Bytes of a store for each image of {options.size}², factor 8, 4 channels\n", *lines, sep="\n")
        return
    if options.memory:
        measuring.run("Peak memory of encoding", memory_variants(folder, device, 1000, 10_000), options)
        return
    images = Path(options.folder) if options.folder else folder / "images"
    if not options.folder:
        make_images(images, options.images, different=options.images, size=(500, 375))
    setting = Setting(KL_F8, options.size, options.batch, device, compiled=options.compile)
    words = f"{len(sorted(images.glob('*.jpg')))} images to {options.size}², kl_f8 widths, batch {options.batch}"
    title = f"JPEG files to latents: {words}, {options.workers} workers"
    measuring.run(title, variants(Work(setting, images, folder / "out", options.workers)), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "encode_data_set"))
