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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import FileFormatError
from .gguf_types import GGML_TYPES, VALUE_FORMATS, ArrayRef, Scalar, TensorInfo, ValueType

if TYPE_CHECKING:  # numpy takes longer to import than a header takes to read
    import numpy as np
    from numpy.typing import NDArray

_MAX_DIMS: Final = 4
_MAX_TENSOR_NAME: Final = 63  # GGML_MAX_NAME less its terminating zero
_INT64_MAX: Final = 2**63 - 1


class GGUFHeader:
    """A GGUF file's metadata and tensor table.

    `metadata` maps each key to a Python scalar or an `ArrayRef`; `types` maps it to its GGUF type.
    A header read from a path keeps the file mapped for as long as it lives, so read files that may
    change meanwhile into bytes first.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        self.name = name
        self.size = len(data)
        self.metadata: dict[str, Scalar | ArrayRef] = {}
        self.types: dict[str, ValueType] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._data = data
        _Parser(data, self).run()

    version: int
    alignment: int
    data_offset: int

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

    def array(self, key: str) -> NDArray[Any] | list[str]:
        """The elements of an array: strings as a list, numbers as a read-only numpy array [count].

        Bytes that are no UTF-8 become U+FFFD. Raises FileFormatError if missing or not an array.
        """
        ref = self.value(key, ValueType.ARRAY)
        if not isinstance(ref, ArrayRef):  # value() has checked it; this is for the type checker
            raise FileFormatError(f"{self.name}: the metadata key '{key}' is not an array")
        if ref.type is not ValueType.STRING:
            import numpy as np

            code = np.dtype("<" + VALUE_FORMATS[ref.type])
            return np.frombuffer(self._data, code, ref.count, ref.offset)
        out: list[str] = []
        pos = ref.offset
        for _ in range(ref.count):
            (n,) = struct.unpack_from("<Q", self._data, pos)
            out.append(str(self._data[pos + 8 : pos + 8 + n], "utf-8", "replace"))
            pos += 8 + n
        return out

    def tensor_data(self, name: str) -> memoryview:
        """The raw bytes of a tensor. Raises FileFormatError if there is no such tensor."""
        info = self._tensor(name)
        return self._data[info.offset : info.offset + info.nbytes]

    def tensor_array(self, name: str) -> NDArray[np.float32] | NDArray[np.float16]:
        """A tensor's values in numpy order, the reverse of ggml's: a weight is [out, in].

        F32 and F16 are read-only views, BF16 is widened to float32. Raises FileFormatError for
        other types.
        """
        import numpy as np

        info = self._tensor(name)
        raw = self.tensor_data(name)
        shape = info.shape[::-1]
        if info.type_name == "F32":
            return np.frombuffer(raw, "<f4").reshape(shape)
        if info.type_name == "F16":
            return np.frombuffer(raw, "<f2").reshape(shape)
        if info.type_name == "BF16":
            wide = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
        raise FileFormatError(
            f"{self.name}: tensor '{name}' is {info.type_name}; its values can be read "
            "only if it is F32, F16 or BF16"
        )

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise FileFormatError(f"{self.name}: there is no tensor '{name}'")
        return self.tensors[name]


def read_header(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview, *, name: str | None = None
) -> GGUFHeader:
    """Reads the header of a GGUF file (version 2 or 3) from a path, or from the file's bytes.

    `name` stands for the file in messages; it defaults to the path. Raises FileFormatError, with
    the cause and the way out, for anything that is not a whole and sound GGUF file.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return GGUFHeader(memoryview(source).cast("B"), name or "<bytes>")
    path = Path(source)
    return GGUFHeader(_map(path), name or str(path))


def describe_foreign(start: bytes) -> str | None:
    """What a file that begins with `start` (64 bytes are enough) is, if it is a usual impostor."""
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page saved under this name: download the file itself, not its web page"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive, such as a pickled PyTorch checkpoint"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    if start[:4] in (b"ggjt", b"ggla", b"ggml", b"tjgg", b"algg", b"lmgg"):
        return "a file of llama.cpp's time before GGUF: convert the original again"
    if len(start) > 9 and start[8:9] == b"{" and start[4:8] == b"\0\0\0\0":
        return "a safetensors file"
    return None


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FileFormatError(f"{path}: the file is empty; download or write it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise FileFormatError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise FileFormatError(f"{path}: is a directory, expected a GGUF file") from None
    except (OSError, ValueError) as error:
        if path.is_dir():  # Windows reports a directory as "permission denied"
            raise FileFormatError(f"{path}: is a directory, expected a GGUF file") from None
        raise FileFormatError(f"{path}: cannot be read: {error}") from error


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
        return FileFormatError(f"{self.header.name}: {problem}")

    def need(self, n: int) -> int:
        """Claims the next `n` bytes and returns where they start."""
        start = self.pos
        if n > len(self.data) - start:
            raise self.fail(
                f"truncated: {self.what} needs {n} bytes at offset {start}, but the file ends at "
                f"{len(self.data)}; download or write it again"
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
            raise self.fail(f"{what} at offset {start} is not UTF-8; the file is damaged") from None

    def prologue(self) -> tuple[int, int]:
        """Magic, version and counts; returns (tensors, metadata entries)."""
        start = bytes(self.data[:64])
        if not start:
            raise self.fail("the file is empty; download or write it again")
        if not start.startswith(b"GGUF"):
            if b"GGUF".startswith(start):
                self.need(24)
            known = describe_foreign(start)
            raise self.fail(
                f"is not a GGUF file but {known}"
                if known
                else f"is not a GGUF file: it starts with {start[:4]!r}, expected b'GGUF'"
            )
        self.need(4)
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
        room = len(self.data) - self.pos
        # the smallest tensor entry has 24 bytes, the smallest metadata entry 13
        if n_tensors * 24 > room or n_kv * 13 > room:
            raise self.fail(
                f"claims {n_tensors} tensors and {n_kv} metadata entries, more than its "
                f"{len(self.data)} bytes can hold; it is truncated or damaged"
            )
        return n_tensors, n_kv

    def value_type(self, key: str) -> ValueType:
        number = self.u32()
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"metadata key '{key}' has the unknown type {number}") from None

    def entry(self) -> None:
        key = self.text("a metadata key")
        if not key:
            raise self.fail(f"{self.what} has an empty key; the file is damaged")
        if key in self.header.metadata:
            raise self.fail(f"metadata key '{key}' occurs twice; the file is damaged")
        self.what = f"metadata key '{key}'"
        kind = self.value_type(key)
        self.header.types[key] = kind
        self.header.metadata[key] = self.payload(key, kind)

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
            if count * 8 > len(self.data) - start:
                self.need(count * 8)
            self.skip_strings(count)
        else:
            self.need(count * struct.calcsize("<" + VALUE_FORMATS[kind]))
        return ArrayRef(kind, count, start, self.pos - start)

    def skip_strings(self, count: int) -> None:
        """Moves past `count` strings, about 0.1 us each: this loop is most of a header's time."""
        data, pos = self.data, self.pos
        length = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                (n,) = length(data, pos)
                pos += 8 + n
        except (struct.error, OverflowError):  # the next length lies past the end
            pos = len(data) + 1
        self.need(pos - self.pos)

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
            raise self.fail(f"tensor '{name}' occurs twice; the file is damaged")
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
            if start + info.nbytes > len(self.data):
                raise self.fail(
                    f"truncated: tensor '{info.name}' ends at byte {start + info.nbytes}, but the "
                    f"file ends at {len(self.data)}; download or write it again"
                )
            header.tensors[info.name] = replace(info, offset=start)
            expected += -(-info.nbytes // align) * align
