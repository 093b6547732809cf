"""The classes of networks behind the interface: one file declares which diffusers classes it opens."""

from ldm_ae.core.registry import Registry
from ldm_ae.models.interface import Autoencoder

AUTOENCODERS: Registry[Autoencoder] = Registry(__name__, Autoencoder, "network class", key="class_names")  # type: ignore[type-abstract]
"""Our class for what a model folder holds, by its `_class_name`."""
