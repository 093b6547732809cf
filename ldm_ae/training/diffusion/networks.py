"""The networks of a diffusion run, their losses, and the pipelines that sample from them.

`unet` is diffusers' UNet2DModel, without classes, in an LDMPipeline. `dit` is the network of `ldm_ae.diffusion.sit`
with the store's labels as classes, in a DiTPipeline, in which class 1000 means none.

`ddpm` predicts the noise of x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n (Ho et al., arXiv 2006.11239, equation 14) and is
saved with a DDIMScheduler. `flow` predicts n - x_0 at x_s = (1 - s) x_0 + s n (Lipman et al., arXiv 2210.02747; Liu et
al., arXiv 2209.03003). These pipelines do not run a FlowMatchEulerDiscreteScheduler, which lacks two methods they
call, so it is saved with a DPMSolverMultistepScheduler over the same sigmas, whose first order is Euler's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    LDMPipeline,
    UNet2DModel,
)
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import derive_seed, seeded_noise
from ldm_ae.diffusion import TIMESTEPS, build_sit, flow

NOISE_SCHEDULE: Any = DDPMScheduler(num_train_timesteps=TIMESTEPS)


def build_model(kind: str, channels: int, size: int, width: int, depth: int) -> Any:
    """Return a network of diffusers for (B, channels, size, size) latents; `width` is a multiple of 32."""
    if kind == "unet":
        levels = 3 if size % 4 == 0 else 2 if size % 2 == 0 else 1
        return UNet2DModel(
            sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=depth,
            block_out_channels=(width, 2 * width, 2 * width)[:levels],
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")[:levels],
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")[3 - levels :],
        )  # fmt: skip
    return build_sit(channels, size, width, depth)


def training_loss(
    model: nn.Module, latents: Tensor, labels: Tensor | None, objective: str, generator: torch.Generator | None = None
) -> Tensor:
    """Return the mean squared error of the prediction at random times, a scalar.

    The times are drawn before the noise, so that they are the same for latents of every shape.

    Args:
        model: UNet2DModel if `labels` is None, else DiTTransformer2DModel.
        latents: (B, C, h, w), scaled.
        labels: (B,) int64.
        objective: flow or ddpm.
        generator: Source of noise and times, on the device of the latents; None is torch's own.
    """
    random: dict[str, Any] = {"generator": generator, "device": latents.device}
    count, is_flow = len(latents), objective == "flow"
    time = torch.rand(count, **random) if is_flow else torch.randint(TIMESTEPS, (count,), **random)
    noise = torch.randn(latents.shape, dtype=latents.dtype, **random)
    if is_flow:
        noisy, time, target = flow(latents, noise, time)
    else:
        noisy, target = NOISE_SCHEDULE.add_noise(latents, noise, time), noise
    return F.mse_loss(predict(model, noisy, time, labels), target)


@torch.no_grad()
def flow_losses(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    levels: Sequence[float],
    *,
    seed: int = 0,
    channels: Tensor | None = None,
) -> dict[float, float]:
    """Return the mean squared error of a `flow` model's prediction at each noise level s in [0, 1].

    The noise of a latent depends on its position alone, and is the same at every level. Without a model that knows the
    latents the error is 1 + their mean square.

    Args:
        model: As for `training_loss`.
        batches: Latents (B, C, h, w), scaled, and their labels (B,) int64, or None, on the model's device.
        levels: Noise levels.
        seed: Seed of the noise.
        channels: (C,) bool, the channels over which the mean is taken; None for all.

    Returns:
        Means over all latents and channels, by level; an empty dict if there is no latent.
    """
    sums: dict[float, float] = dict.fromkeys(levels, 0.0)
    count = 0
    for latents, labels in batches:
        seeds = [derive_seed("flow loss", seed, count + i) for i in range(len(latents))]
        noise = seeded_noise(torch.tensor(seeds), tuple(latents.shape[1:])).to(latents)
        count += len(latents)
        for level in levels:
            noisy, time, target = flow(latents, noise, torch.full((len(latents),), level, device=latents.device))
            error = (predict(model, noisy, time, labels) - target).square().mean(dim=(2, 3))
            error = error if channels is None else error[:, channels.to(error.device)]
            sums[level] += float(error.double().mean(dim=1).sum())
    return {level: total / count for level, total in sums.items() if count}


def predict(model: nn.Module, noisy: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    """Return a network's prediction (B, C, h, w) float32 for noisy latents at the network's times (B,)."""
    found = model(noisy, time).sample if labels is None else model(noisy, time, class_labels=labels).sample
    prediction: Tensor = found.float()
    return prediction


def as_diffusers(net: Any) -> Any:
    """Return the network in diffusers' own class, by whose name a pipeline finds it; UserError without such a class."""
    own = getattr(diffusers, type(net).__name__, None)
    if own is None:
        raise UserError(f"diffusers has no {type(net).__name__}, so its pipelines cannot hold this autoencoder")
    if type(net) is own:
        return net
    copy = own.from_config(net.config)
    copy.load_state_dict({name: value for name, value in net.state_dict().items() if name in copy.state_dict()})
    return copy


def build_scheduler(objective: str) -> Any:
    """Return the scheduler with which a network of this objective is sampled."""
    scheduler: Any
    if objective == "flow":
        scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    else:  # The latents are not confined to [-1, 1], and sampling starts at the last training step.
        scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert scheduler.config.num_train_timesteps == TIMESTEPS
    return scheduler


def build_pipeline(kind: str, objective: str, model: nn.Module, autoencoder: nn.Module) -> Any:
    """Return the DiffusionPipeline that samples from the trained model."""
    scheduler = build_scheduler(objective)
    if kind == "unet":
        return LDMPipeline(vqvae=autoencoder, unet=model, scheduler=scheduler)
    return DiTPipeline(transformer=model, vae=autoencoder, scheduler=scheduler)
