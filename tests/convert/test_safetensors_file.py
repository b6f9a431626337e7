"""The safetensors reader against hostile files."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert.safetensors_file import SafetensorsFile

from alora_gguf.errors import FileFormatError


def build(header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), span: Any = (0, 16)) -> dict[str, Any]:
    def plain(v: Any) -> Any:
        return list(v) if isinstance(v, tuple) else v

    return {"dtype": dtype, "shape": plain(shape), "data_offsets": plain(span)}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "short": (b"\1\0\0", "truncated: 3 bytes"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "html": (b"<html><body>404", "an HTML page saved under this name"),
    "pickle": (b"PK\x03\x04" + b"\0" * 30, "a zip archive, such as a pickled"),
    "gguf": (b"GGUF" + b"\0" * 30, "is not a safetensors file but a GGUF file"),
    "noise": (b"\x05\0\0\0\0\0\0\0hello", "is not a safetensors file: it starts with"),
    "header too long": (build(b"{}", b"", 2**40), "claims a header of 1099511627776 bytes"),
    "header past the end": (build({}, b"", 500), "its header ends at byte 508"),
    "not JSON": (build(b"{]"), "its header is not JSON"),
    "deep JSON": (build(b'{"a":' + b"[" * 100_000), "its header is not JSON"),
    "not UTF-8": (build(b'{"\xff":1}'), "its header is not JSON"),
    "twice": (build(b'{"a":{},"a":{}}'), "'a' occurs twice"),
    "no description": (build({"a": 5}), "'a' has no description"),
    "dtype": (build({"a": entry("Q4")}), "'a' has the unknown dtype 'Q4'"),
    "dtype kind": (build({"a": entry(["F32"])}), "has the unknown dtype"),
    "shape": (build({"a": entry(shape=(2, -2))}), r"has the shape \[2, -2\]"),
    "shape kind": (build({"a": entry(shape="22")}), "has the shape '22'"),
    "bool shape": (build({"a": entry(shape=[True, 4])}), "has the shape"),
    "span": (build({"a": entry(span=(0,))}), r"data_offsets \[0\]"),
    "size": (build({"a": entry(shape=(2, 3))}), r"takes 16 bytes, but F32 \[2, 3\] needs 24"),
    "huge": (build({"a": entry(shape=(2**62, 2**62))}), "expected sizes that a file can"),
    "huge and empty": (build({"a": entry(shape=(0, 2**40, 2**40))}), "expected sizes that a file"),
    "many dimensions": (build({"a": entry(shape=[1] * 33)}), "expected sizes that a file can hold"),
    "huge numbers": (build(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b"]}}"), "has the sh"),
    "absurd numbers": (build(b'{"a":' + b"9" * 5000 + b"}"), "its header is not JSON"),
    "gap": (build({"a": entry(span=(4, 20))}, b"\0" * 20), "'a' leaves a gap"),
    "overlap": (
        build({"a": entry(), "b": entry(span=(8, 24))}, b"\0" * 24),
        "'b' overlaps another tensor",
    ),
    "truncated": (build({"a": entry()}, b"\0" * 15), "truncated: its tensors end"),
    "trailing": (build({"a": entry()}, b"\0" * 17), "has 1 bytes after its last tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    save_file({"x": values, "empty": np.zeros((0, 4), np.float32)}, path, {"format": "pt"})
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.read("x"), values.astype(np.float32))
    assert file.read("empty").shape == (0, 4)
    assert set(file.tensors) == {"x", "empty"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        SafetensorsFile(tmp_path / "none")


def test_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"a": entry()}))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="became shorter while tensor 'a' was read"):
        file.read("a")


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    data = build({"a": entry(), "b": entry("BF16", (4,), (16, 24))}, b"\x3f" * 24)
    path, rng = tmp_path / "a.safetensors", random.Random(1)
    for _ in range(400):
        copy = bytearray(data)
        copy[rng.randrange(len(copy) - 24)] = rng.randrange(256)
        path.write_bytes(copy)
        try:
            file = SafetensorsFile(path)
            for name in file.tensors:
                if file.tensors[name].dtype in ("F32", "F16", "BF16"):
                    file.read(name)
        except FileFormatError:
            pass


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = build({"a": entry()})
    path = tmp_path / "a.safetensors"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(FileFormatError):
            SafetensorsFile(path)
