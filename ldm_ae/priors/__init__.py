"""Priors over the codes of a discrete autoencoder, one per file: distributions of codes given those before them.

They determine the rate of an entropy coder, and their samples decode to images. A new prior is a new file with a
`CodePrior` in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import export
from ldm_ae.priors.coding import decode_indices, encode_indices
from ldm_ae.priors.folder import PRIORS, SavedPrior, load_prior, save_prior
from ldm_ae.priors.hierarchical import HierarchicalPixelCNN
from ldm_ae.priors.interface import CodePrior
from ldm_ae.priors.pixelcnn import GatedPixelCNN
from ldm_ae.priors.transformer import CausalTransformer

__all__ = [
    "PRIORS",
    "CausalTransformer",
    "CodePrior",
    "GatedPixelCNN",
    "HierarchicalPixelCNN",
    "SavedPrior",
    "decode_indices",
    "encode_indices",
    "load_prior",
    "save_prior",
]

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, PRIORS)
