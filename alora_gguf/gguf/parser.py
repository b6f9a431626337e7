"""Parses the bytes of a GGUF header, front to back, and checks every one of them.

Layout (little endian; ggml/docs/gguf.md upstream):

    "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv      x  key string | type u32 | value                (string: length u64, bytes)
    n_tensors x  name string | n_dims u32 | dims u64.. | ggml type u32 | offset u64
    padding to general.alignment (32) | tensor data
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import FileFormatError

from .strings import skip_strings
from .types import GGML_TYPES, VALUE_FORMATS, ArrayRef, Scalar, TensorInfo, ValueType

if TYPE_CHECKING:
    from .header import GGUFHeader

_MAX_DIMS: Final = 4
_MAX_TENSOR_NAME: Final = 63  # GGML_MAX_NAME less its terminating zero
_INT64_MAX: Final = 2**63 - 1
_DAMAGED: Final = "the file is damaged; download it again"


class PartialHeaderError(FileFormatError):
    """The bytes at hand are a file's beginning and end within its header.

    `needed` of the file's bytes, counted from its start, are the least that parsing gets further
    with. Raised only where read_header() was told the whole file's size.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


def parse_into(header: GGUFHeader, data: memoryview) -> None:
    """Fills `header` from a file's first bytes; its name and the file's size must be set.

    Raises FileFormatError for what is not sound, PartialHeaderError where `data` ends too early.
    """
    _Parser(data, header).run()


class _Parser:
    """Fills a GGUFHeader from the bytes, front to back; `pos` is the next byte to read."""

    def __init__(self, data: memoryview, header: GGUFHeader) -> None:
        self.data = data
        self.header = header
        self.pos = 0
        self.what = "the header"

    def run(self) -> None:
        header = self.header
        n_tensors, n_kv = self.prologue()
        for i in range(n_kv):
            self.what = f"metadata entry {i + 1} of {n_kv}"
            self.entry()
        header.alignment = self.alignment()
        infos = []
        for i in range(n_tensors):
            self.what = f"tensor entry {i + 1} of {n_tensors}"
            infos.append(self.tensor())
        self.place(infos)

    def fail(self, problem: str) -> FileFormatError:
        if len(problem) > 600:  # a damaged length makes a key of whatever follows it
            problem = f"{problem[:400]} ... {problem[-150:]}"
        return FileFormatError(f"{self.header.name}: {problem}")

    def need(self, n: int) -> int:
        """Claims the next `n` bytes and returns where they start."""
        start = self.pos
        if n > self.header.size - start:
            raise self.fail(
                f"truncated: {self.what} needs {n} bytes at offset {start}, but the file ends at "
                f"{self.header.size}; download or write it again"
            )
        if n > len(self.data) - start:
            raise PartialHeaderError(
                f"{self.header.name}: {self.what} needs {n} bytes at offset {start}, but only the "
                f"file's first {len(self.data)} bytes are at hand",
                start + n,
            )
        self.pos = start + n
        return start

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.data, self.need(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.data, self.need(8))[0])

    def text(self, what: str) -> str:
        n = self.u64()
        start = self.need(n)
        try:
            return str(self.data[start : start + n], "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} at offset {start} is not UTF-8; {_DAMAGED}") from None

    def prologue(self) -> tuple[int, int]:
        """Version and counts; returns (tensors, metadata entries)."""
        self.need(4)  # "GGUF"
        version = self.u32()
        if version & 0xFFFF == 0 and version:
            raise self.fail(
                "is a big-endian GGUF file; only little-endian files are supported: convert it "
                "again without --bigendian, or with gguf's gguf-convert-endian"
            )
        if version not in (2, 3):
            raise self.fail(
                f"is of GGUF version {version}, expected 2 or 3; convert the original again"
            )
        self.header.version = version
        n_tensors, n_kv = self.u64(), self.u64()
        room = self.header.size - self.pos
        # the smallest tensor entry has 24 bytes, the smallest metadata entry 13
        if n_tensors * 24 > room or n_kv * 13 > room:
            raise self.fail(
                f"claims {n_tensors} tensors and {n_kv} metadata entries, more than its "
                f"{self.header.size} bytes can hold; it is truncated or damaged; download it again"
            )
        return n_tensors, n_kv

    def value_type(self, key: str) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"metadata key '{key}' has the unknown type {number}") from None

    def entry(self) -> None:
        start = self.pos
        key = self.text("a metadata key")
        if not key:
            raise self.fail(f"{self.what} has an empty key; {_DAMAGED}")
        if key in self.header.metadata:
            raise self.fail(f"metadata key '{key}' occurs twice; {_DAMAGED}")
        self.what = f"metadata key '{key}'"
        kind = self.value_type(key)
        self.header.types[key] = kind
        self.header.metadata[key] = self.payload(key, kind)
        self.header.entries[key] = self.data[start : self.pos]

    def payload(self, key: str, kind: ValueType) -> Scalar | ArrayRef:
        if kind is ValueType.STRING:
            n = self.u64()
            start = self.need(n)
            return str(self.data[start : start + n], "utf-8", "replace")
        if kind is ValueType.ARRAY:
            return self.array(key)
        code = "<" + VALUE_FORMATS[kind]
        value: Scalar = struct.unpack_from(code, self.data, self.need(struct.calcsize(code)))[0]
        return value

    def array(self, key: str) -> ArrayRef:
        kind = self.value_type(key)
        count = self.u64()
        start = self.pos
        if kind is ValueType.ARRAY:
            raise self.fail(f"metadata key '{key}' is an array of arrays, which GGUF forbids")
        if kind is ValueType.STRING:
            self.need(count * 8)  # the lengths alone, before any of them is read
            self.pos = start
            self.need(skip_strings(self.data, start, count) - start)
        else:
            self.need(count * struct.calcsize("<" + VALUE_FORMATS[kind]))
        return ArrayRef(kind, count, start, self.pos - start)

    def alignment(self) -> int:
        if "general.alignment" not in self.header.metadata:
            return 32
        value = self.header.value("general.alignment", ValueType.UINT32)
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise self.fail(f"general.alignment is {value}, expected a power of two")
        return value

    def tensor(self) -> TensorInfo:
        """One entry of the tensor table; its offset still counts from the start of the data."""
        name = self.text("a tensor name")
        self.what = f"tensor '{name}'"
        if not 0 < len(name.encode()) <= _MAX_TENSOR_NAME:
            raise self.fail(
                f"tensor name '{name[:80]}' has {len(name.encode())} bytes, expected 1 to "
                f"{_MAX_TENSOR_NAME}"
            )
        if name in self.header.tensors:
            raise self.fail(f"tensor '{name}' occurs twice; {_DAMAGED}")
        n_dims = self.u32()
        if n_dims > _MAX_DIMS:
            raise self.fail(f"tensor '{name}' has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
        shape = tuple(self.u64() for _ in range(n_dims)) or (1,)  # no dimensions: a scalar
        number = self.u32()
        if number not in GGML_TYPES:
            raise self.fail(
                f"tensor '{name}' has the unknown ggml type {number}; the file is damaged or newer "
                "than this reader"
            )
        kind, per_block, block_bytes = GGML_TYPES[number]
        elements = math.prod(shape)
        if elements > _INT64_MAX:
            raise self.fail(f"tensor '{name}' of shape {list(shape)} is absurdly large")
        if shape[0] % per_block:
            raise self.fail(
                f"tensor '{name}' has rows of {shape[0]} elements, expected a multiple of "
                f"{per_block} for type {kind}"
            )
        info = TensorInfo(name, shape, number, self.u64(), elements // per_block * block_bytes)
        self.header.tensors[name] = info
        return info

    def place(self, infos: list[TensorInfo]) -> None:
        """Makes offsets absolute; checks that the data lies in the file, back to back, in order."""
        header, align = self.header, self.header.alignment
        header.data_offset = -(-self.pos // align) * align
        expected = 0
        for info in infos:
            if info.offset != expected:
                kind = "overlaps the tensor before it" if info.offset < expected else "leaves a gap"
                raise self.fail(
                    f"tensor '{info.name}' {kind}: its offset is {info.offset}, expected {expected}"
                )
            start = header.data_offset + info.offset
            if start + info.nbytes > header.size:
                raise self.fail(
                    f"truncated: tensor '{info.name}' ends at byte {start + info.nbytes}, but the "
                    f"file ends at {header.size}; download or write it again"
                )
            header.tensors[info.name] = replace(info, offset=start)
            expected += -(-info.nbytes // align) * align
