"""`ldm-ae compare` of N models against N evaluations with the same metrics: time, and memory by the number of models.

    python scripts/benchmarks/compare.py --images BSDS500/test --limit 200 --cpu-time

Both sides open the models from their folders, read and crop the images, and write their pages, for two models and for
four. The evaluations are those of `ldm-ae evaluate`, one after the other in one process, so that the start of Python is
not counted. The models are those that ship with the package, and copies of them with other weights in the decoder.
`--cpu-time` suits a busy machine. The two calls of the warm-up use one model and two images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import measuring
import torch
from measuring import Variant

from ldm_ae.comparison import CompareConfig, Comparison, Contestant, comparison_folder, write_comparison
from ldm_ae.comparison import compare as compare_models
from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.evaluation import Evaluation, evaluate, named_metrics, write_report
from ldm_ae.io.files import make_folder
from ldm_ae.models import load_autoencoder, pick_device
from ldm_ae.models.loading.places import local_place

SHIPPED = ("kl-f8c4-small", "vq-f8-small")
COUNTS = (2, 4)
TARGET = 1.15
WARM_UP_CALLS, WARM_UP_IMAGES = 2, 2


class Work(NamedTuple):
    """What is measured, and where results are written."""

    models: Sequence[str]
    images: str
    out: Path
    """A folder for the results, which each call replaces."""
    size: int
    limit: int
    batch_size: int
    metrics: Sequence[str]
    device: str


class Call:
    """A function of the numbers of models and images, called with few of them in the warm-up."""

    def __init__(self, way: Callable[[int, int], object], models: int, images: int):
        self._way, self._models, self._images = way, models, images
        self._calls = 0

    def __call__(self) -> object:
        """Return the result."""
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self._way(1, min(WARM_UP_IMAGES, self._images))
        return self._way(self._models, self._images)


def evaluations(work: Work, count: int, images: int) -> list[Evaluation]:
    """Evaluate the first `count` models, as `ldm-ae evaluate` does."""
    found = []
    for model in work.models[:count]:
        transform = ImageTransform(size=work.size)
        loader = EvaluationLoader(
            open_source(work.images), transform, batch_size=work.batch_size, indices=range(images)
        )
        evaluation = evaluate(
            load_autoencoder(local_place(model)), loader, source=work.images, model_name=model,
            transform_description=transform.describe(), metrics=named_metrics(work.metrics), device=work.device,
        )  # fmt: skip
        write_report(evaluation, work.out / "evaluation")
        found.append(evaluation)
    return found


def comparison(work: Work, count: int, images: int) -> Comparison:
    """Compare the first `count` models, as `ldm-ae compare` does."""
    contestants = [
        Contestant(name=f"{number} {Path(model).name}", model=model, open=partial(load_autoencoder, local_place(model)))
        for number, model in enumerate(work.models[:count])
    ]
    config = CompareConfig(
        size=work.size, limit=images, metrics=work.metrics, device=work.device, batch_size=work.batch_size
    )
    with comparison_folder(work.out / "comparison", overwrite=True) as folder:
        found = compare_models(contestants, open_source(work.images), folder, config, source_name=work.images)
        write_comparison(found, folder)
    return found


def variants(work: Work) -> list[Variant]:
    """Return evaluations and comparison for each number of models."""

    def build(way: Callable[[Work, int, int], object], count: int, name: str) -> Call:
        keep_freed_memory(pick_device(work.device))
        own = work._replace(out=make_folder(work.out / name))
        return Call(partial(way, own), count, work.limit)

    found = []
    for count in COUNTS:
        base, name = f"{count} evaluations", f"comparison of {count}"
        images = work.limit * count
        found += [
            Variant(base, partial(build, evaluations, count, base), images=images),
            Variant(name, partial(build, comparison, count, name), base, cost=True, target=TARGET, images=images),
        ]
    return found


@torch.no_grad()
def write_models(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the named models, and of each a copy with noise in the decoder's weights, written unless it is there."""
    found = list(names)
    for number, name in enumerate(names):
        place = folder / f"copy of {Path(name).name}"
        if not place.is_dir():
            model = load_autoencoder(local_place(name))
            generator = torch.Generator().manual_seed(number)
            for weight in model.net.decoder.parameters():
                weight += 0.01 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
            model.save_pretrained(place)
        found.append(str(place))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__, runs=3)
    parser.add_argument("--images", default="photos:heldout", help="IMAGES (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT images")
    parser.add_argument("--size", type=int, default=256, help="side of the central crop (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")
    parser.add_argument("--metrics", nargs="+", default=["compare"], help="as for ldm-ae compare (default: compare)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # given to the processes of the variants
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ldm_ae-"))
    try:
        total = len(open_source(options.images))
        work = Work(
            models=write_models(folder, SHIPPED), images=options.images, out=folder, size=options.size,
            limit=min(options.limit or total, total), batch_size=options.batch_size, metrics=options.metrics,
            device=options.device,
        )  # fmt: skip
        if options.folder is None:
            sys.argv += ["--folder", str(folder)]
        title = f"Comparison of models, {work.limit} images at {work.size}²"
        measuring.run(title, variants(work), options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(exit_status(main, "compare"))
