"""The autoencoders: diffusers' networks behind one small interface.

```python
import torch

from ldm_ae.models import KLAutoencoder

model = KLAutoencoder(block_out_channels=(32, 64, 64)).eval()  # random weights; ldm_ae.load opens trained ones
posterior = model.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
print(posterior.mode().shape, posterior.moments.shape, posterior.rate())
reconstructions = model.decode(posterior.sample())  # (1, 3, 64, 64), not clamped
print(model.spec)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.deprecation import old_export
from ldm_ae.core.devices import pick_device
from ldm_ae.core.registry import export
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.adapters.hierarchical_vq import HierarchicalVQAutoencoder
from ldm_ae.models.adapters.kl import KLAutoencoder
from ldm_ae.models.adapters.vq import VQAutoencoder
from ldm_ae.models.identity import hash_json, model_config, model_hash, network_config, weights_sha256
from ldm_ae.models.inference import for_inference
from ldm_ae.models.interface import Autoencoder, AutoencoderOutput
from ldm_ae.models.loading.load import is_model_folder, load_autoencoder
from ldm_ae.models.loading.places import model_place
from ldm_ae.models.posteriors import DeterministicPosterior, DiscretePosterior, GaussianPosterior, Posterior
from ldm_ae.models.spec import AutoencoderSpec, Codebook, LatentSpec
from ldm_ae.models.statistics import ChannelStatistics
from ldm_ae.models.wrappers.interface import Wrapper, unwrapped
from ldm_ae.models.wrappers.overflow import NotFiniteError, OverflowGuard, finite_rows, fp32_fallbacks, require_finite
from ldm_ae.models.wrappers.tiling import Tiled

__all__ = [
    "AUTOENCODERS",
    "Autoencoder",
    "AutoencoderOutput",
    "AutoencoderSpec",
    "ChannelStatistics",
    "Codebook",
    "DeterministicPosterior",
    "DiscretePosterior",
    "GaussianPosterior",
    "HierarchicalVQAutoencoder",
    "KLAutoencoder",
    "LatentSpec",
    "NotFiniteError",
    "OverflowGuard",
    "Posterior",
    "Tiled",
    "VQAutoencoder",
    "Wrapper",
    "finite_rows",
    "for_inference",
    "fp32_fallbacks",
    "hash_json",
    "is_model_folder",
    "load_autoencoder",
    "model_config",
    "model_hash",
    "model_place",
    "network_config",
    "pick_device",
    "require_finite",
    "unwrapped",
    "weights_sha256",
]

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        if (new := old_export(__name__, name, {"redone_batches": "fp32_fallbacks"})) is not None:
            return globals()[new]
        return export(__name__, name, AUTOENCODERS)
