"""The safetensors reader against hostile files."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import struct
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert.peft.weights import SafetensorsFile

from alora_gguf.errors import FileFormatError, MissingFileError, UnsupportedAdapterError


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
    "notes": (build({"__metadata__": [1]}, b""), r"its __metadata__ is \[1\], expected names with"),
    "notes kind": (build({"__metadata__": {"a": 1}}, b""), r"its __metadata__ is \{'a': 1\}"),
    "no object": (build([1]), "is not a safetensors file: it starts with"),
    "name with an escape": (
        build({"\x1b[31m": entry()}),
        r"named '\\x1b\[31m', expected up to 1000",
    ),
    "half a letter": (build(b'{"\\ud800": 1}'), r"a tensor named '\\ud800'"),
    "long name": (build({"x" * 1001: entry()}), "a tensor named 'xxxx.*xxxx', expected up to 1000"),
    "NaN": (build(b'{"a":{"dtype":"F32","shape":[NaN]}}'), r"has the shape \[nan\]"),
    "NaN offsets": (
        build(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,NaN]}}'),
        r"data_offsets \[0, nan\], expected \[from, to\]",
    ),
    "deep value": (
        build(b'{"a":{"dtype":"F32","shape":' + b"[" * 900 + b"]" * 900 + b"}}"),
        "has the shape|is not JSON",  # by how much of the stack is left to Python's parser
    ),
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


def test_many_names_twice_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = ",".join(f'"{i % 60_000}":1' for i in range(60_001))
    path.write_bytes(build(f"{{{names}}}".encode()))
    with pytest.raises(FileFormatError, match="'0' occurs twice in its header"):
        SafetensorsFile(path)  # 0.1 s; comparing all with all takes minutes


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_reads_what_safetensors_wrote(tmp_path: Path, dtype: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    values = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)
    save_file({"x": values, "empty": np.zeros((0, 4), np.float32)}, path, {"format": "pt"})
    with SafetensorsFile(path) as file:
        found = file.read("x")
        assert found.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_array_equal(found, values)
        assert file.read("empty").shape == (0, 4)
        assert set(file.tensors) == {"x", "empty"}


def test_reads_bfloat16(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F80, 0x7FC0], "<u2")
    path.write_bytes(build({"a": entry("BF16", (5,), (0, 10))}, bits.tobytes()))
    with SafetensorsFile(path) as file:
        found = file.read("a")
    np.testing.assert_array_equal(found, np.array([1, -2, 2.0**-133, np.inf, np.nan], np.float32))
    assert found.dtype == np.float32


def test_other_dtypes_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"a": entry("I64", (2,))}))
    with (
        SafetensorsFile(path) as file,
        pytest.raises(
            UnsupportedAdapterError, match="'a' has the dtype I64, expected F32, F16, BF"
        ),
    ):
        file.read("a")


# ---- the file itself -----------------------------------------------------------------------------


def test_a_file_replaced_meanwhile_is_still_the_one_that_was_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b"
    first = build({"a": entry()}, b"\0\0\x80\x3f" * 4)
    path.write_bytes(first)
    other.write_bytes(build({"a": entry()}))
    with SafetensorsFile(path) as file:
        other.replace(path)
        assert file.read("a").tolist() == [[1, 1], [1, 1]]
        assert file.sha256() == hashlib.sha256(first).hexdigest()


def test_threads_may_read_and_hash_at_once(tmp_path: Path) -> None:
    path, count = tmp_path / "a.safetensors", 40
    values = np.arange(count * 30_000, dtype=np.float32).reshape(count, 30_000)
    size = values[0].nbytes
    table = {f"t{i}": entry("F32", (30_000,), (i * size, (i + 1) * size)) for i in range(count)}
    path.write_bytes(build(table, values.tobytes()))
    with SafetensorsFile(path) as file, ThreadPoolExecutor(4) as pool:
        hashes = [pool.submit(file.sha256) for _ in range(2)]
        found = list(pool.map(file.read, table))
        wanted = hashlib.sha256(path.read_bytes()).hexdigest()
        assert {h.result() for h in hashes} == {wanted}
    for i, tensor in enumerate(found):
        np.testing.assert_array_equal(tensor, values[i])


def test_memory_holds_one_tensor(tmp_path: Path) -> None:
    path, count, size = tmp_path / "a.safetensors", 16, 4 << 20
    table = {f"t{i}": entry("F32", (size // 4,), (i * size, (i + 1) * size)) for i in range(count)}
    path.write_bytes(build(table, b"\0" * (count * size)))
    tracemalloc.start()
    with SafetensorsFile(path) as file:
        for name in table:
            file.read(name)
        file.sha256()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size


def test_what_is_no_ordinary_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is a directory, expected a file of weights"):
        SafetensorsFile(tmp_path)
    with pytest.raises(FileFormatError, match="cannot be read: embedded null"):
        SafetensorsFile(tmp_path / "a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for its other end
        with pytest.raises(FileFormatError, match="is a pipe or a device, expected a file"):
            SafetensorsFile(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix", reason="opens a directory")
def test_a_disk_that_fails_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"a": entry()}))
    file = SafetensorsFile(path)
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, file._file.fileno())  # from here on, reading fails as on a broken disk
    os.close(folder)
    for read in (file.sha256, lambda: file.read_at(0, 10)):
        with pytest.raises(
            FileFormatError, match=r"a\.safetensors: cannot be read: Is a directory"
        ):
            read()
    file.close()


def test_it_is_closed_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(build({"a": entry()}))
    with SafetensorsFile(path) as file:
        pass
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.read("a")
    path.write_bytes(build({"a": entry(shape=(1,))}))
    with warnings.catch_warnings():  # Python warns of files that were never closed
        warnings.simplefilter("error")
        with pytest.raises(FileFormatError):
            SafetensorsFile(path)
        gc.collect()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file, expected a file of weights; check"):
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
