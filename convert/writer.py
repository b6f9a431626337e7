"""Writes a GGUF file that is there whole or not at all, the same bytes for the same input."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from alora_gguf.errors import ConvertError, InputError
from alora_gguf.gguf_types import GGML_TYPES, ValueType

_ALIGNMENT: Final = 32  # GGUF's default

Value = str | int | float | Sequence[int]


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write: its shape in ggml order, and what makes its bytes when its turn comes."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        """The size of the data."""
        _, per_block, block_bytes = GGML_TYPES[self.type]
        count = 1
        for n in self.shape:
            count *= n
        return count // per_block * block_bytes


def write_gguf(
    path: Path,
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    *,
    overwrite: bool,
) -> int:
    """Writes a GGUF (version 3) and returns its size in bytes.

    Tensors are made one at a time, so memory holds one. The file appears under its name complete
    and flushed; until then, and if anything fails, what was there stays. Sequences become arrays of
    uint32. Raises InputError if `path` exists and `overwrite` is false, ConvertError if the file
    system refuses.
    """
    with replacing(path, overwrite=overwrite) as file:
        file.write(_head(metadata, tensors))
        for tensor in tensors:
            file.write(b"\0" * _padding(file.tell()))
            data = tensor.data()
            if len(data) != tensor.nbytes:  # a mistake of ours would otherwise shift what follows
                raise ConvertError(f"'{tensor.name}' has {len(data)} bytes, not {tensor.nbytes}")
            file.write(data)
        # llama.cpp reads the padding behind the last tensor too
        file.write(b"\0" * _padding(file.tell()))
        return file.tell()


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path` at the end of the block, in one step."""
    check_target(path, overwrite=overwrite)
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _allow_reading(temporary)
        _move(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises InputError if a file cannot be written at `path`, before any work is done."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected a file name for the GGUF")
    if not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
    if path.exists() and not overwrite:
        raise _exists(path)


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists already; pass --force (overwrite=True) to replace it")


def _cannot_write(path: Path, error: OSError) -> ConvertError:
    return ConvertError(f"{path}: cannot be written: {error.strerror or error}")


def _allow_reading(temporary: Path) -> None:
    """Gives the file the mode that open() would have; mkstemp makes it private."""
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)


def _move(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
    else:
        try:
            path.hardlink_to(temporary)  # unlike a rename, fails if the name was taken meanwhile
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without hard links
            check_target(path, overwrite=False)
            temporary.replace(path)
    if os.name == "posix":  # the name itself must reach the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _padding(position: int) -> int:
    return -position % _ALIGNMENT


def _head(metadata: Sequence[tuple[str, ValueType, Value]], tensors: Sequence[OutTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, kind, value in metadata:
        parts += [_string(key), _value(kind, value)]
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [_string(tensor.name), dims, struct.pack("<IQ", tensor.type, offset)]
        offset += tensor.nbytes + _padding(tensor.nbytes)
    return b"".join(parts)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: ValueType, value: Value) -> bytes:
    head = struct.pack("<I", kind)
    if isinstance(value, str):
        return head + _string(value)
    if isinstance(value, (int, float)):
        return head + struct.pack("<I" if kind is ValueType.UINT32 else "<f", value)
    array = struct.pack(f"<IQ{len(value)}I", ValueType.UINT32, len(value), *value)
    return head + array
