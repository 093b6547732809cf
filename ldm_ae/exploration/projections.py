"""Two coordinates for each image: principal components always, t-SNE and UMAP where their libraries are installed."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_BEFORE = 50
"""Principal components that t-SNE and UMAP start from."""
_FEWEST = 30
"""Images below which t-SNE and UMAP show noise."""


class Projection(NamedTuple):
    """Coordinates of N images."""

    name: str
    coordinates: Tensor
    """(N, 2) float32."""
    note: str
    """How to read it, in words."""


def principal_components(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Project features on their principal components.

    The sign of a component is the one by which its largest entry is positive, as in scikit-learn.

    Args:
        features: (N, D).
        count: Components at most.

    Returns:
        Coordinates (N, K) float32, and the fraction of the variance that each component has, (K,) float64.
    """
    centered = (features - features.mean(dim=0)).double()
    left, sizes, right = torch.linalg.svd(centered, full_matrices=False)
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True))[:, 0].sign()
    total = sizes.square().sum().clamp(min=1e-300)
    return (left * sizes * signs)[:, :count].float(), sizes.square()[:count] / total


def projections(features: Tensor, seed: int) -> list[Projection]:
    """Return every projection that this machine can compute.

    Args:
        features: (N, D) float32, N at least 2.
        seed: Seed of t-SNE and UMAP.
    """
    components, fractions = principal_components(features, _BEFORE)
    plane = torch.nn.functional.pad(components[:, :2], (0, max(2 - components.shape[1], 0)))
    note = (
        f"The two directions of largest variance, which hold {float(fractions[:2].sum()):.0%} of it. Distances and "
        "directions are those of the latents, seen from one side."
    )
    found = [Projection("PCA", plane, note)]
    if len(features) < _FEWEST:
        return found
    start = components.numpy()
    neighbours = "Near images are neighbours in the latents; distances between clouds and their sizes mean little."
    if _installed("sklearn"):
        found.append(Projection("t-SNE", _tsne(start, seed), neighbours))
    if _installed("umap"):
        found.append(Projection("UMAP", _umap(start, seed), neighbours))
    return found


def missing() -> list[str]:
    """Return a sentence on each projection whose library is not installed."""
    needed = {"sklearn": "t-SNE needs pip install scikit-learn.", "umap": "UMAP needs pip install umap-learn."}
    return [words for module, words in needed.items() if not _installed(module)]


def neighbour_agreement(features: Tensor, labels: Tensor) -> float:
    """Return the fraction of labelled images whose nearest labelled neighbour has the same label.

    Args:
        features: (N, D).
        labels: (N,) int64, negative for none; at least two are not.
    """
    known = labels >= 0
    distances = torch.cdist(features[known].double(), features[known].double())
    nearest = distances.fill_diagonal_(float("inf")).argmin(dim=1)
    return float((labels[known][nearest] == labels[known]).double().mean())


def _installed(module: str) -> bool:
    """Return whether a library is installed; a folder of its name in the working directory is not it."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def _tsne(features: np.ndarray[Any, Any], seed: int) -> Tensor:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    # The scale of the start that scikit-learn takes for init="pca".
    start = features[:, :2] / max(float(features[:, 0].std()), 1e-12) * 1e-4
    found = TSNE(perplexity=perplexity, init=start, random_state=seed % 2**32).fit_transform(features)
    return torch.from_numpy(np.asarray(found, dtype=np.float32))


def _umap(features: np.ndarray[Any, Any], seed: int) -> Tensor:
    from umap import UMAP

    neighbours = min(15, len(features) - 1)
    found = UMAP(n_neighbors=neighbours, random_state=seed % 2**32, n_jobs=1).fit_transform(features)
    return torch.from_numpy(np.asarray(found, dtype=np.float32))
