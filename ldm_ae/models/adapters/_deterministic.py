"""The code that convolutional autoencoders without a posterior share: the encoder's output is the latents."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from ldm_ae.models.adapters.convolutional import ConvolutionalAutoencoder
from ldm_ae.models.posteriors import DeterministicPosterior


class DeterministicAutoencoder(ConvolutionalAutoencoder):
    """A convolutional autoencoder whose encoder gives latents and no moments."""

    def encode(self, pixel_values: Tensor) -> DeterministicPosterior:
        return DeterministicPosterior(self.encoder_output(pixel_values).float())

    def decode(self, latents: Tensor) -> Tensor:
        return cast(Tensor, self.net.decoder(self.decoder_input(latents)).float())
