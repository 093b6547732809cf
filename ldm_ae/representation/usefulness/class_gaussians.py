"""The simplest conditional generator: a Gaussian over the latents of each class, and the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder
from ldm_ae.representation.encoded import in_batches


class ClassGaussians:
    """A generator of images of a class, fitted to the latents of images with labels.

    The covariance of a class is full. It is that of the means of the posteriors plus, where they are Gaussian, the mean
    of their variances, so that a draw has the spread of the class's draws.

    Args:
        model: The autoencoder, in eval mode.
        images: (N, C, H, W) in [-1, 1], on the model's device.
        labels: (N,) int64 from 0.
        seed: Seed of the draws.

    Raises:
        UserError: A class has fewer than two images.
    """

    def __init__(self, model: Autoencoder, images: Tensor, labels: Tensor, *, seed: int = 0):
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        means, variances = [], []
        with torch.no_grad():
            for part in in_batches(images):
                posterior = model.encode(part)
                means.append(posterior.mode().cpu())
                if posterior.moments is not None:
                    variances.append(posterior.moments.cpu().chunk(2, dim=1)[1].exp())
        self._shape = means[0].shape[1:]
        flat = torch.cat(means).flatten(1).double()
        spread = torch.cat(variances).flatten(1).double() if variances else torch.zeros_like(flat)
        classes = int(labels.max()) + 1
        counts = labels.cpu().bincount(minlength=classes)
        if int(counts.min()) < 2:
            raise UserError(f"a Gaussian of each class needs 2 images of each, class {int(counts.argmin())} has fewer")
        self._means, self._factors = [], []
        for label in range(classes):
            rows = labels.cpu() == label
            covariance = flat[rows].T.cov() + spread[rows].mean(dim=0).diag()
            values, vectors = torch.linalg.eigh(covariance)  # no Cholesky: deterministic latents may be of lower rank
            self._means.append(flat[rows].mean(dim=0))
            self._factors.append(vectors * values.clamp(min=0).sqrt())

    def __call__(self, labels: Tensor) -> Tensor:
        """Return an image (B, C, H, W) in [-1, 1] of each label (B,)."""
        noise = torch.randn(len(labels), len(self._means[0]), generator=self._generator, dtype=torch.float64)
        latents = torch.stack([
            self._means[label] + self._factors[label] @ draw for label, draw in zip(labels.tolist(), noise, strict=True)
        ])  # fmt: skip
        with torch.no_grad():
            return self._model.decode(latents.float().view(-1, *self._shape).to(self._model.device)).clamp(-1, 1)
