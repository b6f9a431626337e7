"""The bytes of a saved session's file: written whole or not at all, read only if intact.

Knows nothing of what the header says; saved.py does. Layout (little endian):

    magic "ALORASES" | version u32 | header bytes u32 | tokens u64 | logits u64 | state bytes u64 |
    file bytes u64                                                          (the prologue, 48 bytes)
    header: JSON, UTF-8, sorted keys, no spaces
    tokens  x token id i32
    logits  x float32
    state: as llama.cpp gave it
    sha256 of every byte before it (32 bytes)

Magic and version keep their places in all versions to come, so that a newer file is called one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from alora_gguf.errors import InputError, SavedSessionError

MAGIC: Final = b"ALORASES"
VERSION: Final = 1
_PROLOGUE: Final = struct.Struct("<8sIIQQQQ")
_DIGEST_BYTES: Final = 32
_CHUNK: Final = 16 * 1024 * 1024  # one write() takes at most 2 GB on Linux
_AGAIN: Final = "read the conversation again instead"


@dataclass(frozen=True, slots=True)
class Sections:
    """A file's four sections; `tokens` and `logits` as they are stored."""

    header: Mapping[str, Any]
    tokens: bytes
    logits: bytes
    state: bytes


def write_sections(path: Path, sections: Sections) -> None:
    """Writes a file that appears complete or not at all; one that was there is replaced.

    The bytes go to `.NAME.*.part` beside it, to the disk, and are then renamed. What is replaced
    keeps its permissions; a new file can be read by its owner only, for it holds a conversation.
    Raises SavedSessionError if the file system refuses, InputError for a header JSON cannot hold.
    """
    header = canonical(sections.header)
    body = (header, sections.tokens, sections.logits, sections.state)
    prologue = _PROLOGUE.pack(
        MAGIC,
        VERSION,
        len(header),
        len(sections.tokens) // 4,
        len(sections.logits) // 4,
        len(sections.state),
        _PROLOGUE.size + sum(map(len, body)) + _DIGEST_BYTES,
    )
    try:
        real = Path(os.path.realpath(path))  # a link stays a link, as with cp
        mode = _mode_of(real, path)
        number, name = tempfile.mkstemp(".part", f".{real.name[:100]}.", real.parent)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _cannot_write(path, error) from error
    part = Path(name)
    try:
        with os.fdopen(number, "wb", buffering=0) as file:
            _write_all(file, (prologue, *body))
            if mode is not None and sys.platform != "win32":
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        part.replace(real)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, if all went well
            part.unlink()
    _sync_folder(real.parent)


def read_sections(path: Path) -> Sections:
    """Reads a file, verifying its length before anything is allocated and its checksum before
    anything is believed. Raises SavedSessionError.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for its other end
            what = "a directory" if path.is_dir() else "a pipe or a device"
            raise SavedSessionError(f"{path}: is {what}, expected a saved session; check the path")
        with path.open("rb") as file:
            return _read(file, path, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise SavedSessionError(
            f"{path}: there is no such file, expected a saved session; check the path"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SavedSessionError(f"{path}: cannot be read: {_reason(error)}") from error
    except MemoryError:
        raise SavedSessionError(
            f"{path}: there is not enough memory for its cells; free some, or {_AGAIN}"
        ) from None


def canonical(header: Mapping[str, Any]) -> bytes:
    """`header` as JSON, the one way it is written. Raises InputError for what JSON cannot hold."""
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"notes cannot be saved: {error}; use what JSON can hold") from error
    data = text.encode()  # ASCII: even half a surrogate pair comes back as it was
    if len(data) >= 2**32:
        raise InputError(f"notes cannot be saved: {len(data)} bytes, expected less than 4 GB")
    return data


def _write_all(file: BinaryIO | Any, parts: Iterable[bytes]) -> None:
    """Writes the parts and, last, their checksum, without copies of the large ones."""
    # sha256: processors compute it in hardware. Measured here on 256 MB: 1112 MB/s, blake2b
    # 923 MB/s, blake2s 570 MB/s
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        _write(file, part)
    _write(file, digest.digest())


def _write(file: Any, data: bytes) -> None:
    view = memoryview(data)
    at = 0
    while at < len(view):
        at += file.write(view[at : at + _CHUNK])


def _mode_of(real: Path, path: Path) -> int | None:
    """The permissions of the file to be replaced, None if there is none."""
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        if not real.parent.is_dir():
            raise SavedSessionError(
                f"{path}: its directory does not exist; create it first"
            ) from None
        return None
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise SavedSessionError(f"{path}: is {what}, expected the name of a file to write")
    return mode & 0o777


def _sync_folder(folder: Path) -> None:
    """The name itself must reach the disk as well; but the file is there, even if that fails."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _read(file: BinaryIO, path: Path, size: int) -> Sections:
    prologue = file.read(_PROLOGUE.size)
    _check_start(prologue, path)
    if len(prologue) < _PROLOGUE.size:
        raise _truncated(path, size, f"at least {_PROLOGUE.size + _DIGEST_BYTES}")
    _, _, n_header, n_tokens, n_logits, n_state, total = _PROLOGUE.unpack(prologue)
    lengths = (n_header, 4 * n_tokens, 4 * n_logits, n_state)
    if _PROLOGUE.size + sum(lengths) + _DIGEST_BYTES != total:
        raise SavedSessionError(
            f"{path}: is damaged: its parts ({n_header} bytes of header, {n_tokens} tokens, "
            f"{n_logits} logits, {n_state} bytes of cells) do not add up to the {total} bytes it "
            f"says it has; {_AGAIN}"
        )
    if size < total:
        raise _truncated(path, size, str(total))
    if size > total:
        raise SavedSessionError(
            f"{path}: {size - total} bytes follow the end of the saved session, expected "
            f"{total} bytes in all and found {size}; something was appended to it: {_AGAIN}"
        )
    digest = hashlib.sha256(prologue)
    parts = []
    for length in (*lengths, _DIGEST_BYTES):
        part = file.read(length)
        if len(part) != length:  # cut short while we read
            raise _truncated(path, file.tell(), str(total))
        parts.append(part)
    for part in parts[:-1]:
        digest.update(part)
    if digest.digest() != parts[-1]:
        raise SavedSessionError(
            f"{path}: is damaged: its checksum is {digest.hexdigest()[:16]}, expected "
            f"{parts[-1].hex()[:16]}; copy it again from where it came from, or {_AGAIN}"
        )
    return Sections(_parse(parts[0], path), parts[1], parts[2], parts[3])


def _check_start(start: bytes, path: Path) -> None:
    """Magic and version, which every version has in the same place."""
    if not start:
        raise SavedSessionError(f"{path}: the file is empty, expected a saved session; {_AGAIN}")
    if not start.startswith(MAGIC) and not MAGIC.startswith(start):
        raise SavedSessionError(
            f"{path}: is not a saved session: it starts with {start[:8]!r}, expected {MAGIC!r}; "
            "check the path"
        )
    if len(start) < 12:
        return
    (version,) = struct.unpack_from("<I", start, 8)
    if version != VERSION:
        way_out = "upgrade alora-gguf" if version > VERSION else _AGAIN
        raise SavedSessionError(
            f"{path}: has version {version} of the format, this alora-gguf reads {VERSION}; "
            f"{way_out}, unless the file is damaged"
        )


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    """The header; anything but canonical JSON was not written by write_sections()."""
    try:
        header = json.loads(raw)
        same = isinstance(header, dict) and canonical(header) == raw
    except (ValueError, RecursionError, InputError) as error:
        raise SavedSessionError(f"{path}: its header cannot be read: {error}; {_AGAIN}") from error
    if not same:
        raise SavedSessionError(
            f"{path}: its header is not what this format writes; it was made by something else: "
            f"{_AGAIN}"
        )
    return dict(header)


def _truncated(path: Path, size: int, expected: str) -> SavedSessionError:
    return SavedSessionError(
        f"{path}: is truncated: {size} bytes, expected {expected}; copy it again from where it "
        f"came from, or {_AGAIN}"
    )


def _cannot_write(path: Path, error: OSError | ValueError) -> SavedSessionError:
    return SavedSessionError(
        f"{path}: the session cannot be saved: {_reason(error)}; nothing there was changed"
    )


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
