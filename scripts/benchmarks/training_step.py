"""A whole training step of LDM's KL-f8 recipe: ours against a textbook one.

Both have L1 + LPIPS (vgg, random trunk) + KL + PatchGAN with batch normalization and hinge loss, LDM's reductions, the
adaptive weight, one Adam step of the autoencoder and one of the discriminator.

The textbook step uses diffusers' AutoencoderKL, the `lpips` package, NCHW and float32 throughout (autocast if
`--device` is an accelerator), the adaptive weight by two `autograd.grad` calls through the loss networks and a backward
pass through them again. It is not a straw man: the discriminator is frozen in the autoencoder's step, and its own step
reuses the same reconstructions. CompVis's own order (in both taming and latent-diffusion, under Lightning) does
neither: the discriminator's step runs the autoencoder once more. It is measured too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

import measuring
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from measuring import Variant
from torch import Tensor
from torch.optim import Adam, Optimizer

from ldm_ae.core.allocator import keep_freed_memory
from ldm_ae.core.errors import exit_status
from ldm_ae.core.frozen import FrozenNetwork
from ldm_ae.core.precision import (
    FAST,
    LAYOUTS,
    Placement,
    bfloat16_speed,
    choose_convolutions,
    place,
    training_placement,
)
from ldm_ae.discriminators import Discriminator, DiscriminatorPass, PatchDiscriminator
from ldm_ae.losses import LPIPS, Objective, ObjectiveConfig
from ldm_ae.models import KLAutoencoder, pick_device
from ldm_ae.regularizers import Regularizer
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.steps import discriminator_step, generator_step
from ldm_ae.training.training_pass import TrainingPass

KL_F8 = (128, 256, 512, 512)
KL_WEIGHT, GAN_WEIGHT = 1e-6, 0.5
ADAM = {"lr": 5e-5, "betas": (0.5, 0.9)}


class Setting(NamedTuple):
    """The model and the data of a measured step."""

    widths: tuple[int, ...]
    size: int
    batch: int
    device: torch.device
    precision: str = "no"
    """Autocast precision: `no` or `bf16`."""
    layers_per_block: int = 2
    net: str = "vgg"
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def placement(self) -> Placement:
        """Return the placement of our networks in training."""
        return training_placement(self.device, self.dtype, compiled=self.compiled)


def make_autoencoder(setting: Setting) -> KLAutoencoder:
    """Make an autoencoder with the same weights each time."""
    torch.manual_seed(0)
    model = KLAutoencoder(block_out_channels=setting.widths, layers_per_block=setting.layers_per_block)
    return model.to(setting.device)


def make_discriminator(setting: Setting) -> PatchDiscriminator:
    """Make a discriminator with the same weights each time."""
    torch.manual_seed(1)
    return PatchDiscriminator().to(setting.device)


def make_lpips(setting: Setting) -> LPIPS:
    """Make an LPIPS with the same trunk each time."""
    torch.manual_seed(2)
    return LPIPS(net=setting.net, pretrained=False).to(setting.device)  # type: ignore[arg-type]


def make_batch(setting: Setting, seed: int) -> MicroBatch:
    """Make a batch of smooth images."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(setting.batch, 3, 8, 8, generator=generator) * 2 - 1
    pixel_values = F.interpolate(coarse, size=setting.size, mode="bicubic").clamp(-1, 1)
    latents = setting.size // 2 ** (len(setting.widths) - 1)
    noise = torch.randn(setting.batch, 4, latents, latents, generator=generator)
    return MicroBatch(pixel_values.to(setting.device), noise.to(setting.device), tuple(range(setting.batch)))


def make_parts(
    setting: Setting,
    *,
    adaptive: bool = True,
    discriminator: Discriminator | None = None,
    regularizer: Regularizer | None = None,
    **weights: float,
) -> StepParts:
    """Make the parts that our trainer makes from that recipe, or with another discriminator, or with the weights of a
    regularizer's terms."""
    accelerator = Accelerator(mixed_precision=setting.precision, cpu=setting.device.type == "cpu")
    autoencoder = make_autoencoder(setting).train()
    discriminator = make_discriminator(setting) if discriminator is None else discriminator
    twice = discriminator.needs_double_backward
    place(autoencoder, setting.device, setting.placement)
    place(discriminator, setting.device, Placement(setting.placement.layout) if twice else setting.placement)
    for network in (module for module in discriminator.modules() if isinstance(module, FrozenNetwork)):
        network.set_precision(torch.float32 if twice else setting.dtype)
    if regularizer is not None:
        regularizer.prepare(autoencoder)
        place(regularizer, setting.device, setting.placement)
        for network in (module for module in regularizer.modules() if isinstance(module, FrozenNetwork)):
            network.set_precision(setting.dtype)
    if setting.compiled:
        autoencoder.compile_parts(for_training=True)
        discriminator.compile()
    config = ObjectiveConfig(
        reduction="ldm", perceptual=make_lpips(setting), regularization_weights={"kl": KL_WEIGHT} | weights,
        gan_weight=GAN_WEIGHT, adaptive_gan_weight=adaptive,
    )  # fmt: skip
    assert config.perceptual is not None
    config.perceptual.set_precision(setting.dtype)
    choose_convolutions(config.perceptual, setting.placement)
    prepared, pair = (
        accelerator.prepare_model(m) for m in (TrainingPass(autoencoder, regularizer), DiscriminatorPass(discriminator))
    )
    return StepParts(accelerator, prepared, Objective(config), pair)


def own_step(parts: StepParts, optimizers: list[Optimizer], batch: MicroBatch, steps: Iterator[int]) -> None:
    """Run the step as the trainer does."""
    batch = batch._replace(step_seed=next(steps))
    results, _ = generator_step(parts, [batch], step=0)
    optimizers[0].step()
    optimizers[0].zero_grad(set_to_none=True)
    discriminator_step(parts, [batch], results, step=0)
    optimizers[1].step()
    optimizers[1].zero_grad(set_to_none=True)


def own(
    setting: Setting,
    discriminator: Discriminator | None = None,
    regularizer: Regularizer | None = None,
    **weights: float,
) -> tuple[StepParts, Callable[[], object]]:
    """Return our networks, and one step of them, with freed memory kept as in `ldm-ae train` on a CPU. The step's own
    random numbers are others in each call."""
    keep_freed_memory(setting.device)
    parts = make_parts(setting, discriminator=discriminator, regularizer=regularizer, **weights)
    assert parts.plain_discriminator is not None
    learned = [parts.plain_autoencoder.parameters(), parts.plain_discriminator.learning_parameters()]
    optimizers = [Adam(parameters, fused=True, **ADAM) for parameters in learned]
    batch = make_batch(setting, 0)
    batch = batch._replace(pixel_values=batch.pixel_values.contiguous(memory_format=LAYOUTS[setting.placement.layout]))
    return parts, partial(own_step, parts, optimizers, batch, count())


class Textbook:
    """The step as it is usually written, or with `original_order` as CompVis's code runs it."""

    def __init__(self, setting: Setting, *, original_order: bool = False):
        self.original_order = original_order
        self.autoencoder = make_autoencoder(setting).train().net
        self.discriminator = make_discriminator(setting)
        self.lpips = measuring.quiet_lpips(setting.net)
        measuring.copy_trunk(make_lpips(setting), self.lpips.net)
        self.lpips.to(setting.device)
        self.optimizers = [Adam(net.parameters(), **ADAM) for net in (self.autoencoder, self.discriminator)]
        batch = make_batch(setting, 0)
        self.pixel_values, self.noise = batch.pixel_values.contiguous(), batch.noise
        self.autocast = torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.precision == "bf16")

    def step(self) -> None:
        """Run both updates."""
        x = self.pixel_values
        with self.autocast:
            x_hat, posterior = self.reconstruct(x)
            nll = ((x - x_hat).abs() + self.lpips(x_hat, x)).sum() / len(x)
            self.discriminator.requires_grad_(self.original_order)
            gan = -self.discriminator(x_hat).mean()
            self.discriminator.requires_grad_(True)
            loss = nll + GAN_WEIGHT * self.weight(nll, gan) * gan + KL_WEIGHT * posterior.kl().sum() / len(x)
        self.update(0, loss)
        with self.autocast:
            if self.original_order:
                x_hat, _ = self.reconstruct(x)
            logits_real, logits_fake = self.discriminator(x), self.discriminator(x_hat.detach())
            loss = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
        self.update(1, loss)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Return the reconstructions of one draw, and the posterior that it was drawn from."""
        posterior = self.autoencoder.encode(x).latent_dist
        return self.autoencoder.decode(posterior.mean + posterior.std * self.noise).sample, posterior

    def weight(self, nll: Tensor, gan: Tensor) -> Tensor:
        """Return the adaptive weight."""
        last = self.autoencoder.decoder.conv_out.weight
        nll_norm = torch.autograd.grad(nll, last, retain_graph=True)[0].norm()
        gan_norm = torch.autograd.grad(gan, last, retain_graph=True)[0].norm()
        return torch.clamp(nll_norm / (gan_norm + 1e-4), 0.0, 1e4).detach()

    def update(self, which: int, loss: Tensor) -> None:
        """Run the backward pass and the optimizer."""
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()


def measure_parts(description: str | None, title: str, make: Callable[[Setting], list[Variant]], *, runs: int) -> None:
    """Read the command line, and measure steps at kl_f8 widths in bf16 where that is fast, else in float32."""
    parser = measuring.arguments(description, runs=runs)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    device = pick_device(options.device)
    fast = bfloat16_speed(device) >= FAST
    setting = Setting(KL_F8, options.size, options.batch, device, precision="bf16" if fast else "no")
    words = f"kl_f8 widths, {options.size}², batch {options.batch}, {'bf16' if fast else 'fp32'}"
    measuring.run(f"{title}: {words}", make(setting), options)


def variants(setting: Setting, *, compiled: bool = False) -> list[Variant]:
    """Return the textbook step, CompVis's order, ours in float32, also compiled if requested, in bfloat16 if fast."""
    base = "textbook fp32"
    original = partial(Textbook, setting, original_order=True)
    found = [
        Variant(base, lambda: Textbook(setting).step, images=setting.batch),
        Variant("CompVis's order fp32", lambda: original().step, base, images=setting.batch),
        Variant("ours fp32", lambda: own(setting)[1], base, target=1.3, images=setting.batch),
    ]
    if compiled:
        graphs = setting._replace(compiled=True)
        found.append(Variant("ours fp32 compiled", lambda: own(graphs)[1], base, target=1.3, images=setting.batch))
    if bfloat16_speed(setting.device) >= FAST:
        half = setting._replace(precision="bf16")
        found.append(Variant("ours bf16", lambda: own(half)[1], base, target=2.0, images=setting.batch))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled")
    options = parser.parse_args()
    setting = Setting(KL_F8, options.size, options.batch, pick_device(options.device))
    words = f"kl_f8 widths, {options.size}², batch {options.batch}"
    measuring.run(f"Training step: {words}", variants(setting, compiled=options.compile), options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "training_step"))
