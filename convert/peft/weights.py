"""Reads safetensors files: a checked header, and one tensor's values at a time.

Layout: header length u64 | header, JSON: {name: {"dtype", "shape", "data_offsets"}} | data.
Offsets count from the start of the data. The format's own rules are enforced: tensors lie back to
back, without gaps or overlaps, and end where the file ends.
"""

from __future__ import annotations

import contextlib
import json
import math
import reprlib
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.files import describe_foreign, open_file, reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Maker = Callable[[NDArray[np.floating]], NDArray[np.floating]]

_BLOCK: Final = 4 << 20  # bytes hashed at a time: few turns between the threads
_MAX_HEADER: Final = 100_000_000  # the format's own limit, in bytes
_BRIEF: Final = reprlib.Repr()  # of what a damaged file holds, however long or deep
_BRIEF.maxstring = 80
_MAX_NAME: Final = 1000  # letters; the others are numpy's limits, with room for a dtype
_MAX_DIMS: Final = 32
_MAX_SIZE: Final = 2**59
_DTYPE_BYTES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `shape` in torch's order, `offset` in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A safetensors file's table of contents; values are read when asked for.

    The file stays open until close(), or to the end of a `with` block. It is read, not mapped:
    pages of a map count as resident memory, and a mapped file that shrinks meanwhile kills the
    process where a read returns less. Raises FileFormatError, with the cause and the way out, for
    anything that is not sound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self._lock = threading.Lock()  # between seek and read: Windows cannot read at a place
        self._open = contextlib.ExitStack()
        file = self._open.enter_context(open_file(path, "a file of weights"))
        self._file = file.raw  # type: ignore[attr-defined]  # a buffer would hide what changes
        self.size = file.seek(0, 2)
        with self.closed_on_error():
            length = self._header_length(self.read_at(0, 64))
            self._data_start = 8 + length
            self._parse(self.read_at(8, length))

    @contextlib.contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Closes the file if the block raises: its `with` was not reached."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it; nothing can be read any more. May be called again."""
        self._open.close()

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer at the end of the file."""
        parts = []
        while count > 0:
            try:
                with self._lock:
                    self._file.seek(offset)
                    part = self._file.read(count)  # one system call, which may give less
            except OSError as error:
                raise self.fail(f"cannot be read: {reason(error)}") from error
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sha256(self) -> str:
        """The file's SHA-256, in hexadecimal. Other threads run meanwhile."""
        import hashlib

        digest = hashlib.sha256()
        offset = 0
        while block := self.read_at(offset, _BLOCK):
            digest.update(block)
            offset += len(block)
        return digest.hexdigest()

    def fail(self, problem: str) -> FileFormatError:
        """The error that says so of this file."""
        return FileFormatError(f"{self.path}: {problem}")

    def read(self, name: str) -> NDArray[np.floating]:
        """A tensor's values, without loss, in torch's order: F32, F16 and BF16 as float32, F64 as
        float64. Memory holds this one tensor.

        Raises UnsupportedAdapterError for another dtype, FileFormatError if the file has changed.
        """
        return self._values(self.tensors[name])

    def _values(self, info: StoredTensor) -> NDArray[np.floating]:
        import numpy as np

        codes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        if info.dtype not in codes:
            raise UnsupportedAdapterError(
                f"{self.path}: tensor '{info.name}' has the dtype {info.dtype}, expected F32, F16, "
                "BF16 or F64; save the adapter again in one of them"
            )
        raw = self.read_at(info.offset, info.nbytes)
        if len(raw) != info.nbytes:
            raise self.fail(f"became shorter while tensor '{info.name}' was read")
        values: NDArray[Any] = np.frombuffer(raw, codes[info.dtype])
        if info.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        wide = np.float64 if info.dtype == "F64" else np.float32
        return values.astype(wide, copy=False).reshape(info.shape)

    def _header_length(self, start: bytes) -> int:
        if not start:
            raise self.fail("the file is empty; download or save it again")
        known = describe_foreign(start)
        if known and known != "a safetensors file":
            raise self.fail(f"is not a safetensors file but {known}")
        if len(start) < 8:
            raise self.fail(f"truncated: {len(start)} bytes, a safetensors file has 8 and more")
        (length,) = struct.unpack_from("<Q", start)
        if start[8:9] not in (b"{", b""):
            raise self.fail(f"is not a safetensors file: it starts with {start[:9]!r}")
        if length > _MAX_HEADER:
            raise self.fail(f"claims a header of {length} bytes, more than the format allows")
        if length > self.size - 8:
            raise self.fail(
                f"truncated: its header ends at byte {8 + length}, but the file ends at "
                f"{self.size}; download or save it again"
            )
        return int(length)

    def _parse(self, header: bytes) -> None:
        try:
            # an object: it starts with a brace
            table: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            raise self.fail(f"its header is not JSON: {error}") from None
        notes = table.pop("__metadata__", None)
        if notes is not None and not (
            isinstance(notes, dict) and all(isinstance(v, str) for v in notes.values())
        ):
            raise self.fail(f"its __metadata__ is {_BRIEF.repr(notes)}, expected names with texts")
        infos = [self._entry(name, entry) for name, entry in table.items()]
        end = self._data_start
        for info in sorted(infos, key=lambda i: (i.offset, i.nbytes)):
            if info.offset != end:
                problem = "overlaps another tensor" if info.offset < end else "leaves a gap"
                raise self.fail(f"tensor '{info.name}' {problem} at byte {min(info.offset, end)}")
            end += info.nbytes
        if end > self.size:
            raise self.fail(
                f"truncated: its tensors end at byte {end}, but the file ends at {self.size}; "
                "download or save it again"
            )
        if end < self.size:
            raise self.fail(f"has {self.size - end} bytes after its last tensor; it is damaged")
        self.tensors = {info.name: info for info in infos}

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise self.fail(f"{_BRIEF.repr(twice)} occurs twice in its header; the file is damaged")
        return out

    def _entry(self, name: str, entry: Any) -> StoredTensor:
        if not name.isprintable() or len(name) > _MAX_NAME:  # it will stand in messages
            raise self.fail(
                f"has a tensor named {_BRIEF.repr(name)}, expected up to {_MAX_NAME} letters"
            )
        if not isinstance(entry, dict):
            raise self.fail(f"tensor '{name}' has no description; the header is damaged")
        dtype, shape, span = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
            raise self.fail(f"tensor '{name}' has the unknown dtype {_BRIEF.repr(dtype)}")
        if not _is_shape(shape):
            raise self.fail(
                f"tensor '{name}' has the shape {_BRIEF.repr(shape)}, expected sizes that a "
                "file can hold"
            )
        if not _are_sizes(span) or len(span) != 2:
            raise self.fail(
                f"tensor '{name}' has the data_offsets {_BRIEF.repr(span)}, expected [from, to]"
            )
        nbytes = math.prod(shape) * _DTYPE_BYTES[dtype]
        if span[1] - span[0] != nbytes:
            raise self.fail(
                f"tensor '{name}' takes {span[1] - span[0]} bytes, but {dtype} {shape} needs "
                f"{nbytes}"
            )
        return StoredTensor(name, dtype, tuple(shape), self._data_start + span[0], nbytes)


class DerivedFile(SafetensorsFile):
    """A file of another kind of adapter, whose factors are those of a LoRA in another form.

    `stored` has its own tensors. `tensors` has the factors, by the names that they would have in a
    LoRA of PEFT's, with their shapes; each is called, for messages and for read(), after the stored
    tensor that it is made of.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stored, self.tensors = self.tensors, {}
        self._makers: dict[str, Maker] = {}

    def derive(self, name: str, stored: StoredTensor, shape: tuple[int, ...], make: Maker) -> None:
        """Adds the factor `name`, which `make` makes of a stored tensor's values, one of one."""
        self.tensors[name] = replace(stored, shape=shape)
        self._makers[stored.name] = make

    def read(self, name: str) -> NDArray[np.floating]:
        """The factor that is made of a stored tensor; raises what SafetensorsFile.read() does."""
        return self._makers[name](self._values(self.stored[name]))


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < _MAX_SIZE for v in value)


def _is_shape(value: Any) -> TypeGuard[list[int]]:
    # numpy multiplies the other sizes even where one is zero
    return (
        _are_sizes(value)
        and len(value) <= _MAX_DIMS
        and math.prod(n or 1 for n in value) < _MAX_SIZE
    )
