"""Reads the header of a GGUF file: its metadata and where its tensors lie, nothing more.

Large arrays (a vocabulary, its merges) stay in the file until they are asked for, so a header costs
milliseconds whatever the vocabulary. Everything is checked against the file's own size before it is
used; what llama.cpp would refuse is refused here too, with a sentence instead of an abort.

Layout (little endian; ggml/docs/gguf.md upstream):

    "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv      x  key string | type u32 | value                (string: length u64, bytes)
    n_tensors x  name string | n_dims u32 | dims u64.. | ggml type u32 | offset u64
    padding to general.alignment (32) | tensor data
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.files import describe_foreign, open_file

from .parser import (
    DAMAGED,
    GGML_TYPES,
    MAX_TENSOR_NAME,
    VALUE_FORMATS,
    ArrayRef,
    Cursor,
    Scalar,
    TensorInfo,
    ValueType,
    nbytes_of,
)

_MAX_DIMS: Final = 4
# The least entries have 13 and 24 bytes, and become objects of 30 times that. Files in use have
# some 60 metadata entries; 512 layers of 100 weights, each with both halves of an adapter, fit.
MAX_ENTRIES: Final = 10_000
MAX_TENSORS: Final = 102_400
_INT64_MAX: Final = 2**63 - 1


class GGUFHeader:
    """A GGUF file's metadata and tensor table.

    `metadata` maps each key to a Python scalar or an `ArrayRef`, `types` to its GGUF type and
    `entries` to the bytes of key, type and value as they are stored; `size` is the whole file's.
    A header read from a path keeps the file mapped for as long as it lives, so read files that may
    change meanwhile into bytes first.
    """

    def __init__(self, data: memoryview, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._data = data
        self.metadata: dict[str, Scalar | ArrayRef] = {}
        self.types: dict[str, ValueType] = {}
        self.entries: dict[str, memoryview] = {}
        cursor = Cursor(data, name, size)
        self.version = self._read_version(cursor)
        n_tensors, n_kv = cursor.u64(), cursor.u64()
        # the smallest tensor entry has 24 bytes, the smallest metadata entry 13
        if max(n_tensors * 24, n_kv * 13) > size - cursor.pos:
            raise cursor.fail(
                f"claims {n_tensors} tensors and {n_kv} metadata entries, more than its "
                f"{size} bytes can hold; it is truncated or damaged; download it again"
            )
        for n, most, kind in (
            (n_kv, MAX_ENTRIES, "metadata entries"),
            (n_tensors, MAX_TENSORS, "tensors"),
        ):
            if n > most:
                raise cursor.fail(f"has {n} {kind}, expected at most {most}; it is not a model")
        for i in range(n_kv):
            cursor.what = f"metadata entry {i + 1} of {n_kv}"
            self._read_entry(cursor)
        self.alignment = self._read_alignment(cursor)
        infos: dict[str, TensorInfo] = {}
        for i in range(n_tensors):
            cursor.what = f"tensor entry {i + 1} of {n_tensors}"
            info = _read_tensor(cursor)
            if info.name in infos:
                raise cursor.fail(f"tensor '{info.name}' occurs twice; {DAMAGED}")
            infos[info.name] = info
        self.table_end = cursor.pos  # padding follows
        self.data_offset = -(-cursor.pos // self.alignment) * self.alignment
        self.tensors = {info.name: info for info in self._place(infos.values(), cursor)}

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama". Raises FileFormatError if there is none."""
        return self.string("general.architecture")

    def value(self, key: str, *allowed: ValueType) -> Scalar | ArrayRef:
        """The value of `key`, which must have one of the `allowed` types (any, if none is given).

        Raises FileFormatError if the key is missing or has another type.
        """
        if key not in self.metadata:
            raise FileFormatError(f"{self.name}: the metadata key '{key}' is missing")
        found = self.types[key]
        if allowed and found not in allowed:
            wanted = " or ".join(t.name.lower() for t in allowed)
            raise FileFormatError(
                f"{self.name}: the metadata key '{key}' must be of type {wanted}, "
                f"but it is {found.name.lower()}"
            )
        return self.metadata[key]

    def string(self, key: str) -> str:
        """The string value of `key`. Raises FileFormatError if missing or of another type."""
        return str(self.value(key, ValueType.STRING))

    def array(self, key: str) -> tuple[Any, ...]:
        """The elements of an array: strings or numbers. Bytes that are not UTF-8 become U+FFFD.

        Raises FileFormatError if missing or not an array.
        """
        stored, ref = self.array_bytes(key), cast(ArrayRef, self.metadata[key])
        if ref.type is not ValueType.STRING:  # without numpy, which takes longer to import
            return struct.unpack(f"<{ref.count}{VALUE_FORMATS[ref.type]}", stored)
        out: list[str] = []
        pos = 0
        for _ in range(ref.count):
            (n,) = struct.unpack_from("<Q", stored, pos)
            out.append(str(stored[pos + 8 : pos + 8 + n], "utf-8", "replace"))
            pos += 8 + n
        return tuple(out)

    def type_of(self, key: str) -> str:
        """A key's type for messages, such as "of type uint32" or "an array of 3 float32"."""
        value = self.metadata[key]
        if isinstance(value, ArrayRef):
            return f"an array of {value.count} {value.type.name.lower()}"
        return f"of type {self.types[key].name.lower()}"

    def array_bytes(self, key: str) -> memoryview:
        """An array's elements as they are stored: numbers little-endian, a string as its length
        (u64) and its bytes. Raises FileFormatError if missing or not an array.
        """
        ref = cast(ArrayRef, self.value(key, ValueType.ARRAY))
        return self._data[ref.offset : ref.offset + ref.nbytes]

    def tensor_data(self, name: str) -> memoryview:
        """The raw bytes of a tensor.

        Raises FileFormatError if there is no such tensor, or only the file's beginning is at hand.
        """
        if name not in self.tensors:
            raise FileFormatError(f"{self.name}: there is no tensor '{name}'")
        info = self.tensors[name]
        if info.offset + info.nbytes > len(self._data):
            raise FileFormatError(
                f"{self.name}: the data of tensor '{name}' was not fetched, only the file's "
                f"first {len(self._data)} bytes; download the file to read its weights"
            )
        return self._data[info.offset : info.offset + info.nbytes]

    # Reading, front to back ----------------------------------------------------------------------

    def _read_version(self, cursor: Cursor) -> int:
        start = bytes(self._data[:64])
        if not self.size:
            raise cursor.fail("the file is empty; download or write it again")
        if not start.startswith(b"GGUF") and not b"GGUF".startswith(start):
            wrong = f"it starts with {start[:4]!r}, expected b'GGUF'; check the path"
            raise cursor.fail(f"is not a GGUF file: {describe_foreign(start) or wrong}")
        cursor.need(4)
        version = cursor.u32()
        if version & 0xFFFF == 0 and version:
            raise cursor.fail(
                "is a big-endian GGUF file; only little-endian files are supported: convert it "
                "again without --bigendian, or with gguf's gguf-convert-endian"
            )
        if version not in (2, 3):
            raise cursor.fail(
                f"is of GGUF version {version}, expected 2 or 3; convert the original again"
            )
        return version

    def _read_entry(self, cursor: Cursor) -> None:
        start = cursor.pos
        key = cursor.text("a metadata key")
        if not key:
            raise cursor.fail(f"{cursor.what} has an empty key; {DAMAGED}")
        if key in self.metadata:
            raise cursor.fail(f"metadata key '{key}' occurs twice; {DAMAGED}")
        cursor.what = f"metadata key '{key}'"
        self.types[key], self.metadata[key] = cursor.value(key)
        self.entries[key] = self._data[start : cursor.pos]

    def _read_alignment(self, cursor: Cursor) -> int:
        if "general.alignment" not in self.metadata:
            return 32
        value = self.value("general.alignment", ValueType.UINT32)
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise cursor.fail(f"general.alignment is {value}, expected a power of two")
        return value

    def _place(self, infos: Iterable[TensorInfo], cursor: Cursor) -> Iterator[TensorInfo]:
        """Makes offsets absolute; checks that the data lies in the file, back to back, in order."""
        expected = 0
        for info in infos:
            if info.offset != expected:
                kind = "overlaps the tensor before it" if info.offset < expected else "leaves a gap"
                raise cursor.fail(
                    f"tensor '{info.name}' {kind}: its offset is {info.offset}, expected {expected}"
                )
            start = self.data_offset + info.offset
            if start + info.nbytes > self.size:
                raise cursor.fail(
                    f"truncated: tensor '{info.name}' ends at byte {start + info.nbytes}, but the "
                    f"file ends at {self.size}; download or write it again"
                )
            yield replace(info, offset=start)
            expected += -(-info.nbytes // self.alignment) * self.alignment


def _read_tensor(cursor: Cursor) -> TensorInfo:
    """An entry of the tensor table; its offset counts from the start of the data."""
    name = cursor.text("a tensor name")
    cursor.what = f"tensor '{name}'"
    if not 0 < len(name.encode()) <= MAX_TENSOR_NAME:
        raise cursor.fail(
            f"tensor name '{name[:80]}' has {len(name.encode())} bytes, expected 1 to "
            f"{MAX_TENSOR_NAME}"
        )
    n_dims = cursor.u32()
    if n_dims > _MAX_DIMS:
        raise cursor.fail(f"tensor '{name}' has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
    shape = tuple(cursor.u64() for _ in range(n_dims)) or (1,)  # no dimensions: a scalar
    number = cursor.u32()
    if number not in GGML_TYPES:
        raise cursor.fail(
            f"tensor '{name}' has the unknown ggml type {number}; the file is damaged or newer "
            "than this reader"
        )
    kind, per_block, _ = GGML_TYPES[number]
    if math.prod(shape) > _INT64_MAX:
        raise cursor.fail(f"tensor '{name}' of shape {list(shape)} is absurdly large")
    if shape[0] % per_block:
        raise cursor.fail(
            f"tensor '{name}' has rows of {shape[0]} elements, expected a multiple of "
            f"{per_block} for type {kind}"
        )
    return TensorInfo(name, shape, number, cursor.u64(), nbytes_of(shape, number))


def read_header(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    *,
    name: str | None = None,
    size: int | None = None,
) -> GGUFHeader:
    """Reads the header of a GGUF file (version 2 or 3) from a path, or from the file's bytes.

    name  stands for the file in messages; the path by default
    size  the whole file's size in bytes, where `source` is only its beginning

    Raises FileFormatError, with the cause and the way out, for anything that is not a whole and
    sound GGUF file, MissingFileError, and PartialHeaderError where the beginning is too short.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = memoryview(source).cast("B")
        name = name or "<bytes>"
    else:
        data = _map(Path(source))
        name = name or str(Path(source))
    whole = len(data) if size is None else size
    if whole < len(data):
        raise InputError(f"{name}: its size is said to be {size} bytes, but {len(data)} are given")
    return GGUFHeader(data, name, whole)


def _map(path: Path) -> memoryview:
    with open_file(path, "a GGUF file") as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
