"""Reads safetensors files: a checked header, and one tensor's values at a time.

Layout: header length u64 | header, JSON: {name: {"dtype", "shape", "data_offsets"}} | data.
Offsets count from the start of the data. The format's own rules are enforced: tensors lie back to
back, without gaps or overlaps, and end where the file ends.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.gguf_header import describe_foreign

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_HEADER: Final = 100_000_000  # the format's own limit, in bytes
_DTYPE_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
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

    Raises FileFormatError, with the cause and the way out, for anything that is not sound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(64)
                length = self._header_length(start)
                file.seek(8)
                header = file.read(length)
        except OSError as error:
            raise self._fail(f"cannot be read: {error.strerror or error}") from error
        self._data_start = 8 + length
        self._parse(header)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, widened to float32 without loss: F32, F16 or BF16, in torch's order.

        Raises UnsupportedAdapterError for another dtype.
        """
        import numpy as np

        info = self.tensors[name]
        codes = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        if info.dtype not in codes:
            raise UnsupportedAdapterError(
                f"{self.path}: tensor '{name}' has the dtype {info.dtype}, expected F32, F16 or "
                "BF16; save the adapter again in one of them"
            )
        with self.path.open("rb") as file:
            file.seek(info.offset)
            raw = file.read(info.nbytes)
        if len(raw) != info.nbytes:
            raise self._fail(f"became shorter while tensor '{name}' was read")
        values: NDArray[Any] = np.frombuffer(raw, codes[info.dtype])
        if info.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False).reshape(info.shape)

    def sha256(self) -> str:
        """The file's SHA-256, in hexadecimal."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _fail(self, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {problem}")

    def _header_length(self, start: bytes) -> int:
        if not start:
            raise self._fail("the file is empty; download or save it again")
        known = describe_foreign(start)
        if known and known != "a safetensors file":
            raise self._fail(f"is not a safetensors file but {known}")
        if len(start) < 8:
            raise self._fail(f"truncated: {len(start)} bytes, a safetensors file has 8 and more")
        (length,) = struct.unpack_from("<Q", start)
        if start[8:9] not in (b"{", b""):
            raise self._fail(f"is not a safetensors file: it starts with {start[:9]!r}")
        if length > _MAX_HEADER:
            raise self._fail(f"claims a header of {length} bytes, more than the format allows")
        if length > self.size - 8:
            raise self._fail(
                f"truncated: its header ends at byte {8 + length}, but the file ends at "
                f"{self.size}; download or save it again"
            )
        return int(length)

    def _parse(self, header: bytes) -> None:
        try:
            table = json.loads(header, object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            raise self._fail(f"its header is not JSON: {error}") from None
        if not isinstance(table, dict):
            raise self._fail("its header is not a JSON object")
        table.pop("__metadata__", None)
        infos = [self._entry(name, entry) for name, entry in table.items()]
        end = self._data_start
        for info in sorted(infos, key=lambda i: (i.offset, i.nbytes)):
            if info.offset != end:
                problem = "overlaps another tensor" if info.offset < end else "leaves a gap"
                raise self._fail(f"tensor '{info.name}' {problem} at byte {min(info.offset, end)}")
            end += info.nbytes
        if end > self.size:
            raise self._fail(
                f"truncated: its tensors end at byte {end}, but the file ends at {self.size}; "
                "download or save it again"
            )
        if end < self.size:
            raise self._fail(f"has {self.size - end} bytes after its last tensor; it is damaged")
        self.tensors = {info.name: info for info in infos}

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for n in names if names.count(n) > 1)
            raise self._fail(f"'{twice}' occurs twice in its header; the file is damaged")
        return out

    def _entry(self, name: str, entry: Any) -> StoredTensor:
        def sizes(value: Any) -> bool:
            return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)

        if not isinstance(entry, dict):
            raise self._fail(f"tensor '{name}' has no description; the header is damaged")
        dtype, shape, span = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
            raise self._fail(f"tensor '{name}' has the unknown dtype {dtype!r}")
        if not isinstance(shape, list) or not sizes(shape):
            raise self._fail(f"tensor '{name}' has the shape {shape!r}, expected a list of sizes")
        if not isinstance(span, list) or not sizes(span) or len(span) != 2:
            raise self._fail(f"tensor '{name}' has the data_offsets {span!r}, expected [from, to]")
        nbytes = math.prod(shape) * _DTYPE_BYTES[dtype]
        if span[1] - span[0] != nbytes:
            raise self._fail(
                f"tensor '{name}' takes {span[1] - span[0]} bytes, but {dtype} {shape} needs "
                f"{nbytes}"
            )
        return StoredTensor(name, dtype, tuple(shape), self._data_start + span[0], nbytes)
