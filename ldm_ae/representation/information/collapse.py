"""Posterior collapse, in numbers and words. Source: Burda et al., arXiv 1509.00519, for active units;
Lucas et al., Don't Blame the ELBO!, arXiv 1911.02469, for the phenomenon."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ldm_ae.representation.information.active_units import ACTIVE_VARIANCE, active_units

PRIOR_NATS = 0.01
"""An inactive latent is "at the prior" if its mean KL to N(0, 1) is at most this many nats."""


class Collapse(NamedTuple):
    """Which latents carry information about the image."""

    active: Tensor
    """(D,) bool."""
    kl: Tensor
    """(D,) float64, mean KL of each latent to N(0, 1) in nats."""

    @property
    def lines(self) -> list[str]:
        """The report, in sentences."""
        count, total = int(self.active.sum()), len(self.active)
        silent = self.kl[~self.active]
        at_prior = int((silent <= PRIOR_NATS).sum())
        found = [
            f"{count:,} of {total:,} latents are active: the variance of their posterior mean over the images is above "
            f"{ACTIVE_VARIANCE}."
        ]
        if count == 0:
            found.append(
                "The posterior has collapsed: the latents do not depend on the image, and the decoder ignores it."
            )
        elif count == total:
            found.append("No latent has collapsed.")
        if at_prior:
            found.append(
                f"{at_prior:,} inactive {_latents(at_prior)} at the prior (KL at most {PRIOR_NATS} nats): unused "
                "capacity, which costs no rate."
            )
        if constant := len(silent) - at_prior:
            nats = float(silent[silent > PRIOR_NATS].sum())
            found.append(
                f"{constant:,} inactive {_latents(constant)} constant but not at the prior: a cost of {nats:.3g} nats "
                "for each image without any information."
            )
        if count:
            share = float(self.kl.max() / self.kl.sum())
            found.append(
                f"The KL is {float(self.kl.sum()):.4g} nats for each image; the latent with the most has {share:.0%} "
                "of it."
            )
        return found


def _latents(count: int) -> str:
    return "latent is" if count == 1 else "latents are"


def collapse(means: Tensor, log_variances: Tensor) -> Collapse:
    """Return which latents are active, and the KL of each, for posteriors of N images.

    Args:
        means: (N, D).
        log_variances: (N, D).
    """
    mean, log_variance = means.double(), log_variances.double()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean(dim=0)
    return Collapse(active_units(means), kl)
