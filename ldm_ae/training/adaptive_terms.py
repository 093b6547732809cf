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

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.training.gradients import OutputGradients, gradient_ratio, mean_norms, output_gradients
from ldm_ae.training.step_parts import MicroBatch, StepParts, forward
from ldm_ae.training.training_pass import TrainingOutput


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


def backward_to_encoder(
    parts: StepParts, output: TrainingOutput, at_output: OutputGradients, gan_weight: float | Tensor
) -> tuple[DecoderGradients, Tensor]:
    """Run the decoder's backward pass; return its gradients, and (1 + terms, ...) at the encoder's last weight."""
    layer, scale = parts.plain_autoencoder.encoder_last_layer, parts.loss_scale
    assert layer is not None, "check_capabilities"
    decoder = through_decoder(output, at_output.weighted(gan_weight), parts.plain_pass.parameters(), scale)
    latents = output.posterior.mode()
    terms = [parts.objective.reduced(output.terms[name], latents) for name in parts.adaptive_terms]
    return decoder, encoder_gradients(output, decoder, terms, layer, scale)


def adaptive_factors(parts: StepParts, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the factor of each adaptive term's weight, scalars over every micro-batch of every process."""
    sent, *own = mean_norms(parts, gradients)
    return {name: gradient_ratio(sent, norm) for name, norm in zip(parts.adaptive_terms, own, strict=True)}


class Decoded(NamedTuple):
    """What is left of a micro-batch whose decoder has been passed forward and backward."""

    reconstructions: list[Tensor]
    """All of them, (B, 3, H, W) each, without a graph."""
    at_output: OutputGradients
    gradients: DecoderGradients


def decode_ahead(
    parts: StepParts, batches: Sequence[MicroBatch], known: list[OutputGradients] | None, gan_weight: float | Tensor,
    with_gan: bool,
) -> tuple[list[Decoded], dict[str, Tensor]]:  # fmt: skip
    """Pass all decoders forward and backward, and return the factors of the adaptive terms' weights.

    The encoders' graphs are not kept, so that each encoder is passed forward once more. The last micro-batch, whose
    backward pass synchronizes processes, has the sums of all parameters' gradients.
    """
    decoded: list[Decoded] = []
    at_encoder = []
    for i, batch in enumerate(batches):
        with parts.accelerator.autocast():
            output = forward(parts.plain_pass, batch, cut=True)
        at_output = known[i] if known else output_gradients(parts, batch, output, with_gan)
        gradients, at_layer = backward_to_encoder(parts, output, at_output, gan_weight)
        decoded.append(Decoded([found.detach() for found in output.all_reconstructions], at_output, gradients))
        at_encoder.append(at_layer)
        if i > 0:
            decoded[-1].gradients.take_over(decoded[-2].gradients)
    return decoded, adaptive_factors(parts, at_encoder)
