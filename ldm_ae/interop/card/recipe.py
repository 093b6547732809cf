"""The training recipe of a run: its configuration without private paths, as a file and as the rows of a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from ldm_ae.interop.card.facts import Trained
from ldm_ae.interop.card.markup import code, escaped
from ldm_ae.io.hub_names import PREFIX, REPOSITORY, is_hub_name

REMOVED = "???"
"""The value in place of a private path: a recipe's value that the user must supply, which `ldm-ae train` asks for."""
_PRIVATE = re.compile(r"""(^|[\s,;=:'"(\[{])(/|~|\\\\|[A-Za-z]:[\\/])|(^|[/\\:])\.\.([/\\]|$)""")
"""A path from the root, a home folder or a drive, also after a prefix such as `tars:` or within a list; or one that
leaves the working directory."""
_SCHEME = re.compile(r"^(folder|tars|parquet|saved|hf):")
_DATASET = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


def is_private_path(text: str) -> bool:
    """Return whether a string holds a path that means something on one machine alone."""
    return _PRIVATE.search(text) is not None


def without_private_paths(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration in which `REMOVED` stands for private paths, and the keys of these."""
    removed: list[str] = []

    def clean(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {str(name): clean(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            # The phases count from 1, as in `--phases.2.data.train`.
            return [clean(v, f"{key}.{i}" if isinstance(v, Mapping) else key) for i, v in enumerate(value, start=1)]
        if isinstance(value, str) and is_private_path(value):
            removed.append(key)
            return REMOVED
        return value

    return clean(config, ""), list(dict.fromkeys(removed))


def public_name(source: str) -> str:
    """Return the name of images without the folders that they lie in."""
    scheme, location = _SCHEME.match(source), _SCHEME.sub("", source)
    if hub_dataset(source) is not None or source.startswith(("photos:", "digits:", "sprites:")):
        return source
    name = PurePath(location.replace("\\", "/").rstrip("/")).name
    return name if name and scheme is None else f"{scheme[0]}{name}" if scheme and name else "images"


def hub_dataset(source: object) -> str | None:
    """Return the data set on the hub that IMAGES names by `hf:owner/name[:split]`; None for a local one."""
    if not isinstance(source, str) or not source.startswith(PREFIX):
        return None
    name = source.removeprefix(PREFIX).partition(":")[0]
    return name if _DATASET.fullmatch(name) and not Path(name).exists() else None


def hub_model(name: object, *, local: object = None) -> str | None:
    """Return `owner/name` where a model's name denotes one on the hub, without its subfolder.

    Args:
        name: The value of `pretrained`.
        local: The run directory of the same configuration: names that begin with its first folder are local too.
    """
    if not isinstance(name, str) or not is_hub_name(name):
        return None
    parts = name.removeprefix(PREFIX).split("/")
    same = isinstance(local, str) and "/" in local and local.split("/")[0] == parts[0]
    repository = "/".join(parts[:2])
    return repository if REPOSITORY.fullmatch(repository) and (name.startswith(PREFIX) or not same) else None


def recipe_text(trained: Trained) -> str:
    """Return the configuration as YAML that `ldm-ae train --config` reads, with the removed keys on top."""
    lines = ["Configuration of the training run, written by ldm-ae push: ldm-ae train --config FILE reads it."]
    if trained.removed:
        keys = " ".join(f"--{key} VALUE" for key in trained.removed)
        lines.append(f"Paths of the machine are removed ({REMOVED}); give your own: {keys}")
    note = "".join(f"# {escape_comment(line)}\n" for line in lines)
    return note + yaml.safe_dump(dict(trained.config), sort_keys=False, allow_unicode=True)


def escape_comment(line: str) -> str:
    """Return a line without characters that would end a comment."""
    return "".join(char if char.isprintable() else " " for char in line)


def recipe_rows(trained: Trained) -> list[tuple[str, str]]:
    """Return the main settings as rows of Markdown; a setting that the configuration lacks has no row."""
    return [(name, text) for name, text in _rows(trained) if text]


def _rows(trained: Trained) -> Iterator[tuple[str, str]]:
    at = _Values(trained.config)
    identity, environment = trained.identity, trained.environment
    images = re.match(r"(\d+) images", str(identity.get("data", "")))
    count = f"{int(images[1]):,} images of " if images else ""
    size = at("data.resolution")
    crop = f", {escaped(at('data.crop'))} crops of {size}×{size} pixels" if size is not None else ""
    resized = at("data.resize")
    crop += "" if resized is None else ", not resized" if resized == "none" else f", shorter side {escaped(resized)}"
    yield "Images", f"{count}{code(trained.source)}{crop}{', mirrored at random' if at('data.flip') is True else ''}"
    pretrained = at("model.init_args.pretrained")
    yield "Started from", "a model that is not public" if pretrained == REMOVED else _value(pretrained)
    yield "Trained parameters", _value(at("training.trainable")) if at("training.trainable") != ["*"] else ""
    yield "Objective", _objective(at)
    yield "Perceptual networks", escaped(environment.get("perceptual") or "")
    yield "Their view of the images", escaped(environment.get("view") or "")
    yield "Regularizer of latents", at.named("regularizer") if at.short("regularizer") != "Identity" else ""
    yield "Optimizer", _optimizer(at, "optimizer")
    if at("discriminator") is not None:
        yield "Discriminator", at.named("discriminator")
        yield "Aids of the discriminator", at.each_named("discriminator_aids")
        yield "Optimizer of the discriminator", _optimizer(at, "discriminator_optimizer")
    parts = [at("training.batch_size"), at("training.accumulation")]
    batch = identity.get("global_batch")
    if batch is not None:
        yield "Images of a step", f"{escaped(batch)}"
    elif None not in parts:
        yield "Images of a forward pass, and passes of a step", f"{escaped(parts[0])}, {escaped(parts[1])}"
    yield "Steps", _steps(trained.step, trained.planned)
    steps, minutes = trained.values("training.max_steps"), trained.values("training.max_minutes")
    for i, phase in enumerate(trained.phases):
        others = {key: value for key, value in phase.items() if key != "training.max_steps"}
        text = "".join(f"; {code(key)} {_setting(value)}" for key, value in others.items())
        yield (
            f"Phase {i + 1} of {len(steps)}",
            f"{'' if minutes[i] is None else 'at most '}{_value(steps[i])} steps{text}",
        )
    numerics = environment.get("numerics")
    precision = numerics.get("precision") if isinstance(numerics, Mapping) else at("training.precision")
    yield "Precision", _value(precision)
    yield "Average of the weights (EMA)", _value(at("training.ema_decay"))
    if at("training.power_ema"):
        yield "Power-function averages of the weights, lengths", _value(at("training.power_ema_lengths"))
    yield "Seed", _value(at("seed"))
    yield "Software", software(environment.get("versions"))
    yield "Device", escaped(environment.get("device") or "")


def software(versions: Any) -> str:
    """Return the versions of packages, as environment.json and metrics.json record them."""
    known = versions if isinstance(versions, Mapping) else {}
    return ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in known.items() if version is not None)


def _steps(step: int | None, planned: Any) -> str:
    if step is None or step == planned:
        return _value(planned)
    return f"{step:,}" if type(planned) is not int else f"{step:,} of {planned:,}"


def _objective(at: _Values) -> str:
    terms = [at.named("objective.reconstruction")]
    if at("objective.perceptual") is not None:
        terms.append(f"{escaped(at('objective.perceptual_weight'))} × {at.named('objective.perceptual')}")
    weights = at("objective.regularization_weights")
    terms += [f"{escaped(weight)} × {code(name)}" for name, weight in weights.items()] if weights else []
    if at("discriminator") is not None:
        adaptive = "adaptive weight × " if at("objective.adaptive_gan_weight") is True else ""
        start = at("objective.discriminator_start")
        since = f" from step {escaped(start)}" if start else ""
        terms.append(f"{adaptive}{escaped(at('objective.gan_weight'))} × {at.named('objective.adversarial')}{since}")
    reduction = at("objective.reduction")
    return " + ".join(term for term in terms if term) + (f"; reduction {code(reduction)}" if reduction else "")


def _optimizer(at: _Values, key: str) -> str:
    parts = [at.short(key) and code(at.short(key))]
    for name, words in (("learning_rate", "learning rate"), ("schedule", "schedule"), ("warmup_steps", "warm-up steps"),
                        ("cooldown_steps", "cool-down steps")):  # fmt: skip
        value = at(f"{key}.{name}")
        parts.append(f"{words} {escaped(value)}" if value else "")
    options = at(f"{key}.options")
    parts += [f"{escaped(name)} {escaped(json.dumps(value))}" for name, value in options.items()] if options else []
    return ", ".join(part for part in parts if part)


def _setting(value: Any) -> str:
    """Return a setting of a phase: a class with its arguments, any other value as JSON."""
    return _class_with_arguments(value) or code(json.dumps(value, ensure_ascii=False))


def _class_with_arguments(configured: Any) -> str:
    """Return `Class(argument=value)` as code; nothing for what is not a configured class."""
    if not isinstance(configured, Mapping) or not configured.get("class_path"):
        return ""
    return code(_call(configured))


def _call(value: Any) -> str:
    """Return `Class(argument=value)` of a configured class, also within lists and arguments; other values as text."""
    if isinstance(value, list):
        return f"[{', '.join(map(_call, value))}]"
    if not isinstance(value, Mapping) or not value.get("class_path"):
        return str(value)
    name, arguments = str(value["class_path"]).rpartition(".")[2], value.get("init_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    given = ", ".join(f"{key}={_call(inner)}" for key, inner in arguments.items() if inner is not None)
    return f"{name}({given})" if given else name


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(code(item) for item in value)
    return f"{value:,}" if type(value) is int else code(value)


class _Values:
    """Values of a configuration by their full names; None where it has none."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def __call__(self, key: str) -> Any:
        found: Any = self._config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        if key.endswith((".options", ".regularization_weights")) and not isinstance(found, Mapping):
            return None
        return found

    def short(self, key: str) -> str:
        """Return the name of a configured class without its module."""
        return str(self(f"{key}.class_path") or "").rpartition(".")[2]

    def named(self, key: str) -> str:
        """Return a configured class with its arguments."""
        return _class_with_arguments(self(key))

    def each_named(self, key: str) -> str:
        """Return the configured classes of a list with their arguments."""
        found = self(key)
        return ", ".join(_class_with_arguments(item) for item in found) if isinstance(found, list) else ""
