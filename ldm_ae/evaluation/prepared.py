"""A model that is ready for a page of what it holds, with the entries of the page's protocol on it and the machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import inference_numerics
from ldm_ae.evaluation.metrics.rate import describe_prior, require_prior_of
from ldm_ae.models import Autoencoder, for_inference, model_hash, unwrapped, weights_sha256
from ldm_ae.priors import SavedPrior


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model on its device and in its precision."""

    model: Autoencoder
    device: torch.device
    precision: str
    """`fp32`, `bf16` or `fp16`."""
    model_hash: str
    description: dict[str, object]
    """The protocol's entry `model`."""
    conditions: dict[str, object]
    """The protocol's entries on the prior, the machine and the software."""


def prepare(
    model: Autoencoder, *, name: str, prior: SavedPrior | None, precision: str, device: str | torch.device
) -> Prepared:
    """Put a model in float32, and its prior, in eval mode on a device, and the model in a precision.

    Args:
        model: The model, which stays there (`models.for_inference`).
        name: Its origin, in words.
        prior: Prior over its codes; it runs in float32.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        device: Device to run on; `auto` picks an accelerator if there is one.

    Raises:
        UserError: A prior over other codes, or for a model without codes.
    """
    device = pick_device(device) if isinstance(device, str) else device
    numerics = inference_numerics(precision, device)
    model = for_inference(model, device=device)
    inside = unwrapped(model)
    # Before the precision changes the weights:
    kind, sha256, owner = type(inside).__name__, weights_sha256(inside), model_hash(model)
    if prior is not None:
        if model.codebook is None:
            raise UserError("a prior has no effect on a model without a codebook; remove it (--prior)")
        require_prior_of(prior, owner)
        prior.prior.to(device).eval()
    model = for_inference(model, device=device, precision=numerics.precision)
    return Prepared(
        model=model, device=device, precision=numerics.precision, model_hash=owner,
        description={
            "name": name, "class": kind, "sha256": sha256, "hash": owner,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        conditions={
            "prior": describe_prior(prior), "precision": numerics.precision, "memory_layout": numerics.layout,
            "device": numerics.machine, "git_commit": git_commit(), "versions": package_versions(),
        },
    )  # fmt: skip
