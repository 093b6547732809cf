from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ldm_ae.core.errors import UserError
from ldm_ae.io.tensor_files import read_tensors, safetensors_pieces


def file_of(header: object, data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: object = (4,), start: int = 0, end: int = 16) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WRONG: dict[str, bytes] = {
    "empty": b"",
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 100 MB that is not there": (100 * 2**20).to_bytes(8, "little") + b"{}",
    "overlapping": file_of({"a": tensor(), "b": tensor(start=0, end=16)}),
    "past the end": file_of({"a": tensor(shape=[400], end=1600)}),
    "backwards": file_of({"a": tensor(start=16, end=0)}),
    "shape": file_of({"a": tensor(shape=[5])}),
    "shape that overflows": file_of({"a": tensor(shape=[2**62, 16])}),
    "negative shape": file_of({"a": tensor(shape=[-4])}),
    "unknown dtype": file_of({"a": tensor("F31")}),
    "no header": file_of([1, 2]),
    "text": b"<html>" * 100,
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_safetensors_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(WRONG[name])
    with pytest.raises(UserError, match=r"a\.safetensors is not a valid safetensors file: .") as caught:
        read_tensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_read_tensors_reads_valid_files_and_refuses_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"a": torch.arange(3)}))
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], torch.arange(3))
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "b.safetensors")


def test_serialized_bytes_equal_those_of_safetensors() -> None:
    dtypes = [
        torch.uint64, torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32,
        torch.bfloat16, torch.float16, torch.uint16, torch.int16, torch.float8_e8m0fnu, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.int8, torch.uint8, torch.bool,
    ]  # fmt: skip
    tensors = {f"{9 - i}{dtype}": torch.rand(3, i + 1).mul(7).to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {'é"\n\\': torch.rand(2, 2), "empty": torch.rand(0, 3), "number": torch.tensor(3.0), "a": torch.rand(5)}
    tensors |= {"channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    tensors |= {"bf16 number": torch.tensor(3.0, dtype=torch.bfloat16), "parameter": torch.nn.Parameter(torch.rand(3))}
    for metadata in (None, {}, {"format": "pt"}, {"é\n": 'ü"\u2028'}):
        expected = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
        assert b"".join(safetensors_pieces(tensors, metadata)) == expected


def test_metadata_is_sorted() -> None:
    [header, _] = safetensors_pieces({"a": torch.zeros(1)}, {"b": "1", "a": "2", "c": "3"})
    assert list(json.loads(header[8:])["__metadata__"]) == ["a", "b", "c"]


def test_unsupported_dtype_raises() -> None:
    with pytest.raises(KeyError):
        safetensors_pieces({"a": torch.zeros(1, dtype=torch.complex128)})
