"""R1: a penalty on the discriminator's gradient at real images, once in several steps.

Source: Mescheder et al., Which Training Methods for GANs do actually Converge?, arXiv 1801.04406, equation 9; lazily as
in Karras et al., StyleGAN2, arXiv 1912.04958, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.aids.interface import DiscriminatorAid, image_means
from ldm_ae.discriminators.interface import Discriminator


class R1(DiscriminatorAid):
    """every * gamma / 2 * E ‖∇D(x)‖² at every `every`-th step, where D is the mean of an image's logits.

    The images are those that the discriminator sees, augmented. The penalty is computed in float32 whatever the
    precision of the run: in half precision its gradients would be rounded to zero.

    Args:
        gamma: Weight. StyleGAN2 has 10 for 1024 pixels and less for smaller images.
        every: Interval of the penalty in steps; the factor `every` keeps its strength.
    """

    short_names = ("r1",)
    needs_double_backward = True

    def __init__(self, *, gamma: float = 10.0, every: int = 16):
        super().__init__()
        if gamma < 0 or every < 1:
            raise UserError(f"R1: expected gamma of at least 0 and every of at least 1, got {gamma} and {every}")
        self.gamma, self.every = gamma, every

    def penalty(
        self, discriminator: Discriminator, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int
    ) -> Tensor | None:
        if step % self.every:
            return None
        leaf = real.detach().float().requires_grad_()
        # Of all implementations of attention only this one has a second derivative.
        with torch.autocast(real.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            means = image_means(discriminator(leaf))
            (gradient,) = torch.autograd.grad(means.sum(), leaf, create_graph=True)
        return 0.5 * self.gamma * self.every * gradient.square().sum(dim=(1, 2, 3)).mean()
