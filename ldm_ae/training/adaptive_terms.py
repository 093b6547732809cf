"""Adaptive weights of a regularizer's terms, measured at the encoder's last layer.

Source: Yao et al., Reconstruction vs. Generation (VA-VAE), arXiv 2501.01423, "adaptive weighting", as the published
code (github.com/hustvl/LightningDiT) computes it at `encoder.conv_out.weight`: the weight of a term is multiplied by

    ‖∇reconstruction‖ / (‖∇term‖ + 1e-4), at most 1e4.

The graph of a training pass is cut at the decoder's input. The decoder's backward pass comes first and gives the
gradients of its parameters and the one at its input. That gradient and each term are then differentiated at the
encoder's last layer alone, which gives the ratio. The encoder's backward pass comes last. Encoder and decoder have one
backward pass each, as without adaptive terms.

Two differences from the published code. It takes the gradient of the reconstruction loss alone; here it is the gradient
that the decoder sends back, of the reconstruction loss and, once it counts, of the weighted adversarial loss: to
separate the two would need a second backward pass of the decoder. And its limit is 1e8, for it sums the reconstruction
loss over an image and averages a term; here both have one reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.training.training_pass import TrainingOutput

ADAPTIVE_EPS = 1e-4
ADAPTIVE_MAX = 1e4


class DecoderGradients(NamedTuple):
    """The gradients that the decoder's backward pass gives."""

    inputs: list[Tensor]
    """(B, C, h, w) float32 each: at the decoder's input, for each of its uses."""
    parameters: list[tuple[nn.Parameter, Tensor]]
    """The decoder's trainable parameters, each with its gradient."""

    def surrogate(self, output: TrainingOutput) -> Tensor:
        """Return a scalar whose gradients are these, at the parameters and at the latents of a pass that was cut."""
        pairs = [*zip((cut.latents for cut in output.cuts), self.inputs, strict=True), *self.parameters]
        return torch.stack([(tensor * gradient).sum() for tensor, gradient in pairs]).sum()

    def take_over(self, earlier: DecoderGradients) -> None:
        """Add the gradients of the parameters of an earlier micro-batch, which then has none."""
        for (_, total), (_, gradient) in zip(self.parameters, earlier.parameters, strict=True):
            total.add_(gradient)
        earlier.parameters.clear()


def through_decoder(
    output: TrainingOutput, gradients: Sequence[Tensor], parameters: Iterable[nn.Parameter], scale: float
) -> DecoderGradients:
    """Propagate gradients at the reconstructions through the decoder, and free its graph; leave `.grad` as it is.

    Args:
        output: A training pass that was cut at the decoder's input.
        gradients: (B, 3, H, W) float32, at the reconstructions of each cut.
        parameters: All that may be the decoder's; those that it does not use are passed over.
        scale: The loss scale of half precision, which gradients have on their way.
    """
    candidates = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(
        [cut.reconstructions for cut in output.cuts],
        [*(cut.decoder_input for cut in output.cuts), *candidates],
        [gradient * scale for gradient in gradients],
        allow_unused=True,
    )
    inputs, others = found[: len(output.cuts)], found[len(output.cuts) :]
    pairs = [(p, g.float() / scale) for p, g in zip(candidates, others, strict=True) if g is not None]
    return DecoderGradients([gradient.float() / scale for gradient in inputs], pairs)


def encoder_gradients(
    output: TrainingOutput, decoder: DecoderGradients, terms: Iterable[Tensor], layer: nn.Parameter, scale: float
) -> Tensor:
    """Return the gradients at the encoder's last weight, stacked (1 + number of terms, ...): of what the decoder sends
    back, then of each term, a scalar. Differentiate only that layer and what follows it.

    Raises:
        UserError: The decoder's input does not depend on the encoder.
    """
    pairs = zip((cut.latents for cut in output.cuts), decoder.inputs, strict=True)
    sent = [(latents, gradient * scale) for latents, gradient in pairs if latents.requires_grad]
    if not sent:
        raise UserError(
            "the regularizer replaces the latents that are decoded: the reconstruction gives the encoder no gradient, "
            "which the adaptive weight of a term needs; remove the term's weight"
        )
    latents, gradients = zip(*sent, strict=True)
    found = [torch.autograd.grad(latents, layer, gradients, retain_graph=True)[0]]
    found += [torch.autograd.grad(term * scale, layer, retain_graph=True)[0] for term in terms]
    return torch.stack([gradient.float() / scale for gradient in found])


def gradient_ratio(reference: Tensor, norm: Tensor) -> Tensor:
    """Return ‖reference‖ / (‖gradient‖ + 1e-4), at most 1e4, of two norms, scalars."""
    return (reference / (norm + ADAPTIVE_EPS)).clamp(0.0, ADAPTIVE_MAX)


def term_factors(names: Iterable[str], gradients: Tensor) -> dict[str, Tensor]:
    """Return the factor of each term's weight, scalars by name, from the gradients (1 + number of terms, ...) of the
    whole batch."""
    sent, *own = gradients.flatten(1).norm(dim=1)
    return {name: gradient_ratio(sent, norm) for name, norm in zip(names, own, strict=True)}


def adaptive_terms(declared: Iterable[str], weights: Mapping[str, float]) -> list[str]:
    """Return the names of the terms with an adaptive weight, sorted: those that are declared and have a weight."""
    return sorted(name for name in declared if weights.get(name, 0.0) > 0)
