"""Names of models on the Hugging Face hub: which names can be one."""

from __future__ import annotations

import re
from pathlib import Path

PREFIX = "hf:"
"""Prefix of a hub name, needed with a subfolder, and where a local folder has the owner's name."""
REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
"""Pattern of `owner/model`."""
_FILES = (
    ".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".json", ".jsonl", ".yaml", ".yml", ".zip", ".tar", ".gz", ".tgz",
    ".parquet", ".png", ".jpg", ".jpeg", ".webp", ".npy", ".npz", ".csv", ".txt", ".md", ".py", ".log", ".html",
)  # fmt: skip


def is_hub_name(name: str) -> bool:
    """Return whether `name` is `hf:owner/model[/subfolder]`, or can only be `owner/model` on the hub.

    The result is False for everything that looks like a path, so that a mistyped path is not looked up: where `owner`
    is a local file or folder, `model` has a file's suffix, or there are more or fewer than two parts.
    """
    if name.startswith(PREFIX):
        return True
    owner = name.partition("/")[0]
    return bool(REPOSITORY.fullmatch(name)) and not Path(owner).exists() and not name.lower().endswith(_FILES)
