"""Short training runs of a configuration, and their scores on held-out images."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation import evaluate
from ldm_ae.evaluation.baselines import score_quality
from ldm_ae.evaluation.codecs import Codec
from ldm_ae.evaluation.metric_sets import DEFAULT, named_metrics, perceptual_network, validation_metrics
from ldm_ae.models import load_autoencoder

RATES = ("kl_bits_per_pixel", "bits_per_pixel", "entropy_bits_per_pixel")


class Protocol(NamedTuple):
    """The scored images, and the method of scoring."""

    images: str
    """The location of the images, as `IMAGES` of `ldm-ae`."""
    size: int
    """Side of the central crop; the shorter side is not resized."""
    perceptual: str = "stlpips_alex"
    limit: int | None = None
    resize: int | Literal["none"] | None = "none"
    """Shorter side before the crop; None for `size`."""
    metrics: tuple[str, ...] = (DEFAULT,)
    """Names of metrics, as for ldm-ae evaluate; none has a Fréchet distance."""

    def loader(self) -> EvaluationLoader:
        """Return a loader of one image at a time."""
        source, transform = open_source(self.images), ImageTransform(size=self.size, resize=self.resize)
        return EvaluationLoader(
            source, transform, batch_size=1, indices=range(min(self.limit or len(source), len(source)))
        )

    def __str__(self) -> str:
        count = len(open_source(self.images))
        return f"{min(self.limit or count, count)} images of {Path(self.images).name}, central {self.size}² crops"


def protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that define a Protocol."""
    parser.add_argument("--test", required=True, help="IMAGES to score on")
    parser.add_argument("--size", type=int, default=256, help="side of the central crop (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="score only the first LIMIT images")
    parser.add_argument("--perceptual", default="stlpips_alex", help="as for ldm-ae evaluate (default: %(default)s)")


def train_and_score(folder: Path, arguments: list[str], protocol: Protocol) -> dict[str, float]:
    """Return the scores of `ldm-ae train ARGUMENTS --out FOLDER`, run in a new process; an existing run is resumed."""
    subprocess.run(
        [sys.executable, "-m", "ldm_ae.cli", "train", *arguments, "--out", str(folder)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    return score(folder, protocol)


def score(model: Path, protocol: Protocol) -> dict[str, float]:
    """Return scores by name, beside those of a bicubic thumbnail of as many numbers."""
    features = "none" if DEFAULT in protocol.metrics else None
    evaluation = evaluate(
        load_autoencoder(model), protocol.loader(), source=protocol.images, transform_description={},
        model_name=str(model),
        metrics=named_metrics(protocol.metrics, perceptual=protocol.perceptual, features=features),
    )  # fmt: skip
    return {name: float(value) for name, value in evaluation.scores.items()}


def score_codec(codec: Codec, quality: int, protocol: Protocol) -> dict[str, float]:
    """Return `bits_per_pixel` and the scores of a codec on the same images."""
    metrics = validation_metrics(perceptual_network(protocol.perceptual))
    found = score_quality(codec, protocol.loader(), quality, metrics)
    return found.scores | {"bits_per_pixel": found.bits_per_pixel}
