"""The latent store: written once by an encoder, read by anyone's trainer. `store.py` describes the format."""

from ldm_ae.latents.batches import BucketBatchSampler, endless
from ldm_ae.latents.decoder import decode_store, reconstruct_images
from ldm_ae.latents.encoder import encode_images
from ldm_ae.latents.jobs import EncodeSummary
from ldm_ae.latents.processes import Processes
from ldm_ae.latents.reader import LatentDataset, LatentStore
from ldm_ae.latents.verify import inspect_store, verify_store

__all__ = [
    "BucketBatchSampler",
    "EncodeSummary",
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
