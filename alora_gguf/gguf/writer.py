"""Writes a GGUF file: the same bytes for the same input, tensor by tensor; or one value of it."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alora_gguf.errors import ConvertError, InputError
from alora_gguf.files import open_file, write_whole

from . import decisions
from .header import read_header
from .parser import MAX_TENSOR_NAME, VALUE_FORMATS, ValueType, nbytes_of

_ALIGNMENT: Final = 32  # GGUF's default
_COUNTS: Final = 24  # bytes before the entries; the last 8 say how many there are
# a memoryview is a whole entry, as another file has it (GGUFHeader.entries)
Value = str | int | float | Sequence[int] | Sequence[str] | memoryview
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write: its shape in ggml order, and what makes its bytes when its turn comes."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Callable[[], bytes | memoryview]

    @property
    def nbytes(self) -> int:
        """The size of the data."""
        return nbytes_of(self.shape, self.type)


def write_gguf(
    path: Path,
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    *,
    overwrite: bool,
    progress: Progress | None = None,
) -> int:
    """Writes a GGUF (version 3) and returns its size in bytes.

    Tensors are made one at a time, so memory holds one. The file appears under its name complete
    and flushed; until then, and if anything fails, what was there stays. Values of type ARRAY
    become arrays of strings or of uint32, by what they hold. `progress` is called with the bytes
    done and the bytes in all after each tensor. Raises InputError if `path` exists and `overwrite`
    is false, ConvertError if a value does not fit its type or the file system refuses.
    """
    with write_whole(path, overwrite=overwrite, what="GGUF", error=ConvertError) as file:
        return _emit(file.write, metadata, tensors, progress)


def gguf_bytes(
    metadata: Sequence[tuple[str, ValueType, Value]], tensors: Sequence[OutTensor]
) -> bytes:
    """What write_gguf() would write. Raises ConvertError if a value does not fit its type."""
    found = bytearray()
    _emit(found.extend, metadata, tensors, None)
    return bytes(found)


def measure_gguf(
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    progress: Progress | None = None,
) -> int:
    """The size that write_gguf() would return. Every tensor is made, so whatever checks making it
    involves are done, but nothing is written.
    """
    return _emit(len, metadata, tensors, progress)


def write_temperature(path: str | os.PathLike[str], kind: str, value: float) -> None:
    """Gives an adapter's GGUF the temperature that its decisions of a kind are divided by: "noul"
    (yes and no), "choice" or "score". It replaces the one that the file has; all else stays, byte
    for byte. Memory holds the whole file.

    Raises InputError, MissingFileError, FileFormatError for what is not a sound GGUF, ConvertError
    if the file system refuses.
    """
    if kind not in decisions.KINDS:
        known = ", ".join(decisions.KINDS)
        raise InputError(f"the kind of a temperature is {kind!r}, expected {known}")
    if not 0 < value <= decisions.MAX:
        limit = f"a number above 0, at most {decisions.MAX}"
        raise InputError(f"the temperature is {value}, expected {limit}")
    file = Path(path)
    with open_file(file, "a GGUF file") as source:
        data = source.read()
    header = read_header(data, name=str(file))
    key = decisions.KEY.format(header.architecture, kind)
    start = _COUNTS + sum(map(len, header.entries.values()))
    entries: dict[str, bytes | memoryview] = dict(header.entries)
    entries[key] = _entry(key, ValueType.FLOAT32, value)
    counts = data[: _COUNTS - 8] + struct.pack("<Q", len(entries))
    head = b"".join((counts, *entries.values(), data[start : header.table_end]))
    head += b"\0" * (-len(head) % header.alignment)
    with write_whole(file, what="GGUF", error=ConvertError) as target:
        target.write(head + data[header.data_offset :])


def _emit(
    write: Callable[[bytes | memoryview], object],
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    progress: Progress | None,
) -> int:
    """Passes the file's bytes to `write`; returns their count."""
    head = _head(metadata, tensors)
    total = len(head) + sum(t.nbytes + _padding(t.nbytes) for t in tensors)
    write(head)
    done = len(head)
    for tensor in tensors:
        data = tensor.data()
        if len(data) != tensor.nbytes:  # a mistake of ours would otherwise shift what follows
            raise ConvertError(f"'{tensor.name}' has {len(data)} bytes, not {tensor.nbytes}")
        write(data)
        # after the last one as well: llama.cpp reads that padding too
        write(b"\0" * _padding(len(data)))
        done += len(data) + _padding(len(data))
        if progress:
            progress(done, total)
    return done


def _padding(position: int) -> int:
    return -position % _ALIGNMENT


def _head(metadata: Sequence[tuple[str, ValueType, Value]], tensors: Sequence[OutTensor]) -> bytes:
    """All that comes before the data."""
    _check_names([key for key, _, _ in metadata], [tensor.name for tensor in tensors])
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        head += _entry(key, kind, value)
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head += _string(tensor.name, "a tensor's name") + dims
        head += struct.pack("<IQ", tensor.type, offset)
        offset += tensor.nbytes + _padding(tensor.nbytes)
    return bytes(head) + b"\0" * _padding(len(head))


def _entry(key: str, kind: ValueType, value: Value) -> bytes:
    if isinstance(value, memoryview):
        return bytes(value)
    return _string(key, key) + struct.pack("<I", kind) + _value(key, kind, value)


def _check_names(keys: list[str], tensors: list[str]) -> None:
    """Raises ConvertError for what readers refuse: a name that comes twice or is too long."""
    for names in (keys, tensors):
        if len(set(names)) != len(names):
            ((twice, _),) = Counter(names).most_common(1)
            raise ConvertError(f"'{twice}' would stand in the file twice")
    for name in tensors:
        if len(name.encode()) > MAX_TENSOR_NAME:
            raise ConvertError(
                f"the tensor name '{name}' has {len(name.encode())} bytes, more than llama.cpp's "
                f"{MAX_TENSOR_NAME}"
            )


def _value(key: str, kind: ValueType, value: Value) -> bytes:
    if isinstance(value, str):
        return _string(value, key)
    if isinstance(value, (int, float)):
        return _number(key, kind, value)
    if value and isinstance(value[0], str):
        parts = b"".join(_string(str(item), key) for item in value)
        return struct.pack("<IQ", ValueType.STRING, len(value)) + parts
    parts = b"".join(_number(key, ValueType.UINT32, int(item)) for item in value)
    return struct.pack("<IQ", ValueType.UINT32, len(value)) + parts


def _number(key: str, kind: ValueType, value: float) -> bytes:
    try:
        return struct.pack("<" + VALUE_FORMATS[kind], value)
    except (struct.error, OverflowError):
        raise ConvertError(f"'{key}' = {value} does not fit the type {kind.name.lower()}") from None


def _string(text: str, key: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: from JSON, or from a file's name
        raise ConvertError(f"'{key}' = {text!r} is not valid Unicode text") from None
    return struct.pack("<Q", len(raw)) + raw
