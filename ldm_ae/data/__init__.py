"""Images from their location to batches: sources, decoding, transforms, and the resumable loader.

```python
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source

source = open_source("IMAGES")  # a folder, WebDataset tars, Parquet files, hf:OWNER/NAME
for batch in EvaluationLoader(source, ImageTransform(size=64), batch_size=2):
    print(batch.keys, batch.pixel_values.shape)  # float32 in [-1, 1]
print(source.account().lines())
```
"""

from ldm_ae.core.seeding import seeded_noise
from ldm_ae.data.account import Account
from ldm_ae.data.annotations import Annotated
from ldm_ae.data.batches import Batch
from ldm_ae.data.holdout import Subset, split_holdout, split_keys
from ldm_ae.data.loader import EvaluationLoader, TrainingLoader
from ldm_ae.data.randomness import epoch_order
from ldm_ae.data.ranges import RangeLoader
from ldm_ae.data.sources import RawImage, Source, Wrapped, open_source
from ldm_ae.images.buckets import BucketTransform, WholeTransform, parse_size, sizes_of_area
from ldm_ae.images.colour import conversion_lines
from ldm_ae.images.decoding import MAX_PIXELS, BadImage, ColourProfiles, Decoded, Decoding, decode_image
from ldm_ae.images.transforms import ImageTransform, TransformedImage, described_options

__all__ = [
    "MAX_PIXELS",
    "Account",
    "Annotated",
    "BadImage",
    "Batch",
    "BucketTransform",
    "ColourProfiles",
    "Decoded",
    "Decoding",
    "EvaluationLoader",
    "ImageTransform",
    "RangeLoader",
    "RawImage",
    "Source",
    "Subset",
    "TrainingLoader",
    "TransformedImage",
    "WholeTransform",
    "Wrapped",
    "conversion_lines",
    "decode_image",
    "described_options",
    "epoch_order",
    "open_source",
    "parse_size",
    "seeded_noise",
    "sizes_of_area",
    "split_holdout",
    "split_keys",
]
