"""Scale equivariance: downsampled latents are decoded to the downsampled image.

Source: Skorokhodov et al., Improving the Diffusability of Autoencoders, arXiv 2502.14831, section 4: the loss is
d(x, D(z)) + α d(x↓, D(z↓)), where x↓ and z↓ are downsampled 2-4 times, bilinear, and α = 0.25. It lowers the high
frequencies of latents, which a diffusion model must otherwise generate.

d is here the objective's reconstruction and perceptual loss, with their weights, as for the image itself; the
discriminator does not see the smaller images. In the `ldm` reduction both losses count the elements of the image, so
that α has one meaning in both reductions. The factor is the step's, drawn from `factors`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.buckets import Size
from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder, Posterior
from ldm_ae.regularizers._resizing import fraction_of, require_any_size, resized, resized_images
from ldm_ae.regularizers.interface import Further, Regularized, Regularizer


class ScaleEquivariance(Regularizer):
    """Decodes the latents a second time, downsampled, and compares the result with the downsampled images.

    The loss is logged as `scale_equivariance_loss`. It costs the decoder's pass over the smaller latents.

    Args:
        alpha: Weight of the second reconstruction loss relative to the first.
        factors: The factors of which each step draws one, such as 2 and 4; at least 2 each.
    """

    short_names = ("scale-equivariance",)
    takes_target = True

    def __init__(self, *, alpha: float = 0.25, factors: tuple[int, ...] = (2, 4)):
        super().__init__()
        if alpha <= 0:
            raise UserError(f"ScaleEquivariance: expected alpha above 0, got {alpha}")
        if not factors or min(factors) < 2:
            raise UserError(f"ScaleEquivariance: expected factors of at least 2, got {list(factors)}")
        self.alpha, self.factors = alpha, tuple(factors)
        self._factor: int | None = None
        self._pixels = RGB

    def prepare(self, model: Autoencoder) -> None:
        require_any_size(model, "ScaleEquivariance")
        self._factor, self._pixels = model.latent_spec.downsample_factor, model.pixel_spec

    def image_sizes(self, size: Size, *, judged: bool) -> Sequence[Size]:
        assert self._factor is not None, "prepare comes first"
        if judged:
            return [size]
        latents = size[0] // self._factor, size[1] // self._factor
        small = [fraction_of(latents, 1, factor) for factor in self.factors]
        return [size, *((height * self._factor, width * self._factor) for height, width in small)]

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:  # noqa: ARG002
        factor = self.factors[int(len(self.factors) * draws.of_step("scale-equivariance").random())]
        height, width = latents.shape[-2:]
        small = fraction_of((height, width), 1, factor)
        ratio = pixel_values.shape[-2] // height
        target = resized_images(pixel_values, (small[0] * ratio, small[1] * ratio), self._pixels)
        further = Further("scale_equivariance", resized(latents, small), target, self.alpha)
        return Regularized(latents, pixel_values, further=(further,))
