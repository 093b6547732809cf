"""Train a small diffusion model on a latent store and save a pipeline that diffusers opens without our code.

    python scripts/train_latent_diffusion.py --store STORE --autoencoder MODEL --out DIR --model dit --objective flow
    accelerate launch scripts/train_latent_diffusion.py ...

    DiffusionPipeline.from_pretrained(DIR)                     # then pipeline(batch_size=4)         for unet
                                                               # and  pipeline(class_labels=[0, 1])  for dit

`unet` is diffusers' UNet2DModel, without classes, in an LDMPipeline. `dit` is its DiTTransformer2DModel (Peebles and
Xie, arXiv 2212.09748) with the store's labels as classes, in a DiTPipeline, in which class 1000 means none.

`ddpm` predicts the noise of x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n (Ho et al., arXiv 2006.11239, equation 14) and is
saved with a DDIMScheduler. `flow` predicts n - x_0 at x_s = (1 - s) x_0 + s n (Lipman et al., arXiv 2210.02747; Liu et
al., arXiv 2209.03003). These pipelines do not run a FlowMatchEulerDiscreteScheduler, which lacks two methods they
call, so it is saved with a DPMSolverMultistepScheduler over the same sigmas, whose first order is Euler's step.

Both pipelines decode latents / scaling_factor without any other step, so the latents are scaled by 1 / (standard
deviation of the whole store), and the pipeline's autoencoder gets that scaling_factor, whatever its own was. A store
with moments provides new samples in every epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    UNet2DModel,
)
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.precision import PRECISIONS, agreed_numerics
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.io.files import require_new_folder, writing_folder
from ldm_ae.latents import LatentDataset, LatentStore, endless
from ldm_ae.models import Autoencoder, LatentSpec, load_autoencoder, pick_device

NO_CLASS = 1000
"""DiTPipeline's class for none; real classes are below it."""
LABEL_DROPOUT = 0.1
"""Fraction of labels that are replaced by none, for classifier-free guidance (arXiv 2207.12598)."""
TIMESTEPS = 1000
NOISE_SCHEDULE = DDPMScheduler(num_train_timesteps=TIMESTEPS)


def build_model(kind: str, channels: int, size: int, width: int, depth: int) -> nn.Module:
    """Return a network for (B, channels, size, size) latents; `width` is a multiple of 32."""
    if kind == "unet":
        levels = 3 if size % 4 == 0 else 2 if size % 2 == 0 else 1
        return UNet2DModel(
            sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=depth,
            block_out_channels=(width, 2 * width, 2 * width)[:levels],
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")[:levels],
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")[3 - levels :],
        )  # fmt: skip
    model = DiTTransformer2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, patch_size=2 if size % 2 == 0 else 1,
        num_layers=depth, num_attention_heads=width // 32, attention_head_dim=32,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # Each block would drop different labels; the loop drops them once.
    return model


def check(store: LatentStore, autoencoder: Autoencoder, kind: str) -> None:
    """Raise `UserError` for a store that this autoencoder, model or pipeline cannot use."""
    store.check_model(autoencoder)
    if store.request.indices_alone:
        raise UserError(f"{store.path} holds indices, no latents; encode without --store lean")
    if store.statistics.is_constant:
        raise UserError(f"the latents of {store.path} are constant; encode with a trained autoencoder")
    buckets = store.good()["bucket"].unique().to_pylist()
    if len(buckets) > 1 or len(set(buckets[0].split("x"))) > 1:
        raise UserError(
            f"{store.path} has images of {', '.join(buckets)}; a pipeline needs one square size; encode one"
        )
    if kind == "dit" and (top := max(store.good()["label"].to_pylist())) >= NO_CLASS:
        raise UserError(f"{store.path} has class {top}; DiTPipeline supports classes up to {NO_CLASS - 1}")
    if kind == "dit" and top < 0:
        raise UserError(f"{store.path} has no labels, which dit requires; encode with --labels, or use --model unet")


def open_latents(store: LatentStore, spec: LatentSpec, seed: int) -> LatentDataset:
    """Return the scaled latents; with new samples in every epoch if the store has moments and stores samples."""
    flip: Literal["half", "never"] = "half" if store.request.flips else "never"
    data = LatentDataset(store, flip=flip, seed=seed, spec=spec)
    if "moments" not in data.tensor_names:
        return data
    return LatentDataset(store, draw=store.request.latents, flip=flip, seed=seed, spec=spec)


def training_loss(model: nn.Module, latents: Tensor, labels: Tensor | None, objective: str) -> Tensor:
    """Return the mean squared error of the prediction at random times, a scalar.

    Args:
        model: UNet2DModel if `labels` is None, else DiTTransformer2DModel.
        latents: (B, C, h, w), scaled.
        labels: (B,) int64.
        objective: flow or ddpm.
    """
    noise = torch.randn_like(latents)
    if objective == "flow":
        sigma = torch.rand(len(latents), device=latents.device)
        time = sigma * TIMESTEPS
        sigma = sigma.view(-1, 1, 1, 1)
        noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
    else:
        time = torch.randint(TIMESTEPS, (len(latents),), device=latents.device)
        noisy, target = NOISE_SCHEDULE.add_noise(latents, noise, time), noise
    prediction = model(noisy, time).sample if labels is None else model(noisy, time, class_labels=labels).sample
    return F.mse_loss(prediction.float(), target)


def as_diffusers(net: nn.Module) -> nn.Module:
    """Return the network in diffusers' own class, by whose name a pipeline finds it; UserError without such a class."""
    own = getattr(diffusers, type(net).__name__, None)
    if own is None:
        raise UserError(f"diffusers has no {type(net).__name__}, so its pipelines cannot hold this autoencoder")
    if type(net) is own:
        return net
    copy = own.from_config(net.config)
    copy.load_state_dict({name: value for name, value in net.state_dict().items() if name in copy.state_dict()})
    return copy


def build_pipeline(kind: str, objective: str, model: nn.Module, autoencoder: nn.Module) -> DiffusionPipeline:
    """Return the pipeline that samples from the trained model."""
    if objective == "flow":
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    else:  # The latents are not confined to [-1, 1], and sampling starts at the last training step.
        scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert scheduler.config.num_train_timesteps == TIMESTEPS
    if kind == "unet":
        return LDMPipeline(vqvae=autoencoder, unet=model, scheduler=scheduler)
    return DiTPipeline(transformer=model, vae=autoencoder, scheduler=scheduler)


def train(args: argparse.Namespace) -> list[float]:
    """Train, save the pipeline to `args.out`, return the mean loss of each log interval."""
    out = Path(args.out)
    require_new_folder(out, "the pipeline")
    for name in ("steps", "batch_size", "log_every", "depth"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if args.width < 32 or args.width % 32:
        raise UserError(f"--width is {args.width}; it must be a multiple of 32")
    autoencoder = load_autoencoder(args.autoencoder)
    store = LatentStore(args.store)
    check(store, autoencoder, args.model)
    device = pick_device()
    numerics = agreed_numerics(args.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=numerics.mixed_precision)
    set_seed(args.seed)
    autoencoder.set_scaling(scaling_factor=1 / store.statistics.pooled_std)
    decoder = as_diffusers(autoencoder.net)
    data = open_latents(store, autoencoder.latent_spec, args.seed)
    channels, size, _ = data[0]["latents"].shape
    model = build_model(args.model, channels, size, args.width, args.depth)
    set_seed(args.seed, device_specific=True)  # the same weights, but different noise in each process
    loader = DataLoader(data, batch_size=min(args.batch_size, len(data)), shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    stream = endless(loader, data)
    history: list[float] = []
    losses: list[Tensor] = []
    display = ProgressDisplay(
        "training the diffusion model", args.steps, unit="steps",
        images_per_unit=loader.total_batch_size, shown=accelerator.is_main_process,
    )  # fmt: skip
    if accelerator.is_main_process:
        print(f"precision: {numerics.line()}", file=sys.stderr, flush=True)
    with display as progress:
        for step in range(1, args.steps + 1):
            batch = next(stream)
            labels = None
            if args.model == "dit":
                label = batch["label"]
                dropped = (torch.rand(label.shape, device=label.device) < LABEL_DROPOUT) | (label < 0)
                labels = label.masked_fill(dropped, NO_CLASS)
            with accelerator.autocast():
                loss = training_loss(model, batch["latents"], labels, args.objective)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            progress(step)
            if len(losses) == args.log_every or step == args.steps:
                history.append(accelerator.reduce(torch.stack(losses).mean(), "mean").item())
                losses.clear()
                accelerator.print(f"step {step}: loss {history[-1]:.4f}", flush=True)
    if accelerator.is_main_process:
        pipeline = build_pipeline(args.model, args.objective, accelerator.unwrap_model(model).eval(), decoder)
        with writing_folder(out) as folder:
            pipeline.save_pretrained(folder)
        print(f"saved {type(pipeline).__name__} to {out}", flush=True)
    accelerator.end_training()
    return history


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description="Train a latent diffusion model on a latent store.")
    parser.add_argument("--store", required=True, help="folder that `ldm-ae encode` wrote")
    parser.add_argument("--autoencoder", required=True, help="the model that encoded it: a run or diffusers folder")
    parser.add_argument("--out", required=True, help="new folder for the pipeline")
    parser.add_argument(
        "--model",
        choices=("unet", "dit"),
        default="unet",
        help="architecture; unet ignores labels, dit is conditioned on them",
    )
    parser.add_argument("--objective", choices=("flow", "ddpm"), default="flow")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=32, help="latents per step and process")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument(
        "--width", type=int, default=128, help="channels of the highest-resolution level, or of a token"
    )
    parser.add_argument("--depth", type=int, default=2, help="blocks per level, or transformer blocks")
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines of the loss")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="autocast dtype; auto is bf16 on a "
                        "device that is fast in it, fp32 on others (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""

    def command() -> None:
        train(build_parser().parse_args(argv))

    return exit_status(command, "train_latent_diffusion")


if __name__ == "__main__":
    sys.exit(main())
