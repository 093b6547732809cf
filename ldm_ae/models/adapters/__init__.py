"""The network classes behind the interface. One file per class declares which diffusers classes it opens."""

from ldm_ae.core.registry import Registry
from ldm_ae.models.interface import Autoencoder

AUTOENCODERS: Registry[Autoencoder] = Registry(__name__, Autoencoder, "network class", key="class_names")  # type: ignore[type-abstract]
"""Our class for a model folder, keyed by the folder's `_class_name`."""
