"""Weights written by other programs. The first bytes of a file determine its format, not its name."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.io.legacy import open_legacy_weights
from ldm_ae.io.tensor_files import read_tensors

_HEAD = 4096
_LONGEST_HEADER = 100_000_000
"""Maximum bytes of a safetensors header, the library's own limit."""
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file it stands for; run `git lfs pull`"),
    (b"GGUF", "a GGUF file, which holds quantized weights of language and diffusion models"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"RIFF", "an image, audio or video"),
    (b"%PDF", "a PDF document"),
)
_TEXTS = (
    ("<!doctype html", "a web page (HTML), such as a login or error page saved in the file's place; download again"),
    ("<html", "a web page (HTML), such as a login or error page saved in the file's place; download again"),
    ("<?xml", "an XML document, such as a server's error message; download it again"),
    ("<", "a document with markup; download it again"),
    ("{", "JSON, such as a configuration or a server's error message"),
    ("[", "JSON"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The tensors of a file by name, on the CPU."""

    tensors: dict[str, Tensor]
    container: tuple[str, ...] = ()
    """Dictionaries of a pickled checkpoint that were opened to reach the tensors, the outermost first."""
    beside: tuple[str, ...] = ()
    """Other dictionaries of weights, which were not opened."""
    scale_factor: Tensor | None = None
    """Scale factor of a latent diffusion model that is not in `tensors`: beside their dictionary, or a plain number."""


def read_weight_file(path: str | Path, *, pickled: bool = True) -> WeightFile:
    """Read the tensors of a safetensors file or of a PyTorch checkpoint whose pickle holds only tensors and plain data.

    Args:
        path: The file.
        pickled: Whether checkpoints of PyTorch are read.

    Raises:
        UserError: The file does not exist, or is neither; the message describes what it seems to be.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the file of weights in it, or the folder itself as MODEL")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if _is_safetensors(head):
        return WeightFile(tensors=read_tensors(path))
    if head[:1] == b"\x80" or (head[:4] == b"PK\x03\x04" and _is_torch_archive(path)):
        if not pickled:
            raise UserError(f"{path} is a pickled checkpoint: expected a safetensors file. Convert it once with: "
                            f"ldm-ae import {path} OUT")  # fmt: skip
        found = open_legacy_weights(path)
        return WeightFile(
            tensors=found.tensors, container=found.container, beside=found.beside, scale_factor=found.scale_factor
        )  # fmt: skip
    raise UserError(f"{path} was not opened: it is {_describe_head(head)}")


def is_safetensors_file(path: Path) -> bool:
    """Return whether a file begins as safetensors do."""
    try:
        with path.open("rb") as file:
            return _is_safetensors(file.read(9))
    except OSError:
        return False


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _is_torch_archive(path: Path) -> bool:
    """Return whether it is a PyTorch archive; a damaged archive counts as one, so that PyTorch reports the damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return True


def _describe_head(head: bytes) -> str:
    """Describe the first bytes of a file that is not a checkpoint."""
    if not head:
        return "empty; the download may have failed"
    if head[:4] == b"PK\x03\x04":
        return "a ZIP archive that PyTorch did not write; unpack it first"
    for beginning, words in _BEGINNINGS:
        if head.startswith(beginning):
            return words
    text = head.removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip().lower()
    for tag, words in _TEXTS:
        if text.startswith(tag):
            return words
    if not head.strip(b"\0"):
        return "only zeros; the download may be incomplete"
    return "neither a safetensors file nor a checkpoint of PyTorch"
