"""Terms that spread codes and their use, which several quantizers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_ae.quantizers.processes import mean_over_processes

TINY = 1e-12
"""Bound below any probability that matters; it keeps the entropy's gradient finite at 0."""


def orthogonality(table: Tensor) -> Tensor:
    """Return the mean squared off-diagonal cosine of the codes: |E E^T - I|^2 / K^2 with normalized rows of E. Scalar.

    Source: Shin et al., Translation-equivariant Image Quantizer, arXiv 2112.00384, equation 3.

    Args:
        table: (K, D).
    """
    rows = F.normalize(table, dim=1)
    # |E E^T|^2 = |E^T E|^2 is D x D, where the K x K matrix would fill the memory; its diagonal sums to K.
    return ((rows.T @ rows).square().sum() - len(table)) / len(table) ** 2


def diversity(mean_probabilities: Tensor, *, training: bool) -> Tensor:
    """Return the entropy in nats of probabilities (..., K) averaged over the batch; over all processes in training."""
    if training:  # evaluation runs on only one process
        mean_probabilities = mean_over_processes(mean_probabilities)
    return torch.special.entr(mean_probabilities.clamp_min(TINY)).sum(dim=-1)


def entropy_penalty(logits: Tensor, images: int, *, training: bool) -> Tensor:
    """Return each choice's uncertainty minus the diversity of all: sum over positions of H(p) - H(mean p), in nats.

    Source: Yu et al., MAGVIT-v2, arXiv 2310.05737, equation 5, over a table of codes. The mean is over the batch of all
    processes; each micro-batch of a step has its own mean.

    Args:
        logits: (N, K) of the codes, N = images * positions.
        images: B.
        training: Whether to average over processes.

    Returns:
        (B,).
    """
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    uncertainty = -(p * log_p).sum(dim=1)
    return (uncertainty - diversity(p.mean(dim=0), training=training)).reshape(images, -1).sum(dim=1)
