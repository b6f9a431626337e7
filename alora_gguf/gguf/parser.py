"""GGUF's and ggml's types, and a cursor that reads a header's bytes, each of them checked."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from alora_gguf.errors import FileFormatError

Scalar = int | float | bool | str


class ValueType(IntEnum):
    """The type of a metadata value, as numbered in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct codes; they are numpy's type codes too, once "<" stands before them
VALUE_FORMATS: Final = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

# ggml type id -> (name, elements per block, bytes per block). Our own table, because importing
# `gguf` takes 0.2 s; a test compares the two.
GGML_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array that was left in the file: `count` elements in `nbytes` bytes from `offset` on."""

    type: ValueType
    count: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    `shape` is in ggml order, fastest dimension first: a weight that torch calls [out, in] is
    (in, out). `offset` counts from the start of the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        """Its name in ggml, such as "F16" or "Q4_K"."""
        return GGML_TYPES[self.type][0]


def nbytes_of(shape: tuple[int, ...], kind: int) -> int:
    """The size of a tensor of a ggml type."""
    _, per_block, block_bytes = GGML_TYPES[kind]
    return math.prod(shape) // per_block * block_bytes


MAX_TENSOR_NAME: Final = 63  # GGML_MAX_NAME less its terminating zero
DAMAGED: Final = "the file is damaged; download it again"
MAX_TEXT: Final = 64 << 20  # bytes of a metadata string; a tokenizer.json has some 20 MB
MAX_STRINGS: Final = 4_000_000  # of an array; the largest vocabularies have 262,144
_STRETCH: Final = 1 << 20  # bytes looked at in one go
_STEPS: Final = 4096  # strings passed one by one after a stretch that numpy could not end


class PartialHeaderError(FileFormatError):
    """The bytes at hand are a file's beginning and end within its header.

    `needed` of the file's bytes, counted from its start, are the least that parsing gets further
    with. Raised only where read_header() was told the whole file's size.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class Cursor:
    """Reads a header's bytes front to back; `pos` is the next one, `what` is being read."""

    def __init__(self, data: memoryview, name: str, size: int) -> None:
        self.data = data
        self.name = name
        self.size = size
        self.pos = 0
        self.what = "the header"

    def fail(self, problem: str) -> FileFormatError:
        """The error for what is not sound."""
        if len(problem) > 600:  # a damaged length makes a key of whatever follows it
            problem = f"{problem[:400]} ... {problem[-150:]}"
        return FileFormatError(f"{self.name}: {problem}")

    def need(self, n: int) -> int:
        """Claims the next `n` bytes and returns where they start."""
        start = self.pos
        if n > self.size - start:
            raise self.fail(
                f"truncated: {self.what} needs {n} bytes at offset {start}, but the file ends at "
                f"{self.size}; download or write it again"
            )
        if n > len(self.data) - start:
            raise PartialHeaderError(
                f"{self.name}: {self.what} needs {n} bytes at offset {start}, but only the "
                f"file's first {len(self.data)} bytes are at hand",
                start + n,
            )
        self.pos = start + n
        return start

    def u32(self) -> int:
        """A number in 4 bytes."""
        return int(struct.unpack_from("<I", self.data, self.need(4))[0])

    def u64(self) -> int:
        """A number in 8 bytes."""
        return int(struct.unpack_from("<Q", self.data, self.need(8))[0])

    def text(self, what: str) -> str:
        """A string that has to be UTF-8."""
        n = self.u64()
        start = self.need(n)
        try:
            return str(self.data[start : start + n], "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} at offset {start} is not UTF-8; {DAMAGED}") from None

    def value(self, key: str) -> tuple[ValueType, Scalar | ArrayRef]:
        """A metadata value with its type; the elements of an array are passed by."""
        kind = self._type(key)
        if kind is ValueType.STRING:
            n = self.u64()
            start = self.need(n)
            if n > MAX_TEXT:
                raise self.fail(
                    f"metadata key '{key}' holds {n} bytes of text, expected at most {MAX_TEXT}"
                )
            return kind, str(self.data[start : start + n], "utf-8", "replace")
        if kind is not ValueType.ARRAY:
            code = "<" + VALUE_FORMATS[kind]
            return kind, struct.unpack_from(code, self.data, self.need(struct.calcsize(code)))[0]
        item, count = self._type(key), self.u64()
        start = self.pos
        if item is ValueType.ARRAY:
            raise self.fail(f"metadata key '{key}' is an array of arrays, which GGUF forbids")
        if item is ValueType.STRING:
            self.need(count * 8)  # the lengths alone, before any of them is read
            if count > MAX_STRINGS:
                raise self.fail(
                    f"metadata key '{key}' has {count} strings, expected at most {MAX_STRINGS}"
                )
            self.pos = start
            self.need(skip_strings(self.data, start, count) - start)
        else:
            self.need(count * struct.calcsize(f"<{VALUE_FORMATS[item]}"))
        return kind, ArrayRef(item, count, start, self.pos - start)

    def _type(self, key: str) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"metadata key '{key}' has the unknown type {number}") from None


def skip_strings(data: memoryview, pos: int, count: int) -> int:
    """The position after `count` strings (length u64, bytes) that begin at `pos`, without making
    Python strings of them; it lies beyond the end of `data` if the strings do.

    A vocabulary and its merges are some 400,000 strings, and finding their end is most of what
    reading a header costs. Where numpy is loaded anyway, whole stretches are passed at once.
    """
    while count > _STEPS and "numpy" in sys.modules:
        pos, passed = _leap(data, pos, count)
        count -= passed
        steps = min(count, _STEPS) if passed < _STEPS else 0
        pos = _walk(data, pos, steps)
        count -= steps
    return _walk(data, pos, count)


def _walk(data: memoryview, pos: int, count: int) -> int:
    """One string after the other."""
    length = struct.Struct("<Q").unpack_from
    try:
        for _ in range(count):
            (n,) = length(data, pos)
            pos += 8 + n
    except (struct.error, OverflowError):  # the next length lies past the end
        return max(pos, len(data)) + 8
    return pos


def _leap(data: memoryview, pos: int, count: int) -> tuple[int, int]:
    """Passes the strings of a stretch; returns the new position and how many they were.

    Lengths from 1 to 255 stand out: a byte before seven zeros. Wherever one of these is as far from
    the next as it says, both are lengths; the first that is not ends the leap.
    """
    import numpy as np

    size = min(_STRETCH, len(data) - pos) // 8 * 8 - 8
    if size <= 0:
        return pos, 0
    stretch = np.frombuffer(data, np.uint8, size + 8, pos)
    small = np.empty(size, np.bool_)
    for shift in range(8):
        small[shift::8] = stretch[shift : shift + size].view("<u8") - 1 < 255  # 0 wraps around
    starts = np.flatnonzero(small)
    if not len(starts) or starts[0]:
        return pos, 0
    right = np.diff(starts) == stretch[starts[:-1]].astype(np.int64) + 8
    passed = int(right.argmin()) if not right.all() else len(right)
    passed = min(passed, count)
    return pos + int(starts[passed]), passed
