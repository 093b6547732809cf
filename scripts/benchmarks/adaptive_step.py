"""The generator's step with the adaptive GAN weight against the same step with a fixed weight.

`textbook` is the adaptive weight as in the papers: the losses stay attached to the autoencoder's graph, their gradients
at the last layer are two `autograd.grad` calls through all loss networks, and the backward pass goes through the loss
networks once more. Everything else (networks, layout, LPIPS) is ours in all variants.

With two micro-batches the weight belongs to both together and must be computed before the first backward pass, which
costs a forward pass of each without a graph.

`--at encoder` measures the adaptive weight of a regularizer's term instead, at the encoder's last layer, beside a fixed
GAN weight. The term is the size of the latents, which costs nothing. The textbook way then goes through the loss
networks and the decoder twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import measuring
import torch
from measuring import Variant
from torch import Tensor
from training_step import KL_F8, Setting, make_batch, make_parts

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import exit_status
from ldm_ae.models import Posterior, pick_device
from ldm_ae.regularizers import Regularized, Regularizer
from ldm_ae.training.gradients import ADAPTIVE_EPS, ADAPTIVE_MAX
from ldm_ae.training.step_parts import MicroBatch, StepParts
from ldm_ae.training.steps import generator_step


def own_step(parts: StepParts, batches: list[MicroBatch]) -> None:
    """Run our step; it leaves the gradients in `.grad`."""
    parts.training_pass.zero_grad(set_to_none=True)
    generator_step(parts, batches, step=0)


def textbook_step(parts: StepParts, batch: MicroBatch) -> Tensor:
    """Compute the same gradients, with the weight computed through the whole graph; return the weight."""
    parts.training_pass.zero_grad(set_to_none=True)
    config = parts.objective.config
    reconstructions, target, posterior = parts.training_pass(*batch[:2], batch.draws(REGULARIZER))[:3]
    nll = parts.objective.reconstruction(reconstructions, target).nll
    parts.plain_discriminator.requires_grad_(False)  # Otherwise its gradients would be computed and discarded.
    with parts.accelerator.autocast():
        logits_fake = parts.plain_discriminator(reconstructions)
    parts.plain_discriminator.requires_grad_(True)
    gan = config.adversarial.generator(logits_fake.float())
    last = parts.plain_autoencoder.last_layer
    nll_norm, gan_norm = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, gan))
    weight = (nll_norm / (gan_norm + ADAPTIVE_EPS)).clamp(0.0, ADAPTIVE_MAX)
    kl = parts.objective.regularization(posterior.regularization(), posterior.mode())
    parts.accelerator.backward(nll + config.gan_weight * weight * gan + kl)
    return weight


class LatentSize(Regularizer):
    """A term that costs nothing: the sum of the squared latents.

    Args:
        adaptive: Whether its weight is adaptive.
    """

    def __init__(self, *, adaptive: bool):
        super().__init__()
        self.adaptive_terms = frozenset({"size"} if adaptive else ())

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        return Regularized(latents, pixel_values, {"size": latents.float().square().sum(dim=(1, 2, 3))})


def textbook_term_step(parts: StepParts, batch: MicroBatch) -> Tensor:
    """Compute the gradients of `LatentSize` with an adaptive weight through the whole graph; return the weight."""
    parts.training_pass.zero_grad(set_to_none=True)
    config = parts.objective.config
    output = parts.training_pass(*batch[:2], batch.draws(REGULARIZER))
    nll = parts.objective.reconstruction(output.reconstructions, output.target).nll
    parts.plain_discriminator.requires_grad_(False)
    with parts.accelerator.autocast():
        logits_fake = parts.plain_discriminator(output.reconstructions)
    parts.plain_discriminator.requires_grad_(True)
    sent = nll + config.gan_weight * config.adversarial.generator(logits_fake.float())
    term = output.terms["size"].mean()
    layer = parts.plain_autoencoder.encoder_last_layer
    norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (sent, term)]
    weight = (norms[0] / (norms[1] + ADAPTIVE_EPS)).clamp(0.0, ADAPTIVE_MAX)
    kl = parts.objective.regularization(
        output.posterior.regularization() | output.terms, output.posterior.mode(), {"size": weight}
    )
    parts.accelerator.backward(sent + kl)
    return weight


def term_variants(setting: Setting) -> list[Variant]:
    """Return fixed, adaptive and textbook weights of a term, and the first two over two micro-batches."""

    def parts(adaptive: bool) -> StepParts:
        return make_parts(setting, adaptive=False, regularizer=LatentSize(adaptive=adaptive), size=0.1)

    def build(adaptive: bool, count: int) -> Callable[[], object]:
        return partial(own_step, parts(adaptive), [make_batch(setting, seed) for seed in range(count)])

    return [
        Variant("fixed", lambda: build(False, 1)),
        Variant("adaptive", lambda: build(True, 1), "fixed", cost=True, target=1.05),
        Variant(
            "textbook", lambda: partial(textbook_term_step, parts(False), make_batch(setting, 0)), "fixed", cost=True
        ),
        Variant("fixed, 2 micro-batches", lambda: build(False, 2)),
        Variant("adaptive, 2 micro-batches", lambda: build(True, 2), "fixed, 2 micro-batches", cost=True),
    ]


def variants(setting: Setting) -> list[Variant]:
    """Return fixed, adaptive and textbook, and the first two over two micro-batches."""

    def build(adaptive: bool, count: int) -> Callable[[], object]:
        parts = make_parts(setting, adaptive=adaptive)
        return partial(own_step, parts, [make_batch(setting, seed) for seed in range(count)])

    def build_textbook() -> Callable[[], object]:
        return partial(textbook_step, make_parts(setting, adaptive=True), make_batch(setting, 0))

    return [
        Variant("fixed", lambda: build(False, 1)),
        Variant("adaptive", lambda: build(True, 1), "fixed", cost=True, target=1.05),
        Variant("textbook", build_textbook, "fixed", cost=True),
        Variant("fixed, 2 micro-batches", lambda: build(False, 2)),
        Variant("adaptive, 2 micro-batches", lambda: build(True, 2), "fixed, 2 micro-batches", cost=True),
    ]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--at", choices=["decoder", "encoder"], default="decoder", help="the layer of the weight")
    options = parser.parse_args()
    device = pick_device(options.device)
    setting = Setting(KL_F8, options.size, options.batch, device, options.precision)
    words = f"kl_f8 widths, {options.size}², batch {options.batch}, precision {options.precision}"
    chosen = term_variants(setting) if options.at == "encoder" else variants(setting)
    measuring.run(f"Adaptive weight at the {options.at}'s last layer: {words}", chosen, options)


if __name__ == "__main__":
    sys.exit(exit_status(main, "adaptive_step"))
