"""Train a prior over the codes of a discrete autoencoder, and report the rate that an entropy coder reaches with it.

    ldm-ae encode MODEL IMAGES STORE
    python scripts/train_code_prior.py --store STORE --model MODEL --out DIR --prior pixelcnn
    accelerate launch scripts/train_code_prior.py ...
    ldm-ae evaluate MODEL OTHER_IMAGES --prior DIR

`pixelcnn` is our gated PixelCNN (arXiv 1606.05328), `transformer` is GPT-2 of the library transformers over the codes
in raster order, which also takes the levels of a residual quantizer. The codes of a hierarchical model (VQ-VAE-2) are
several maps: `pixelcnn` is then one PixelCNN a map, each conditioned on the coarser maps and all trained together. If
the store has labels, the prior is conditioned on classes; one label in ten is dropped in training, so that the prior
also works without.

A fraction of the images is held out. DIR/metrics.json has their bits per code and per pixel, by each way of counting:

    fixed_length       log2 of the codebook's size for every code
    entropy            of the held-out codes' own frequencies, as if these were known at no cost
    frequencies        without context, by the frequencies of the training images' codes
    prior              -log2 of the trained prior's probability, without a class
    prior_given_class  the same with the image's class, whose own bits are not counted
    prior_map_0, ...   the share of each map of a hierarchical model in `prior`, the coarsest first; bits per code are
                       those of the map's own codes
    range_coder        the size of some of them after range coding with the prior and the class; they are decoded again
    prior_of_the_coded the prior's number for these images

DIR/samples.png has held-out images decoded from their own codes, and below each a sample of the prior, of the same
class.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, Subset

from ldm_ae.core.errors import RunError, UserError, exit_status
from ldm_ae.core.precision import PRECISIONS, agreed_numerics
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import split_keys
from ldm_ae.evaluation import comparison_grid, legible
from ldm_ae.evaluation.metrics.codebook import CodebookUsage
from ldm_ae.io.files import require_new_folder, write_json, writing_folder
from ldm_ae.latents import LatentDataset, LatentStore, endless
from ldm_ae.models import Autoencoder, LatentSpec, load_autoencoder, pick_device
from ldm_ae.priors import (
    CausalTransformer,
    CodePrior,
    GatedPixelCNN,
    HierarchicalPixelCNN,
    decode_indices,
    encode_indices,
    save_prior,
)

LABEL_DROPOUT = 0.1
"""Fraction of labels that are dropped, so that the prior also learns to work without labels."""
PRIORS: dict[str, type[CodePrior]] = {"pixelcnn": GatedPixelCNN, "transformer": CausalTransformer}


def check(args: argparse.Namespace) -> None:
    """Raise `UserError` for invalid options."""
    require_new_folder(args.out, "the prior")
    for name in ("steps", "batch_size", "log_every", "coded", "samples"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0.0 < args.held_out < 1.0:
        raise UserError(f"--held-out is {args.held_out}; it must lie between 0 and 1")


def image_pixels(store: LatentStore) -> int:
    """Return the number of pixels of each image; raise `UserError` if the images differ."""
    buckets = store.good()["bucket"].unique().to_pylist()
    if len(buckets) > 1:
        raise UserError(
            f"{store.path} has images of {', '.join(buckets)}; a prior needs one size: encode with a single size"
        )
    height, width = (int(side) for side in buckets[0].split("x"))
    return height * width


def build_prior(args: argparse.Namespace, data: LatentDataset) -> CodePrior:
    """Return the requested prior, with the classes of the store."""
    sizes = {name: value for name in ("width", "depth") if (value := getattr(args, name)) is not None}
    spec = data.store.spec
    kind = HierarchicalPixelCNN if args.prior == "pixelcnn" and spec.codebook_maps else PRIORS[args.prior]
    return kind(
        codebook_size=spec.codebook_size, shape=tuple(data[0]["indices"].shape),
        classes=int(data.labels.max()) + 1, dropout=args.dropout, **sizes,
    )  # fmt: skip


@torch.no_grad()
def bits_per_image(prior: CodePrior, loader: DataLoader, accelerator: Accelerator, *, told: bool) -> float:
    """Return the mean over the images of all processes; `told` gives the prior their classes."""
    prior.eval()
    found: list[Tensor] = []
    for batch in loader:
        found.append(accelerator.gather_for_metrics(prior.bits(batch["indices"], batch["label"] if told else None)))
    prior.train()
    return torch.cat(found).mean().item()


@torch.no_grad()
def bits_by_map(prior: HierarchicalPixelCNN, loader: DataLoader) -> list[float]:
    """Return the mean bits of each map of an image, without a class."""
    prior.eval()
    found = [prior.bits_of_maps(batch["indices"].to(prior.device)) for batch in loader]
    return torch.cat(found).mean(dim=0).tolist()


def without_context(spec: LatentSpec, training: Dataset, held_out: Dataset) -> dict[str, float]:
    """Return the bits of a held-out image if every code costs the same at each position."""
    size, maps = spec.codebook_size, spec.codebook_maps
    assert size is not None, "a store with indices has a codebook"
    usage = {"entropy": CodebookUsage(size, maps), "frequencies": CodebookUsage(size, maps)}
    for name, images in (("entropy", held_out), ("frequencies", training)):
        for batch in DataLoader(images, batch_size=64):
            usage[name].update(batch["indices"], 1)  # of an image, as if it were one pixel
    own, others = (usage[name].summary() for name in ("entropy", "frequencies"))
    costs = torch.cat([others.bits(image["indices"][None]) for image in held_out])
    codes = held_out[0]["indices"].numel()
    return {
        "fixed_length": codes * math.log2(size),
        "entropy": own.entropy_bits_per_pixel,
        "frequencies": costs.mean().item(),
    }


def range_coded(prior: CodePrior, images: Sequence[dict]) -> dict[str, float]:
    """Return the bits of an image from a range coder and from the prior; RunError if the decoded codes differ."""
    words, bits = 0, 0.0
    with ProgressDisplay("range coding", len(images)) as progress:
        for number, image in enumerate(images):
            indices, label = image["indices"].to(prior.device), image["label"] if prior.classes else -1
            coded = encode_indices(prior, indices, label)
            if not torch.equal(decode_indices(prior, coded, label), indices):
                raise RunError(
                    "the range decoder returned other codes: the prior's results are not reproducible on this device"
                )
            words += len(coded)
            bits += float(prior.bits(indices[None], torch.tensor([label])))
            progress(number + 1)
    return {"range_coder": 32 * words / len(images), "prior_of_the_coded": bits / len(images)}


def sample_grid(prior: CodePrior, autoencoder: Autoencoder, images: Sequence[dict], seed: int) -> Image.Image:
    """Return images decoded from their own codes, and below each a sample of its class."""
    labels = torch.tensor([image["label"] if prior.classes else -1 for image in images])
    generator = torch.Generator(prior.device).manual_seed(seed)
    with ProgressDisplay("sampling", None):
        samples = prior.sample(len(images), labels, generator=generator).cpu()
    own = torch.stack([image["indices"] for image in images])
    codebook = autoencoder.codebook
    assert codebook is not None, "the store holds this model's indices"
    decoded = [
        torch.cat([autoencoder.decode(codebook.latents(image[None])) for image in indices])
        for indices in (own, samples)
    ]
    return comparison_grid(*map(legible, decoded))


def train(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train, save everything to `args.out`, return the rates of a held-out image by each way of counting."""
    check(args)
    autoencoder = load_autoencoder(args.model)
    store = LatentStore(args.store)
    store.check_model(autoencoder)
    pixels = image_pixels(store)
    device = pick_device()
    numerics = agreed_numerics(args.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=numerics.mixed_precision)
    set_seed(args.seed)
    flip = "half" if store.request.flips else "never"
    data, plain = (LatentDataset(store, draw="indices", flip=f, seed=args.seed) for f in (flip, "never"))
    for _ in store.indices():  # Raise an error for missing codes now, and not in the middle of the training.
        pass
    keys = store.good()["key"].to_pylist()
    chosen, left_out = split_keys(keys, max(1, round(args.held_out * len(keys))), args.seed)
    held_out = Subset(plain, left_out)
    model = build_prior(args, data)
    set_seed(args.seed, device_specific=True)  # the same weights, but different dropout in each process
    batch_size = min(args.batch_size, len(chosen))
    loader = DataLoader(Subset(data, chosen), batch_size=batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.1, cycle_momentum=False)
    model, optimizer, loader, measuring = accelerator.prepare(
        model, optimizer, loader, DataLoader(held_out, batch_size=batch_size)
    )
    prior: CodePrior = accelerator.unwrap_model(model)
    codes, classes = math.prod(prior.shape), prior.classes > 0
    prior.train()
    stream = endless(loader, data)
    losses: list[Tensor] = []
    display = ProgressDisplay(
        "training the prior", args.steps, unit="steps", images_per_unit=batch_size * accelerator.num_processes,
        shown=accelerator.is_main_process,
    )  # fmt: skip
    if accelerator.is_main_process:
        print(f"precision: {numerics.line()}", file=sys.stderr, flush=True)
    with display as progress:
        for step in range(1, args.steps + 1):
            batch = next(stream)
            labels = batch["label"]
            if classes:
                labels = labels.masked_fill(torch.rand(labels.shape, device=labels.device) < LABEL_DROPOUT, -1)
            with accelerator.autocast():
                logits = model(batch["indices"], labels)
            loss = F.cross_entropy(logits.float().flatten(0, 1), prior.sequence(batch["indices"]).flatten())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            progress(step)
            if len(losses) == args.log_every or step == args.steps:
                learned = accelerator.reduce(torch.stack(losses).mean(), "mean").item() / math.log(2.0)
                measured = bits_per_image(prior, measuring, accelerator, told=classes) / codes
                accelerator.print(f"step {step}: {learned:.3f} bits per code, {measured:.3f} held out", flush=True)
                losses.clear()

    with ProgressDisplay("measuring", len(left_out), shown=accelerator.is_main_process):
        bits = without_context(store.spec, Subset(plain, chosen), held_out)
        bits["prior"] = bits_per_image(prior, measuring, accelerator, told=False)
        if classes:
            bits["prior_given_class"] = bits_per_image(prior, measuring, accelerator, told=True)
    if accelerator.is_main_process:
        prior.eval()
        coded, shown = ([held_out[i] for i in range(min(n, len(held_out)))] for n in (args.coded, args.samples))
        bits |= range_coded(prior, coded)
        counts = dict.fromkeys(bits, codes)
        if isinstance(prior, HierarchicalPixelCNN):
            shares = bits_by_map(prior, DataLoader(held_out, batch_size=batch_size))
            bits |= {f"prior_map_{number}": share for number, share in enumerate(shares)}
            counts |= {f"prior_map_{number}": length for number, length in enumerate(prior.lengths)}
        images = {"training": len(chosen), "held_out": len(held_out), "coded": len(coded)}
        rates = {n: {"bits_per_code": b / counts[n], "bits_per_pixel": b / pixels} for n, b in bits.items()}
        with writing_folder(out := Path(args.out)) as folder:
            save_prior(prior, folder, model_hash=store.request.model_hash)
            sample_grid(prior, autoencoder, shown, args.seed).save(folder / "samples.png")
            write_json(folder / "metrics.json", {"held_out": rates, "images": images, "options": vars(args)})
        print(f"{len(held_out)} held-out images  bits per code  bits per pixel")
        for name, rate in rates.items():
            print(f"{name:<20}{rate['bits_per_code']:>13.3f}{rate['bits_per_pixel']:>16.4f}")
        print(f"{len(coded)} of them round-tripped through the range coder unchanged")
        print(f"saved {type(prior).__name__}, metrics.json and samples.png to {out}", flush=True)
    accelerator.end_training()
    return rates if accelerator.is_main_process else {}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Train a prior over the codes in a latent store.")
    parser.add_argument("--store", required=True, help="folder that `ldm-ae encode` wrote with a discrete model")
    parser.add_argument("--model", required=True, help="the model that made the codes, to decode samples")
    parser.add_argument("--out", required=True, help="new folder for the prior, metrics.json and samples.png")
    parser.add_argument("--prior", choices=tuple(PRIORS), default="pixelcnn")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=32, help="images per step and process")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="maximum; it rises for a tenth of the "
                        "steps, then falls to 0")  # fmt: skip
    parser.add_argument("--width", type=int, help="channels (default: 64 for pixelcnn, 256 for transformer)")
    parser.add_argument("--depth", type=int, help="layers (default: 10 for pixelcnn, 6 for transformer)")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="dropout probability, against overfitting to few images"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="fraction of the images held out to measure on, chosen by key"
    )
    parser.add_argument("--coded", type=int, default=2, help="number of held-out images to code with the range coder")
    parser.add_argument("--samples", type=int, default=8, help="number of samples in samples.png")
    parser.add_argument("--log-every", type=int, default=200, help="steps between log lines of bits per code")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="autocast dtype; auto is bf16 on a "
                        "device that is fast in it, fp32 on others (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        train(build_parser().parse_args(argv))

    return exit_status(command, "train_code_prior")


if __name__ == "__main__":
    sys.exit(main())
