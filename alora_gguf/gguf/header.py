"""Reads the header of a GGUF file: its metadata and where its tensors lie, nothing more.

Large arrays (a vocabulary, its merges) stay in the file until they are asked for, so a header costs
milliseconds whatever the vocabulary. Everything is checked against the file's own size before it is
used; what llama.cpp would refuse is refused here too, with a sentence instead of an abort.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.errors import FileFormatError, InputError, MissingFileError
from alora_gguf.files import describe_foreign, reason

from .parser import VALUE_FORMATS, ArrayRef, Scalar, TensorInfo, ValueType, parse

if TYPE_CHECKING:  # numpy takes longer to import than a header takes to read
    import numpy as np
    from numpy.typing import NDArray

_EXPECTED: Final = "expected a GGUF file; check the path"


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
        self._check_magic()
        tables = parse(data, name, size)
        self.version = tables.version
        self.alignment = tables.alignment
        self.data_offset = tables.data_offset
        self.metadata = tables.metadata
        self.types = tables.types
        self.entries = tables.entries
        self.tensors = tables.tensors

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

        Bytes that are not UTF-8 become U+FFFD. Raises FileFormatError if missing or not an array.
        """
        ref = self._array(key)
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

    def numbers(self, key: str) -> tuple[Any, ...]:
        """The elements of an array of numbers, without numpy, which takes longer to import."""
        ref = self._array(key)
        return struct.unpack(f"<{ref.count}{VALUE_FORMATS[ref.type]}", self.array_bytes(key))

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
        ref = self._array(key)
        return self._data[ref.offset : ref.offset + ref.nbytes]

    def tensor_data(self, name: str) -> memoryview:
        """The raw bytes of a tensor.

        Raises FileFormatError if there is no such tensor, or only the file's beginning is at hand.
        """
        info = self._tensor(name)
        if info.offset + info.nbytes > len(self._data):
            raise FileFormatError(
                f"{self.name}: the data of tensor '{name}' was not fetched, only the file's "
                f"first {len(self._data)} bytes; download the file to read its weights"
            )
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

    def _check_magic(self) -> None:
        start = bytes(self._data[:64])
        if not self.size:
            raise FileFormatError(f"{self.name}: the file is empty; download or write it again")
        if not start.startswith(b"GGUF") and not b"GGUF".startswith(start):
            known = describe_foreign(start)
            if known:  # some of these say what to do, after a colon
                way_out = "" if ":" in known else "; check the path"
                raise FileFormatError(f"{self.name}: is not a GGUF file but {known}{way_out}")
            raise FileFormatError(
                f"{self.name}: is not a GGUF file: it starts with {start[:4]!r}, expected b'GGUF'; "
                "check the path"
            )

    def _array(self, key: str) -> ArrayRef:
        ref = self.value(key, ValueType.ARRAY)
        if not isinstance(ref, ArrayRef):  # value() has checked it; this is for the type checker
            raise FileFormatError(f"{self.name}: the metadata key '{key}' is not an array")
        return ref

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise FileFormatError(f"{self.name}: there is no tensor '{name}'")
        return self.tensors[name]


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
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would wait for its other end
            raise FileFormatError(f"{path}: is a pipe or a device, {_EXPECTED}")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FileFormatError(f"{path}: the file is empty; download or write it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file, {_EXPECTED}", path) from None
    except IsADirectoryError:
        raise FileFormatError(f"{path}: is a directory, {_EXPECTED}") from None
    except (OSError, ValueError) as error:
        if path.is_dir():  # Windows reports a directory as "permission denied"
            raise FileFormatError(f"{path}: is a directory, {_EXPECTED}") from None
        raise FileFormatError(f"{path}: cannot be read: {reason(error)}") from error
