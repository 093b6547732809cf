"""Priors over the codes of a discrete autoencoder, one a file: what codes are likely, given those before them.

They give the rate that an entropy coder reaches, and pictures when they are sampled. A new one is one new file with a
`CodePrior` in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import export
from ldm_ae.priors.coding import decode_indices, encode_indices
from ldm_ae.priors.folder import PRIORS, SavedPrior, load_prior, save_prior
from ldm_ae.priors.interface import CodePrior
from ldm_ae.priors.pixelcnn import GatedPixelCNN
from ldm_ae.priors.transformer import CausalTransformer

__all__ = [
    "PRIORS",
    "CausalTransformer",
    "CodePrior",
    "GatedPixelCNN",
    "SavedPrior",
    "decode_indices",
    "encode_indices",
    "load_prior",
    "save_prior",
]

if not TYPE_CHECKING:  # for a type checker, the imports above are all there is

    def __getattr__(name: str) -> Any:
        return export(__name__, name, PRIORS)
