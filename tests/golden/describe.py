"""Files as JSON values, without values that depend on the machine, a library's version or the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors import safe_open

from ldm_ae.io.files import sha256

STATE_OF_LIBRARIES = ("param_groups", "rng")
"""Of a checkpoint's state: torch adds options from version to version, and generators differ from run to run."""


def digests(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the sha256 of every file by its path in `folder`; of those in `without` only the name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: "(not compared)" if name in without else sha256(path) for name, path in names.items()}


def describe_tensors(path: Path) -> dict[str, Any]:
    """Return names, dtypes, shapes and the metadata of a safetensors file; metadata that are JSON as values."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        tensors = {name: [part.get_dtype(), part.get_shape()] for name, part in slices.items()}
        metadata = {name: _value(text) for name, text in (file.metadata() or {}).items()}
    return {"metadata": metadata, "tensors": tensors}


def _value(text: str) -> Any:
    return json.loads(text) if text.startswith("{") else text


def tensor_values(path: Path) -> dict[str, list[Any]]:
    """Return the values of a safetensors file's tensors, each as one list."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).flatten().tolist() for name in sorted(file.keys())}


def describe_index(path: Path) -> dict[str, Any]:
    """Return schema, metadata and rows of a store's index. Its bytes name pyarrow's version."""
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    return {
        "schema": [[field.name, str(field.type), field.nullable] for field in table.schema],
        "metadata": {name.decode(): json.loads(value) for name, value in metadata.items()},
        "compression": pq.ParquetFile(path).metadata.row_group(0).column(0).compression,
        "rows": table.to_pylist(),
    }


def describe_statistics_file(path: Path) -> dict[str, Any]:
    """Return names, shapes, dtypes and values of latents_stats.pt. Its bytes are torch.save's, which names versions."""
    content = torch.load(path, weights_only=True)
    return {name: [str(t.dtype), list(t.shape), t.flatten().tolist()] for name, t in content.items()}


def describe_store(store: Path) -> dict[str, Any]:
    """Return the content of a complete store, with the values of its latents separate."""
    description = json.loads((store / "store.json").read_text())
    description["checksum"] = "(not compared)"
    for entry in description["files"].values():
        entry["sha256"] = "(not compared)"
    # Sizes that follow a library's version, or the digits of a float.
    for name in description["files"]:
        if name in ("index.parquet", "stats.json") or name.endswith(".pt"):
            description["files"][name]["size"] = "(not compared)"
    shards = sorted(store.glob("*/*.safetensors"))
    return {
        "files": sorted(digests(store)),
        "store.json": description,
        "index.parquet": describe_index(store / "index.parquet"),
        "stats.json": json.loads((store / "stats.json").read_text()),
        "shards": {path.relative_to(store).as_posix(): describe_tensors(path) for path in shards},
        "latents_stats.pt": {
            path.relative_to(store).as_posix(): describe_statistics_file(path) for path in sorted(store.glob("*/*.pt"))
        },
    }


def describe_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a model folder without the version of diffusers."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "_diffusers_version"}


def key_paths(tree: Any) -> Any:
    """Return a tree of JSON values with the names of their types in place of the values."""
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tree
        return {key: "(not compared)" if key in STATE_OF_LIBRARIES else key_paths(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [key_paths(value) for value in tree]
    return type(tree).__name__
