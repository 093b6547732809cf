"""The latent store: written once by an encoder, read by any trainer. `store/format.py` describes the format.

```python
import ldm_ae
from ldm_ae.data import ImageTransform, open_source
from ldm_ae.latents import LatentDataset, encode_images

model = ldm_ae.load()
encode_images(model, open_source("IMAGES"), "latents", transform=ImageTransform(size=64))
dataset = LatentDataset("latents")
print(len(dataset), dataset[0])
```
"""

from ldm_ae.core.processes import Processes
from ldm_ae.latents.decoding import decode_store, reconstruct_images
from ldm_ae.latents.encoding.config import EncodeConfig
from ldm_ae.latents.encoding.encoder import encode_images
from ldm_ae.latents.encoding.jobs import EncodeSummary
from ldm_ae.latents.georeferences import Georeferences
from ldm_ae.latents.store.batches import BucketBatchSampler, endless
from ldm_ae.latents.store.reader import LatentDataset, LatentStore
from ldm_ae.latents.store.verify import inspect_store, verify_store

__all__ = [
    "BucketBatchSampler",
    "EncodeConfig",
    "EncodeSummary",
    "Georeferences",
    "LatentDataset",
    "LatentStore",
    "Processes",
    "decode_store",
    "encode_images",
    "endless",
    "inspect_store",
    "reconstruct_images",
    "verify_store",
]
