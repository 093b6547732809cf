"""Images from where they lie to batches: sources, decoding, transforms, and the resumable loader."""

from ldm_ae.data.annotations import Annotated
from ldm_ae.data.batches import Batch
from ldm_ae.data.decoding import BadImage, decode_image
from ldm_ae.data.holdout import split_holdout, split_keys
from ldm_ae.data.loader import EvaluationLoader, TrainingLoader
from ldm_ae.data.randomness import seeded_noise
from ldm_ae.data.sources import RawImage, Source, Wrapped, open_source
from ldm_ae.data.transforms import ImageTransform, TransformedImage

__all__ = [
    "Annotated",
    "BadImage",
    "Batch",
    "EvaluationLoader",
    "ImageTransform",
    "RawImage",
    "Source",
    "TrainingLoader",
    "TransformedImage",
    "Wrapped",
    "decode_image",
    "open_source",
    "seeded_noise",
    "split_holdout",
    "split_keys",
]
