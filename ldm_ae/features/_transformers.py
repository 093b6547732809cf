"""Networks of the package transformers: opened from a folder or the hub, or built with random weights."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError, printable, reason
from ldm_ae.features.interface import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RANDOM_SEED,
    FeatureNetwork,
    chosen_layers,
    identifier,
)
from ldm_ae.io.files import require_json, sha256
from ldm_ae.io.hub_names import PREFIX, REPOSITORY, is_hub_name
from ldm_ae.io.weight_files import read_weight_file

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in the order of preference. The second is read by `ldm_ae.io.legacy`, which builds only tensors."""
_NOT_USED = {"embeddings.mask_token"}
"""Weights that a file may lack: they have no effect on features."""


class Classes(NamedTuple):
    """The names of transformers' classes for a type of model."""

    config: str
    model: str


class TransformersNetwork(FeatureNetwork):
    """A network of transformers that consists of an embedding and of blocks in turn.

    Args:
        weights: A folder with `config.json` and `model.safetensors`, a name on the hub, or None for random weights.
        architecture: Values of the configuration, for random weights alone.
        layers: Numbers of the blocks whose outputs are the maps. The blocks after the last one are not computed.
        image_size: Side in pixels to which images are resized; None keeps their size.

    Raises:
        UserError: transformers is missing, the weights are not there or belong to another network, or the blocks do not
            exist.
    """

    model_types: ClassVar[Mapping[str, Classes]]
    """transformers' classes by the `model_type` of a configuration. The first is that of random weights."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the model's constructor."""

    def __init__(
        self,
        weights: str | None,
        architecture: Mapping[str, Any] | None,
        layers: Sequence[int] | None,
        image_size: int | None,
    ):
        if importlib.util.find_spec("transformers") is None:
            raise UserError(
                f"{type(self).__name__} needs the package transformers, which is missing; pip install transformers"
            )
        import transformers

        classes = next(iter(self.model_types.values()))
        if not hasattr(transformers, classes.model):
            raise UserError(
                f"{type(self).__name__} needs {classes.model} of transformers, which {transformers.__version__} does "
                "not have; pip install --upgrade transformers"
            )
        if weights is not None and architecture:
            raise UserError(
                f"{type(self).__name__}: architecture has an effect on random weights alone; remove it, or set weights "
                "to null"
            )
        identity: str | None = None
        statistics: dict[str, Any] = {}
        with _quiet_transformers():
            if weights is None:
                network = self._random(dict(architecture or {}))
            else:
                folder = _folder(weights, type(self).__name__)
                network, identity = self._open(folder, weights)
                statistics = _preprocessing(folder)
        super().__init__(
            image_size,
            mean=statistics.get("image_mean", IMAGENET_MEAN),
            std=statistics.get("image_std", IMAGENET_STD),
            multiple=self.patch_size(network.config),
        )
        self.network: Any = network
        count = len(self.blocks)
        self.layers = chosen_layers(layers, count, self.default_layers(count))
        del self.blocks[self.layers[-1] + 1 :]
        self.has_all_blocks = len(self.blocks) == count
        self.channels = self.channels_of(network.config)
        if weights is not None:
            self.name = identifier(_shown(weights).rpartition("/")[2])
        self.identity = self.warn_about_random_weights() if identity is None else identity
        self.set_precision(torch.float32)

    @property
    @abc.abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, each of which maps the hidden state to the next one."""

    @abc.abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the hidden state before the first block."""

    def block_arguments(self, images: Tensor) -> dict[str, Any]:
        """Return what every block gets beside the hidden state."""
        del images
        return {}

    @abc.abstractmethod
    def channels_of(self, config: Any) -> tuple[int, ...]:
        """Return the channels of the chosen maps."""

    def patch_size(self, config: Any) -> int:
        """Return the number of which the sides of images must be multiples."""
        del config
        return 1

    def default_layers(self, count: int) -> Sequence[int]:
        """Return the blocks that are chosen by default."""
        return range(count)

    def to_map(self, hidden: Tensor, images: Tensor) -> Tensor:
        """Return the map (B, C, h, w) of a block's output."""
        del images
        return hidden

    def maps(self, images: Tensor) -> list[Tensor]:
        states = enumerate(self.hidden_states(images))
        return [self.to_map(hidden, images) for number, hidden in states if number in self.layers]

    def hidden_states(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of each block for normalized images."""
        hidden, arguments = self.embed(images), self.block_arguments(images)
        for block in self.blocks:
            hidden = block(hidden, **arguments)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # before transformers 5 some return a tuple
            yield hidden

    def _random(self, architecture: dict[str, Any]) -> nn.Module:
        """Build the network with random weights, without a change of the global generator."""
        import transformers

        classes = next(iter(self.model_types.values()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            config = getattr(transformers, classes.config)(**architecture)
            network: nn.Module = getattr(transformers, classes.model)(config, **self.options)
        return network

    def _open(self, folder: Path, source: str) -> tuple[nn.Module, str]:
        """Return the network of a folder, and the name and the hash of its weights."""
        import transformers

        values = require_json(folder / CONFIG)
        found = values.get("model_type") if isinstance(values, dict) else None
        if not isinstance(found, str) or found not in self.model_types:
            raise UserError(
                f"{source} is a network of type '{printable(found)}'; {type(self).__name__} takes "
                f"{', '.join(self.model_types)}"
            )
        file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise UserError(f"{source} has a {CONFIG} but none of the weights {' and '.join(WEIGHTS)} in one file")
        classes = self.model_types[found]
        try:
            config = getattr(transformers, classes.config).from_dict(values)
            network, report = getattr(transformers, classes.model).from_pretrained(
                None, config=config, state_dict=read_weight_file(file).tensors, torch_dtype=torch.float32,
                output_loading_info=True, **self.options,
            )  # fmt: skip
        except UserError:
            raise
        except Exception as error:  # transformers raises errors of many classes for values it does not expect
            raise UserError(f"{source} cannot be loaded as {classes.model}: {reason(error)}") from error
        if lacking := sorted({str(name) for name in report["missing_keys"]} - _NOT_USED):
            raise UserError(
                f"{source} lacks {len(lacking)} weights of {classes.model}, such as {printable(lacking[0])}; give the "
                "folder of a complete network"
            )
        return network, f"{_shown(source)} (sha256 {sha256(file)[:16]})"


class StagedNetwork(TransformersNetwork):
    """A convolutional network of stages, with a classifier."""

    @property
    @abc.abstractmethod
    def trunk(self) -> Any:
        """The network without its classifier."""

    @property
    def blocks(self) -> nn.ModuleList:
        stages: nn.ModuleList = self.trunk.encoder.stages
        return stages

    @property
    def has_classifier(self) -> bool:  # type: ignore[override]
        """Whether `logits` works: all stages are computed."""
        return self.has_all_blocks

    def channels_of(self, config: Any) -> tuple[int, ...]:
        return tuple(config.hidden_sizes[layer] for layer in self.layers)

    def classify(self, images: Tensor) -> Tensor:
        if not self.has_classifier:
            return super().classify(images)
        logits: Tensor = self.network(images).logits
        return logits


class VisionTransformer(TransformersNetwork):
    """A vision transformer, whose maps are the tokens of the patches.

    Args:
        weights: As in `TransformersNetwork`.
        architecture: As in `TransformersNetwork`.
        layers: Numbers of the blocks; None takes four at equal distances, the last one included.
        normalized: Apply the network's last normalization to each map.
        image_size: As in `TransformersNetwork`.
    """

    def __init__(
        self,
        weights: str | None,
        architecture: Mapping[str, Any] | None,
        layers: Sequence[int] | None,
        normalized: bool,
        image_size: int | None,
    ):
        self.normalized = normalized
        super().__init__(weights, architecture, layers, image_size)

    @classmethod
    def example(cls) -> VisionTransformer:
        return cls(
            weights=None,  # type: ignore[call-arg]
            architecture={
                "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
                "patch_size": 8, "image_size": 32,
            },
        )  # fmt: skip

    @property
    def last_normalization(self) -> nn.Module:
        """The normalization after the last block."""
        norm: nn.Module = self.network.layernorm
        return norm

    def embed(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.network.embeddings(images)
        return hidden

    def class_token(self, pixel_values: Tensor) -> Tensor:
        """Return the class token after the last block and the last normalization, (B, C) float32.

        Args:
            pixel_values: (B, 3, H, W) in about [-1, 1], of any size.
        """
        assert self.has_all_blocks, "the class token is that of the last block, which `layers` excludes"
        *_, hidden = self.hidden_states(self.prepare(pixel_values))
        token: Tensor = self.last_normalization(hidden)[:, 0].float()
        return token

    def patch_size(self, config: Any) -> int:
        size: int = config.patch_size
        return size

    def default_layers(self, count: int) -> Sequence[int]:
        return sorted({max(count * part // 4 - 1, 0) for part in (1, 2, 3, 4)})

    def channels_of(self, config: Any) -> tuple[int, ...]:
        return (config.hidden_size,) * len(self.layers)

    def to_map(self, hidden: Tensor, images: Tensor) -> Tensor:
        if self.normalized:
            hidden = self.last_normalization(hidden)
        height, width = (side // self.multiple for side in images.shape[-2:])
        # The class token, and registers if there are any, come before the patches.
        return hidden[:, -height * width :].unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _folder(source: str, kind: str) -> Path:
    """Return the local folder of a network: an existing folder, or the hub's files in the local cache."""
    path = Path(source)
    if path.is_dir():
        return path
    name = source.removeprefix(PREFIX)
    if not is_hub_name(source) or not REPOSITORY.fullmatch(name):
        raise UserError(
            f"the weights of {kind} are missing: {source} is not a folder here, nor a name on the Hugging Face hub, "
            "OWNER/NAME"
        )
    from ldm_ae.io.hub import describe_failure, download_files, file_names

    names = file_names(name)
    if isinstance(names, Exception):
        cached = cached_folder(name)
        if cached is None:
            raise UserError(
                f"the weights of {kind} are missing: {name} on the Hugging Face hub: {describe_failure(names)}; or "
                "give a folder with them as weights"
            ) from names
        return cached
    wanted = next((file for file in WEIGHTS if file in names), None)
    if wanted is None or CONFIG not in names:
        raise UserError(
            f"{name} on the Hugging Face hub is not a network of transformers: expected {CONFIG} and {WEIGHTS[0]}"
        )
    return download_files(name, [CONFIG, PREPROCESSOR, wanted])


def cached_folder(name: str) -> Path | None:
    """Return the folder of a network in the hub's local cache, without a question to the hub; None if the cache does
    not have it."""
    from ldm_ae.io.hub import cached_files

    folder = cached_files(name, [CONFIG, PREPROCESSOR, *WEIGHTS])
    complete = folder is not None and (folder / CONFIG).is_file() and any((folder / file).is_file() for file in WEIGHTS)
    return folder if complete else None


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Return the mean and the standard deviation by which a network's images are normalized, where they are stated."""
    found = require_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    values = {key: found.get(key) for key in ("image_mean", "image_std")} if isinstance(found, dict) else {}
    for key, value in values.items():
        if value is not None and not _is_colour(value):
            raise UserError(f"{folder / PREPROCESSOR}: expected three numbers as {key}, got {printable(value)}")
    return {key: value for key, value in values.items() if value is not None}


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(part, int | float) for part in value)


def _shown(source: str) -> str:
    """Return the name of a network on the hub, or that of its folder without the path."""
    path = Path(source)
    return path.resolve().name if path.is_dir() else source.removeprefix(PREFIX)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing reports and progress; what matters in them is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
