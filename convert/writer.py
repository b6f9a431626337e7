"""Writes a GGUF file that is there whole or not at all, the same bytes for the same input."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from alora_gguf.errors import ConvertError, InputError
from alora_gguf.gguf_types import GGML_TYPES, VALUE_FORMATS, ValueType

if sys.platform != "win32":
    import fcntl

_ALIGNMENT: Final = 32  # GGUF's default
_MAX_TENSOR_NAME: Final = 63  # GGML_MAX_NAME less its terminating zero


@dataclass(frozen=True)
class LateString:
    """A string whose length is known before its text: `make` gives the text once the tensors are
    made, and must give `length` bytes of UTF-8. A checksum can be computed beside them that way.
    """

    length: int
    make: Callable[[], str]


Value = str | int | float | Sequence[int] | Sequence[str] | LateString
Progress = Callable[[int, int], None]


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
    progress: Progress | None = None,
) -> int:
    """Writes a GGUF (version 3) and returns its size in bytes.

    Tensors are made one at a time, so memory holds one. The file appears under its name complete
    and flushed; until then, and if anything fails, what was there stays. Values of type ARRAY
    become arrays of strings or of uint32, by what they hold. `progress` is called with the bytes
    done and the bytes in all after each tensor. Raises InputError if `path` exists and `overwrite`
    is false, ConvertError if a value does not fit its type or the file system refuses.
    """
    with replacing(path, overwrite=overwrite) as file:
        size, late = _emit(file.write, metadata, tensors, progress)
        for position, text in late:
            file.seek(position)
            file.write(text)
        return size


def measure_gguf(
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    progress: Progress | None = None,
) -> int:
    """The size that write_gguf() would return. Every tensor and late string is made, so whatever
    checks making them involves is done, but nothing is written.
    """
    size, _ = _emit(len, metadata, tensors, progress)
    return size


def _emit(
    write: Callable[[bytes], object],
    metadata: Sequence[tuple[str, ValueType, Value]],
    tensors: Sequence[OutTensor],
    progress: Progress | None,
) -> tuple[int, list[tuple[int, bytes]]]:
    """Passes the file's bytes to `write`; returns their count, and what belongs where in the end:
    the late strings, which are blanks so far.
    """
    head, places = _head(metadata, tensors)
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
    late = []
    for key, position, value in places:
        text = _utf8(value.make(), key)
        if len(text) != value.length:
            raise ConvertError(f"'{key}' has {len(text)} bytes, not {value.length}")
        late.append((position, text))
    return done, late


def _padding(position: int) -> int:
    return -position % _ALIGNMENT


def _head(
    metadata: Sequence[tuple[str, ValueType, Value]], tensors: Sequence[OutTensor]
) -> tuple[bytes, list[tuple[str, int, LateString]]]:
    """All that comes before the data, and the (key, position, value) of the late strings in it."""
    _check_names([key for key, _, _ in metadata], [tensor.name for tensor in tensors])
    late = []
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        head += _string(key, key) + struct.pack("<I", kind)
        if isinstance(value, LateString):
            head += struct.pack("<Q", value.length)
            late.append((key, len(head), value))
            head += b" " * value.length
        else:
            head += _value(key, kind, value)
    offset = 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head += _string(tensor.name, "a tensor's name") + dims
        head += struct.pack("<IQ", tensor.type, offset)
        offset += tensor.nbytes + _padding(tensor.nbytes)
    return bytes(head) + b"\0" * _padding(len(head)), late


def _check_names(keys: list[str], tensors: list[str]) -> None:
    """Raises ConvertError for what readers refuse: a name that comes twice or is too long."""
    for names in (keys, tensors):
        if len(set(names)) != len(names):
            ((twice, _),) = Counter(names).most_common(1)
            raise ConvertError(f"'{twice}' would stand in the file twice")
    for name in tensors:
        if len(name.encode()) > _MAX_TENSOR_NAME:
            raise ConvertError(
                f"the tensor name '{name}' has {len(name.encode())} bytes, more than llama.cpp's "
                f"{_MAX_TENSOR_NAME}"
            )


def _value(key: str, kind: ValueType, value: str | float | Sequence[int] | Sequence[str]) -> bytes:
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
    raw = _utf8(text, key)
    return struct.pack("<Q", len(raw)) + raw


def _utf8(text: str, key: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: from JSON, or from a file's name
        raise ConvertError(f"'{key}' = {text!r} is not valid Unicode text") from None


# ---- files that are there whole or not at all ----------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path` at the end of the block, in one step.

    Until then it is `.NAME.*.part` beside it. Where a writer was killed, that stays behind; the
    next one for the same name removes it. Raises what check_target() does, and ConvertError if the
    file system refuses.
    """
    real = check_target(path, overwrite=overwrite)
    _remove_abandoned(real)
    try:
        number, part = _create_part(real)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            _keep_mode(file, real)
            os.fsync(file.fileno())
            if sys.platform != "win32":  # while the lock says that the part has an owner
                _move(part, real, path, overwrite=overwrite)
        if sys.platform == "win32":  # an open file cannot be renamed there
            _move(part, real, path, overwrite=overwrite)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the first error says more
            part.unlink(missing_ok=True)


def check_target(path: Path, *, overwrite: bool) -> Path:
    """The file that writing to `path` makes: `path` itself or, as with cp, the file it links to.

    Raises InputError if a file cannot be written there, before any work is done, ConvertError if
    the file system will not tell.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _cannot_write(path, error) from error
    if mode is None and path.is_symlink():
        raise InputError(
            f"{path}: is a link to '{path.readlink()}', which does not exist; remove the link or "
            "name the file itself"
        )
    if mode is None and not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a directory, expected a file name for the GGUF")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(
            f"{path}: is a pipe or a device, expected a file name: the GGUF is written beside its "
            "target and renamed; --dry-run checks without writing"
        )
    if mode is not None and not overwrite:
        raise _exists(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists already; pass --force (overwrite=True) to replace it")


def _cannot_write(path: Path, error: OSError | ValueError) -> ConvertError:
    reason = error.strerror if isinstance(error, OSError) else None
    return ConvertError(f"{path}: cannot be written: {reason or error}")


def _part_stem(real: Path) -> str:
    """What the names of a file's parts begin with, short enough for the 255 bytes of a name."""
    stem = f".{real.name}"
    while len(os.fsencode(stem)) > 255 - len(".01234567.part"):
        stem = stem[:-1]
    return stem


def _create_part(real: Path) -> tuple[int, Path]:
    """A new file beside `real`, locked for as long as it is open, with the mode of any new file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        part = real.with_name(f"{_part_stem(real)}.{os.urandom(4).hex()}.part")
        try:
            number = os.open(part, flags, 0o666)
        except FileExistsError:
            continue
        if sys.platform == "win32":
            return number, part
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one
            fcntl.flock(number, fcntl.LOCK_EX)
        if os.fstat(number).st_nlink:
            return number, part
        os.close(number)  # taken for abandoned between creation and lock


def _remove_abandoned(real: Path) -> None:
    """Removes the parts of writers that were killed, and of nobody else.

    A living writer holds a lock on its part, which dies with it however it dies. On Windows the
    system itself refuses to delete a file that is open.
    """
    stem = _part_stem(real)
    with contextlib.suppress(OSError), os.scandir(real.parent) as entries:
        for entry in entries:
            middle = entry.name[len(stem) + 1 : -len(".part")]
            if entry.name != f"{stem}.{middle}.part" or len(middle) != 8:
                continue
            with contextlib.suppress(OSError):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(part: Path) -> None:
    if sys.platform == "win32":
        part.unlink()
        return
    number = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISREG(os.fstat(number).st_mode):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
    finally:
        os.close(number)


def _keep_mode(file: BinaryIO, real: Path) -> None:
    """Gives the file the permissions of the one that it replaces."""
    if sys.platform != "win32":
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(file.fileno(), stat.S_IMODE(real.stat().st_mode))


def _move(part: Path, real: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        part.replace(real)
    else:
        try:
            real.hardlink_to(part)  # unlike a rename, fails if the name was taken meanwhile
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without hard links
            check_target(path, overwrite=False)
            part.replace(real)
    if sys.platform != "win32":  # the name itself must reach the disk as well
        with contextlib.suppress(OSError):  # but the file is there, even if this is refused
            folder = os.open(real.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
