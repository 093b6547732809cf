"""The card's metadata: YAML between two lines of three hyphens, in the hub's keys.

Source: huggingface.co/docs/hub/model-cards, and `model-index` in modelcard.md of huggingface/hub-docs.
"""

from __future__ import annotations

from typing import Any

import yaml

from ldm_ae.interop.card.facts import Card, Measured
from ldm_ae.interop.card.markup import one_line
from ldm_ae.interop.card.use import class_of_diffusers

PIPELINE_TAG = "image-to-image"


def front_matter(card: Card) -> str:
    """Return the metadata, which a YAML library writes: no name can end it or add a key."""
    text = yaml.safe_dump(metadata(card), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


def metadata(card: Card) -> dict[str, Any]:
    """Return the metadata as YAML values. A key of which nothing is known is absent."""
    found: dict[str, Any] = {}
    if card.licence is not None:
        found["license"] = card.licence
    found["library_name"] = "ldm_ae" if class_of_diffusers(card.model) is None else "diffusers"
    found["pipeline_tag"] = PIPELINE_TAG
    kind = "vae" if card.model.has_moments else "vq" if card.model.codebook is not None else None
    found["tags"] = ["autoencoder", *([] if kind is None else [kind]), "latent-diffusion", "ldm_ae"]
    if card.base_model is not None:
        found["base_model"] = card.base_model
    if card.trained is not None and card.trained.dataset is not None:
        found["datasets"] = [card.trained.dataset]
    if card.measured is not None and (results := _results(card.measured)):
        found["model-index"] = [{"name": card.repository.partition("/")[2], "results": results}]
    return found


def _results(measured: Measured) -> list[dict[str, Any]]:
    """Return the scores that have a better direction and can be trusted: these are the ones that a list may rank."""
    size = one_line(measured.protocol["images"]["size"])
    where = f"{measured.images} images of {size} pixels"
    metrics = [
        {"type": score.key, "name": one_line(score.label), "value": round(score.value, 6)}
        for score in measured.scores if score.direction and not score.caution
    ]  # fmt: skip
    if not metrics:
        return []
    dataset = {"type": measured.dataset or "images", "name": f"{one_line(measured.source)}, {where}"}
    return [{"task": {"type": PIPELINE_TAG, "name": "Image reconstruction"}, "dataset": dataset, "metrics": metrics}]
