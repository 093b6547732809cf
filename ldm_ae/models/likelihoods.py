"""The likelihood that a network was trained with, with its learned scale, as its configuration records it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_ae.losses import Likelihood

LIKELIHOOD = "_likelihood"
"""Configuration key of the description (`describe_likelihood`); diffusers ignores it."""


def record_likelihood(net: Any, likelihood: Likelihood | None) -> None:
    """Record a likelihood in a network's configuration; None records none."""
    from ldm_ae.losses.reconstruction import describe_likelihood

    described = None if likelihood is None else describe_likelihood(likelihood)
    if described is not None or LIKELIHOOD in net.config:
        net.register_to_config(**{LIKELIHOOD: described})


def recorded_likelihood(net: Any) -> Likelihood | None:
    """Return the likelihood that a network's configuration records, without gradients; None if there is none.

    Raises:
        UserError: The record is damaged, or of a class that is not installed.
    """
    described = getattr(net, "config", {}).get(LIKELIHOOD)
    if described is None:
        return None
    from ldm_ae.losses.reconstruction import build_likelihood

    likelihood = build_likelihood(described)
    likelihood.requires_grad_(False)
    device = next((tensor.device for tensor in net.parameters()), None)
    return likelihood if device is None else likelihood.to(device)
