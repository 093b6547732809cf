"""The code that convolutional autoencoders with a Gaussian posterior share."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from ldm_ae.models.adapters.convolutional import ConvolutionalAutoencoder
from ldm_ae.models.posteriors import GaussianPosterior


class GaussianAutoencoder(ConvolutionalAutoencoder):
    """A convolutional autoencoder whose encoder gives moments; 1x1 convolutions around the latents are optional."""

    has_moments = True

    def encode(self, pixel_values: Tensor) -> GaussianPosterior:
        moments = self.encoder_output(pixel_values)
        if (convolution := self._outside("quant_conv")) is not None:
            moments = convolution(moments)
        return GaussianPosterior(moments)

    def decode(self, latents: Tensor) -> Tensor:
        latents = self.decoder_input(latents)
        if (convolution := self._outside("post_quant_conv")) is not None:
            latents = convolution(latents)
        return cast(Tensor, self.net.decoder(latents).float())

    def set_initial_log_variance(self, value: float | None) -> None:
        """Set the log-variance of a new network's posterior, as the bias of its layer; None leaves diffusers' value."""
        if value is None:
            return
        last: Any = self._outside("quant_conv") or self.net.encoder.conv_out
        nn.init.constant_(last.bias[self.net.config.latent_channels :], value)

    def _outside(self, name: str) -> nn.Conv2d | None:
        return cast("nn.Conv2d | None", getattr(self.net, name, None))
