"""The arguments and options that several commands share. Each is defined once."""

from __future__ import annotations

import argparse

from ldm_ae.core.deprecation import RenamedOption
from ldm_ae.core.resources import DEFAULT_MODEL

MODEL = (
    "a diffusers model or pipeline folder, a single .safetensors file of weights, a run directory, a checkpoint in it, "
    "RUN@best, RUN@last or RUN@STEP, hf:OWNER/NAME[/SUBFOLDER] on the Hugging Face hub (a model, a pipeline with one, "
    "or a single file by its name), or the name of a model that comes with ldm_ae, such as vq-f8-small"
)
IMAGES = (
    "a folder of images or one image, WebDataset tars, Parquet files, DICOM or NIfTI files, a `datasets` source (a "
    "folder that it saved or hf:OWNER/NAME), or one of those that need no download: photos:train and photos:heldout of "
    "the quickstart, digits:train, digits:test, sprites:N; the prefix folder:, tars:, parquet:, saved: or volumes: "
    "selects the kind of an ambiguous folder"
)

PERCEPTUAL = ("stlpips_vgg", "stlpips_alex", "lpips_vgg", "lpips_alex", "lpips_squeeze", "none")
"""Networks of --perceptual."""
NETWORKS = ("perceptual", "features", "inception_weights", "dinov2")
"""The networks of `add_metrics_options`, as argparse names them."""

NATIVE = "native"
"""Value of --size that keeps each image's own size."""
BUCKET_OPTIONS = ("sizes", "area", "multiple", "max_ratio")
"""The options of `add_bucket_options`, as argparse names them."""


def add_model(parser: argparse.ArgumentParser, *, required: bool = False, of_store: bool = False) -> None:
    """Add MODEL, which is optional unless `required`, and the configuration of a single file.

    Args:
        parser: The parser of a command.
        required: Whether there is no default.
        of_store: Whether the default depends on a store: it is None, and `maker_place` finds the model.
    """
    if required:
        parser.add_argument("model", metavar="MODEL", help=MODEL)
    else:
        default, words = (None, "the one of these that made STORE") if of_store else (DEFAULT_MODEL, DEFAULT_MODEL)
        parser.add_argument("model", metavar="MODEL", nargs="?", default=default, help=f"{MODEL} (default: {words})")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config."""
    parser.add_argument("--config", metavar="CONFIG", help="for a single file as MODEL: a JSON file, or a model folder "
                        "with its config.json, whose values take precedence over those inferred from the "
                        "weights")  # fmt: skip


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add IMAGES."""
    parser.add_argument("images", metavar="IMAGES", help=IMAGES)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add STORE."""
    parser.add_argument("store", metavar="STORE", help="latent store")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add OUT."""
    parser.add_argument("out", metavar="OUT", help="new folder for the results")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result of this command in the "
                        "folder; files of other names are never replaced")  # fmt: skip


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that control the scale and the weights of an exported model."""
    parser.add_argument("--scaling", choices=("auto", "keep", "measure"), default="auto", help="auto keeps an "
                        "existing scale, and measures on --images if there is none or the encoder was trained "
                        "after it was measured (default: %(default)s)")  # fmt: skip
    parser.add_argument("--per-channel", action=argparse.BooleanOptionalAction, help="measure latents_mean and "
                        "latents_std, for SDXL's pipelines and trainers that read them; those of Stable Diffusion, "
                        "Kolors, DiT, SD3 and FLUX ignore them and decode wrongly (default: if the model has "
                        "them)")  # fmt: skip
    parser.add_argument("--weights", choices=("fp32", "bf16", "fp16"), default="fp32", help="type of the written "
                        "weights (default: %(default)s)")  # fmt: skip


def add_images_options(parser: argparse.ArgumentParser, *, native: bool = False) -> None:
    """Add the options that control how images become pixels of one size, or with `native` also of each image's own."""
    own = f", or {NATIVE} for each image's own size, cropped to multiples of the model's downsample factor" * native
    parser.add_argument("--size", type=_size if native else int, metavar="SIZE", help="side of the central square crop "
                        f"in pixels{own} (default: the size that the model was trained at)")  # fmt: skip
    parser.add_argument("--resize", help="shorter side before the crop, or none for no resizing (default: the size)")
    parser.add_argument("--crop", choices=("center", "adm"), default="center", help="adm resizes like ADM's "
                        "center_crop_arr, which published scores on ImageNet use (default: %(default)s)")  # fmt: skip
    parser.add_argument("--colour-profiles", choices=("convert", "ignore"), help="convert colours to sRGB by the "
                        "images' colour profiles, or ignore these, as published data sets did (default: convert, or "
                        "the setting of the store that is resumed)")  # fmt: skip
    parser.add_argument("--max-pixels", type=int, metavar="N", help="skip larger images; decoding takes about 10 bytes "
                        "a pixel (default: 89 million)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="number of decoding processes (default: %(default)s)")
    parser.add_argument("--max-bad-fraction", type=float, default=0.01, help="fraction of unreadable images above "
                        "which the command fails (default: %(default)s)")  # fmt: skip
    parser.add_argument("--bad-share", type=float, action=RenamedOption, new="--max-bad-fraction")


def _size(text: str) -> int | str:
    """Parse the value of --size."""
    if text == NATIVE:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of pixels or {NATIVE}, got '{text}'") from None


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add --limit."""
    parser.add_argument("--limit", type=int, help="use the first LIMIT images only")


def add_metrics_options(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add the metrics, of which `default` is computed by default, and their networks."""
    parser.add_argument("--metrics", nargs="+", metavar="NAME", default=[default], help="metrics to compute, given "
                        "after MODEL and IMAGES; `default msssim` adds MS-SSIM to the default set, `compare` is the "
                        "set for a comparison of models, and an unknown name lists all (default: "
                        f"{default})")  # fmt: skip
    parser.add_argument("--perceptual", choices=PERCEPTUAL, help="network of the perceptual distance; lpips_* need "
                        "weights from torchvision (default: stlpips_vgg)")  # fmt: skip
    parser.add_argument("--features", choices=("auto", "inception", "efficientnet_lite0", "none"),
                        help="network of the Fréchet distance; auto is FID's Inception if its weights are on this "
                        "machine, else EfficientNet-Lite0, under its own name; inception downloads them once, "
                        "91 MiB")  # fmt: skip
    parser.add_argument("--inception-weights", metavar="FILE", help="FID's Inception weights as pytorch-fid or "
                        "torch-fidelity publish them, for a machine without a network (default: the file in "
                        "PyTorch's cache of downloads)")  # fmt: skip
    parser.add_argument("--dinov2", metavar="FOLDER", help="DINOv2 of the metric rfdd: a folder of config.json and "
                        "model.safetensors, or a name on the hub (default: facebook/dinov2-large; `compare` takes "
                        "it only from the hub's cache)")  # fmt: skip
    parser.add_argument("--view", metavar="VIEW", help="how networks that know RGB only see a model's other images: "
                        "repeated, composite, composite:black,white, bands:RED,GREEN,BLUE with names of channels, "
                        "triples or triples:NUMBER (default: grey is repeated, alpha is composited over black, white "
                        "and a checker, channels named red, green and blue are shown)")  # fmt: skip


def add_tiling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that bound the memory of large images."""
    parser.add_argument("--tile", type=int, metavar="SIZE", help="compute images in parts of SIZE x SIZE pixels, which "
                        "bounds the memory: exactly, where the network allows it, else in blended tiles (default: 0, "
                        "whole images)")  # fmt: skip
    parser.add_argument("--overlap", type=int, metavar="PIXELS", help="with --tile: minimum overlap of blended tiles "
                        "(default: a quarter of the tile)")  # fmt: skip
    parser.add_argument("--tiling", choices=("auto", "exact", "blended"), help="with --tile: exact gives the result of "
                        "the whole image; blended works with every network and changes the result (default: auto, "
                        "which is exact where possible)")  # fmt: skip


def add_bucket_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that control how images become pixels of several sizes."""
    parser.add_argument("--sizes", metavar="HxW,...", help="several sizes instead of --size, such as "
                        "256x256,192x320,320x192; each image is resized and cropped to the size with the nearest "
                        "aspect ratio")  # fmt: skip
    parser.add_argument("--area", metavar="HxW", help="like --sizes, with all sizes of about this area; "
                        "docs/LATENTS.md lists them")  # fmt: skip
    parser.add_argument("--multiple", type=int, help="with --area: divisor of every side (default: 64)")
    parser.add_argument(
        "--max-ratio", type=float, help="with --area: maximum ratio of the longer to the shorter side (default: 4)"
    )


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the device and the precision of the model."""
    parser.add_argument("--device", default="auto", help="device, such as cpu or cuda (default: %(default)s)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32", help="precision "
                        "of the model; auto is bf16 on a device that is fast in it and fp32 on others (default: "
                        "%(default)s)"
                        )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, default=8, help="number of images in one batch (default: %(default)s)"
    )
