"""Direct writes, which bypass the page cache where the file system supports it, write the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from ldm_ae.io import direct_files
from ldm_ae.io.direct_files import Written, write_direct

PAGE, BUFFER = 4096, 2 * 4096


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_files, "_BUFFER", BUFFER)
    monkeypatch.setattr(direct_files, "_PIECE", 1000)


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1, BUFFER, BUFFER + 1, 5 * BUFFER, 5 * BUFFER + 12345])
def test_direct_write_returns_size_and_hash_of_the_concatenated_pieces(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    pieces = [content[:7], memoryview(content)[7:3000], b"", memoryview(content)[3000:]]
    assert write_direct(tmp_path / "file", pieces) == Written(hashlib.sha256(content).hexdigest(), size)
    assert (tmp_path / "file").read_bytes() == content


def test_direct_write_falls_back_where_o_direct_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        file = opened(path, flags & ~direct_files._O_DIRECT, mode)
        if flags & direct_files._O_DIRECT:
            os.close(file)
            raise OSError(errno.EINVAL, "Invalid argument")
        return file

    monkeypatch.setattr(os, "open", refuse)
    content = os.urandom(3 * BUFFER + 5)
    write_direct(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content


def test_direct_write_handles_block_size_errors_and_partial_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct, writes = [True], []

    def write(file: int, data: memoryview) -> int:
        if direct[0] and len(data) % 512:
            raise OSError(errno.EINVAL, "Invalid argument")
        writes.append(len(data))
        return written(file, data[:700])

    def use_cache(file: direct_files._DirectFile) -> bool:
        was, direct[0] = direct[0], False
        return was

    written = os.write
    monkeypatch.setattr(direct_files, "_O_DIRECT", 0)
    monkeypatch.setattr(direct_files._DirectFile, "_use_cache", use_cache)
    monkeypatch.setattr(os, "write", write)
    content = os.urandom(2 * BUFFER + 5)
    write_direct(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content
    assert len(writes) > 2 * BUFFER // 700  # each in parts


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("size", [5, 5 * BUFFER])
def test_disk_errors_are_raised_and_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, size: int
) -> None:
    def fail(file: int, data: memoryview) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else set()
    with pytest.raises(OSError, match=os.strerror(number)):
        write_direct(tmp_path / "file", [bytes(size)])
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)  # closed


def test_invalid_argument_in_the_buffered_fallback_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int, data: memoryview) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        write_direct(tmp_path / "file", [bytes(3 * BUFFER)])


def test_direct_write_does_not_overwrite_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_direct(tmp_path / "file", [b"other"])
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_direct_write_flushes_before_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "close"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, plain=plain: (calls.append(n), plain(*a))[1])
    write_direct(tmp_path / "file", [bytes(BUFFER + 1)])
    assert calls[-3:] == ["write", "fsync", "close"]
