"""An autoencoder in a single file of weights, found by names and shapes.

`ldm_ae.models.loading.layouts` holds the layouts, one file each. The weights may stand bare or below any prefix, alone
or in the checkpoint of a whole latent diffusion model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.io.weight_files import read_weight_file
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.loading.configs import GivenConfig, wrong_size
from ldm_ae.models.loading.guesses import seems_to_be
from ldm_ae.models.loading.layouts import LAYOUTS
from ldm_ae.models.loading.layouts._by_config import by_config, exactly_by_config
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout
from ldm_ae.models.loading.scales import Scale
from ldm_ae.models.loading.shapes import LDMNetwork
from ldm_ae.models.scaling import SCALE

BESIDE = (
    "loss.", "model_ema.", "ema.", "discriminator.", "disc.", "perceptual_loss.", "perceptual.", "lpips.", "logvar",
    "quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "quantize.used", "scale_factor",
)  # fmt: skip
"""Prefixes of tensors that training stores beside the network: losses, averages of weights, counts of codes,
the scale of the latents."""
_LONGEST_KEY, _MOST_PREFIXES = 200, 64
_announced: set[str] = set()
_log = logging.getLogger("ldm_ae")
_COUNTER = ".num_batches_tracked"
"""End of the key of a batch normalization's counter, the only integer among the weights."""


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """The autoencoder of a file: its network, its weights and the properties found with them."""

    path: Path
    layout: Layout
    inference: Inference
    given: GivenConfig
    """The configuration that the user gave, which takes precedence over the inferred one."""
    place: str
    """Location of the weights in the file: the opened dictionaries and the prefix; empty if at the top."""
    beside: tuple[str, ...]
    """Other dictionaries of weights, which were not opened."""
    excluded: int
    """Number of tensors that do not belong to the network."""

    @property
    def class_name(self) -> str:
        """The class of the network."""
        return self.inference.class_name

    @property
    def network(self) -> LDMNetwork | None:
        """The network in CompVis's terms; None for classes that CompVis's code does not have."""
        return self.inference.network

    @property
    def scale(self) -> Scale:
        """The scale of the latents, and its origin."""
        return self.inference.scale

    def config(self) -> dict[str, Any]:
        """Return the configuration of the network: the inferred values, and in their place those that were given."""
        return {"_class_name": self.class_name, **self.inference.scaled_config(), **self.given.values}

    def lines(self) -> list[str]:
        """Return lines that list the properties found, inferred and assumed."""
        place = f" under {self.place}" if self.place else ""
        found = [f"{self.layout.keys}{place}: {self.inference.description}"]
        if self.beside:
            found.append(f"not used: the other weights of the file, under {', '.join(self.beside)}")
        if self.inference.assumed:
            found.append(f"assumed, because the weights do not determine it: {self.inference.assumed}")
        return found

    def notice(self) -> str:
        """Return what was inferred and assumed in two lines, for a terminal."""
        scale = ", ".join(f"{key} {value:.6g}" for key, value in self.config().items()
                          if key in self.inference.scale_keys and isinstance(value, float | int))  # fmt: skip
        assumed = f"assumed {self.inference.assumed}; " if self.inference.assumed else ""
        fix = "" if self.given.values else "; --config JSON_FILE|MODEL_FOLDER overrides any of it"
        return f"{self.path}: {self.lines()[0]}\n{assumed}{scale or 'scale'}: {self.scale.source}{fix}"


def open_single_file(
    path: str | Path, *, config: str | Path | Mapping[str, Any] | None = None, pickled: bool = True
) -> SingleFile:
    """Find the autoencoder in a file.

    Args:
        path: A safetensors file, or a checkpoint of PyTorch, of which only tensors are unpickled.
        config: Values of the network's configuration that take precedence over inferred ones: a mapping, a JSON file
            or a model folder.
        pickled: Whether checkpoints of PyTorch are read.

    Raises:
        UserError: No such file, or no autoencoder in it; the message guesses at the content.
    """
    path, given = Path(path), GivenConfig.read(config)
    file = read_weight_file(path, pickled=pickled)
    tensors: Mapping[str, Tensor] = file.tensors
    for cls in LAYOUTS.classes():
        tensors = cls().with_other_half(path, tensors)
    everything = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}  # torch.compile's
    prefix, layout = _find(everything, path, given)
    own = _below(everything, prefix)
    _check_tensors(own, path)
    if config is None and (path.parent / "config.json").is_file() and path.name.startswith("diffusion_pytorch_model"):
        raise UserError(f"{path} belongs to a model folder; give {path.parent}, with its config.json, as MODEL")
    contents = Contents(
        path=path, state=own, everything=everything, prefix=prefix, given=given.values, class_name=given.class_name,
        scale_factor=file.scale_factor,
    )  # fmt: skip
    inference = layout.infer(contents)
    given.require_class(inference.class_name, path)
    if given.values.keys() & set(SCALE):
        inferred = inference.scale
        scale = Scale(
            factor=given.values.get("scaling_factor", inferred.factor),
            shift=given.values.get("shift_factor", inferred.shift),
            source=f"given in {given.name}",
        )  # fmt: skip
        inference = replace(inference, scale=scale)
    place = ".".join([*file.container, *([prefix.rstrip(".")] if prefix else [])])
    return SingleFile(
        path=path, layout=layout, inference=inference, given=given, place=place, beside=file.beside,
        excluded=len(tensors) - len(own),
    )  # fmt: skip


def announce(file: SingleFile) -> None:
    """Log what was inferred, once in a process: some commands open MODEL twice."""
    if (notice := file.notice()) not in _announced:
        _announced.add(notice)
        _log.warning(notice)


def build_network(file: SingleFile, network_class: Any = None) -> Any:
    """Build the network with the file's weights, in float32; allocate only after the shapes are known to fit.

    Args:
        file: The file.
        network_class: The class to build, where it is not the one that `AUTOENCODERS` opens.

    Raises:
        UserError: The configuration cannot be built, or a weight is missing, unknown or of another shape.
    """
    cls = network_class or AUTOENCODERS[file.class_name].network_class(file.class_name)
    config, name = file.config(), file.path
    if wrong := wrong_size(config):
        raise UserError(f"{name}: {wrong}")
    with torch.device("meta"):
        net = _construct(cls, config, name)
    state = {key: value.float() if value.is_floating_point() else value for key, value in file.inference.state.items()}
    expected = net.state_dict()
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            weight = file.layout.original_name(key, expected) if key in expected else key
            raise UserError(f"{name} has {'no' if key in expected else 'an unknown'} {printable(weight)}")
        if state[key].shape != expected[key].shape:
            found, required = tuple(state[key].shape), tuple(expected[key].shape)
            weight = file.layout.original_name(key, expected)
            needing = "the configuration requires" if file.given.values else "the other weights require"
            raise UserError(f"{name}: {weight}: {needing} shape {required}, got {found}")
    if any(tensor.is_meta for key, tensor in net.named_buffers() if key not in state):
        net = _construct(cls, config, name)  # it computes tensors that it does not save
    net.load_state_dict(state, assign=True)
    return net


def build_autoencoder(file: SingleFile) -> Autoencoder:
    """Build the model with the file's weights, in float32."""
    try:
        return AUTOENCODERS[file.class_name].around(build_network(file))
    except UserError as error:
        raise error if str(file.path) in str(error) else UserError(f"{file.path}: {error}") from None


def _construct(cls: Any, config: dict[str, Any], name: Path) -> Any:
    from diffusers.utils import logging as diffusers_logging

    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # diffusers warns of keys that are not arguments, such as legacy_beta
    try:
        return cls.from_config(config)
    except Exception as error:
        raise UserError(f"{name} cannot be built as {cls.__name__}: {reason(error)}") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _find(everything: Mapping[str, Tensor], path: Path, given: GivenConfig) -> tuple[str, Layout]:
    """Return the prefix of the autoencoder's keys, such as `first_stage_model.` (empty at the top), and its layout."""
    if (exact := exactly_by_config(given, everything)) is not None:
        return exact
    layouts = [cls() for cls in LAYOUTS.classes() if given.class_name in (None, *cls.class_names)]
    found: dict[str, Layout] = {}
    for layout in layouts:
        counts: dict[str, int] = {}
        for key in everything:
            for mark in layout.marks:
                prefix = key.removesuffix(mark)
                if prefix != key and (not prefix or prefix.endswith(".")) and len(prefix) < _LONGEST_KEY:
                    counts[prefix] = counts.get(prefix, 0) + 1
        for prefix in [prefix for prefix, count in counts.items() if count > 1][:_MOST_PREFIXES]:
            if layout.recognizes(_below(everything, prefix)):
                found.setdefault(prefix, layout)
    preferred = [prefix for prefix in found if re.search(r"(^|\.)first_stage_model\.(.*\.)?$", prefix)]
    preferred = preferred or [p for p in found if not re.search(r"(^|\.)(cond_stage_model|\w*ema\w*|teacher)\.", p)]
    prefixes = preferred or list(found)
    if len(prefixes) == 1:
        return prefixes[0], found[prefixes[0]]
    if prefixes:
        names = ", ".join(printable(prefix or "the top level", 40) for prefix in sorted(found)[:4])
        raise UserError(f"{path} has {len(found)} autoencoders ({names}); save the one to open as a separate file")
    if given.class_name is not None:
        return by_config(given, everything, path)
    raise UserError(f"{path} does not hold an autoencoder of a known layout: it seems to be {seems_to_be(everything)}")


def _below(everything: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below the prefix that belong to the network."""
    own = {key.removeprefix(prefix): value for key, value in everything.items() if key.startswith(prefix)}
    own = {key: value for key, value in own.items() if not key.startswith(BESIDE)}
    if prefix == "":  # a whole model whose other parts do not belong to the autoencoder
        own = {key: value for key, value in own.items() if not key.startswith(("model.", "cond_stage_model."))}
        own = {key: value for key, value in own.items() if "." in key or value.ndim > 1}
    return own


def _check_tensors(own: Mapping[str, Tensor], path: Path) -> None:
    for key, value in own.items():
        counter = key.endswith(_COUNTER) and value.numel() == 1
        if len(key) > _LONGEST_KEY or value.layout != torch.strided or not (value.is_floating_point() or counter):
            raise UserError(f"{path}: '{printable(key)}' is not a weight of an autoencoder")
        if value.untyped_storage().nbytes() < value.nbytes:
            raise UserError(f"{path}: '{printable(key)}' declares more numbers than the file holds")
