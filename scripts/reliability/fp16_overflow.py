"""A model that overflows in fp16, through the commands: found, done again in float32, one warning, no black image.

Four kinds of tiny models with random weights: one whose decoder and one whose encoder has activations beyond float16's
65504, though all is well in float32; one that overflows in float32 too, which must end with an error that names an
image; and one that is safe, which must be left alone. Each goes through evaluate, encode, decode, reconstruct and
export with --precision fp16 on the CPU, and is compared with the same command in fp32.

    python scripts/reliability/fp16_overflow.py --trials 5
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trials import Trial, arguments, make_images

from ldm_ae.cli import main as ldm_ae
from ldm_ae.latents import LatentDataset, LatentStore, inspect_store
from ldm_ae.models import KLAutoencoder

IMAGES, SIZE = 6, 16
# What stays in fp16 is right to 11 bits an operation. Through a dozen layers that came to 3 levels of 255, and to 0.002
# in latents whose standard deviation is 0.2 or more.
LEVELS, LATENTS, DECIBELS = 6, 0.01, 0.2
KINDS = ("decoder", "encoder", "hopeless", "safe")
_DEVICE = ["--device", "cpu", "--batch-size", "2"]
_INPUT = ["--size", str(SIZE), "--workers", "0", *_DEVICE]


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def warnings_of_package() -> Iterator[list[str]]:
    """The warnings that the package logs meanwhile, which are not printed."""
    logger, handler = logging.getLogger("ldm_ae"), _Warnings()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield handler.messages
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)


def make_model(folder: Path, kind: str, seed: int) -> Path:
    """A model folder of one of `KINDS`.

    The factors make the residual stream large; the normalization at its end takes them out again, in float32.
    """
    torch.manual_seed(seed)
    model = KLAutoencoder(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    )
    model.set_sample_size(SIZE)
    encoder, decoder = model.net.encoder, model.net.decoder
    scaled = {
        "decoder": [(model.net.post_quant_conv, 1e3), (decoder.conv_in, 1e3)],
        "encoder": [(encoder.conv_in, 1e3), (encoder.down_blocks[0].downsamplers[0].conv, 1e3)],
        "hopeless": [(model.net.post_quant_conv, 1e25), (decoder.conv_in, 1e25)],
        "safe": [],
    }[kind]
    with torch.no_grad():
        decoder.conv_out.weight *= 3.0  # contrast, without which every picture is grey and none is wrong
        for module, factor in scaled:
            module.weight *= factor
    model.save_pretrained(folder)
    return folder


def run(*words: object) -> tuple[int, str, list[str]]:
    """A command in this process: its exit status, its two outputs together, its warnings."""
    text = io.StringIO()
    with warnings_of_package() as messages, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = ldm_ae([str(word) for word in words])
    return status, text.getvalue(), messages


def same_pictures(folder: Path, expected: Path) -> list[str]:
    """What is wrong with the PNG files of a folder, against those of another."""
    names = sorted(path.name for path in expected.glob("*.png"))
    if len(names) != IMAGES or names != sorted(path.name for path in folder.glob("*.png")):
        return [f"{folder.name} and {expected.name} do not hold the same {IMAGES} images"]
    found, wanted = (
        np.stack([np.asarray(Image.open(path / name).crop((0, 0, SIZE, SIZE))).astype(int) for name in names])
        for path in (folder, expected)
    )
    wrong = [] if (found.max(axis=(1, 2, 3)) > 0).all() else ["an image is black"]
    distance = abs(found - wanted).max()
    return wrong + ([f"images are {distance} levels apart"] if distance > LEVELS else [])


def same_latents(store: Path, expected: Path) -> list[str]:
    """What is wrong with the latents of a store, against those of another."""
    found, wanted = (
        torch.stack([data.read(i, flipped=flipped) for flipped in (False, True) for i in range(len(data))])
        for data in (LatentDataset(LatentStore(path)) for path in (store, expected))
    )
    problems = inspect_store(store)["problems"]
    if not found.isfinite().all():
        problems.append("latents are not finite")
    distance = float((found - wanted).abs().max())
    return problems + ([f"latents are {distance:.3g} apart"] if not distance <= LATENTS else [])


def try_kind(trial: Trial, kind: str, folder: Path, images: Path, seed: int) -> None:
    """Every command with a model of one kind, in fp16 and for comparison in fp32."""
    model = make_model(folder / "model", kind, seed)
    fp16, fp32 = folder / "fp16", folder / "fp32"
    scores = ["--perceptual", "none", "--features", "none", "--out"]
    commands: dict[str, tuple[list[object], list[object]]] = {
        "evaluate": ([model, images], [*scores, fp16 / "scores", *_INPUT]),
        "encode": ([model, images, fp16 / "store"], ["--latents", "mode", *_INPUT]),
        # From one store, so that what is seen is the decoder's own.
        "decode": ([model, fp32 / "store", fp16 / "decoded"], _DEVICE),
        "reconstruct": ([model, images, fp16 / "rebuilt"], _INPUT),
    }
    touched = {"decoder": ("evaluate", "decode", "reconstruct"), "encoder": ("evaluate", "encode", "reconstruct")}
    for name, (places, options) in commands.items():
        other = [str(place).replace(str(fp16), str(fp32)) for place in (*places, *options)]
        expected_status, _, _ = run(name, *other)
        status, text, messages = run(name, *places, *options, "--precision", "fp16")
        fails = kind == "hopeless" and name != "encode"
        wrong = [] if status == expected_status == (2 if fails else 0) else [f"exit status {status}: {text.strip()}"]
        warnings = int(name in touched.get(kind, ()))
        if len(messages) != warnings or any("fp16 overflowed" not in message for message in messages):
            wrong.append(f"{len(messages)} warnings, expected {warnings}: {messages}")
        if fails:
            if "00000.png" not in text or "not finite" not in text:
                wrong.append(f"the error names no image: {text.strip()}")
            wrong += [f"{path} was written" for path in fp16.rglob("*.png")]
        elif not wrong:
            wrong += _compare(name, kind, fp16, fp32)
        trial.count(not wrong, f"seed {seed}, {kind}, {name}: {'; '.join(wrong)}")
    if kind != "hopeless":
        status, text, _ = run("export", model, folder / "exported", "--images", images, *_INPUT)
        words = [": safe in fp16"] if kind == "safe" else [": not safe in fp16", f" in {kind}."]
        held = status == 0 and all(word in text for word in words)
        trial.count(held, f"seed {seed}, {kind}, export: exit status {status}, not {words}: {text.strip()}")


def _compare(name: str, kind: str, fp16: Path, fp32: Path) -> list[str]:
    """What is wrong with the result of a command that succeeded."""
    if name == "encode":
        redone = inspect_store(fp16 / "store")["redone_batches"]
        wanted = IMAGES // 2 * 2 if kind == "encoder" else 0  # batches of two, and of their mirror images
        counted = [] if redone == wanted else [f"{redone} batches redone in the store, expected {wanted}"]
        return counted + same_latents(fp16 / "store", fp32 / "store")
    if name != "evaluate":
        part = {"decode": "decoded", "reconstruct": "rebuilt"}[name]
        return same_pictures(fp16 / part, fp32 / part)
    found, wanted = (json.loads((path / "scores" / "metrics.json").read_text()) for path in (fp16, fp32))
    wrong = []
    redone = found["protocol"]["redone_batches"]["count"]
    if redone != (0 if kind == "safe" else IMAGES // 2):
        wrong.append(f"{redone} batches redone in the protocol")
    if found["activations"]["safe_in_fp16"] != (kind == "safe"):
        wrong.append(f"the range of activations gives safe = {found['activations']['safe_in_fp16']}")
    distance = max(abs(a["psnr"] - b["psnr"]) for a, b in zip(found["images"], wanted["images"], strict=True))
    return wrong + ([f"PSNR is {distance:.3g} dB apart"] if not distance <= DECIBELS else [])


def main(words: Sequence[str] | None = None) -> int:
    """The trial; its exit status."""
    args = arguments(__doc__, trials=5).parse_args(words)
    trial = Trial(
        11, "models that overflow in fp16", "repeated in fp32 with one warning, results as in fp32, no black image"
    )
    with tempfile.TemporaryDirectory() as temporary:
        images = make_images(Path(temporary) / "images", IMAGES, size=SIZE)
        for i in range(args.trials):
            for kind in KINDS:
                folder = Path(temporary) / f"{i}-{kind}"
                try_kind(trial, kind, folder, images, args.seed + i)
    return trial.finish(args.json)


if __name__ == "__main__":
    sys.exit(main())
