"""The bytes of a saved session's file: a safetensors file, believed only if it is intact.

Knows nothing of what the header says; session_file.py does. The file holds three tensors, `tokens`
(I32), `logits` (F32) and `state` (U8, as llama.cpp gave it), and as metadata our `format`, the
header as JSON and a `sha256` of it and them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from alora_gguf.errors import InputError, SavedSessionError
from alora_gguf.files import describe_foreign, open_file, write_whole

FORMAT: Final = "alora-gguf saved session 2"
_FORMAT_1: Final = b"ALORASES"  # what files of version 1 began with
_TENSORS: Final = (("tokens", "I32", 4), ("logits", "F32", 4), ("state", "U8", 1))
_MAX_HEAD: Final = 100_000_000  # bytes, as in the safetensors library
_AGAIN: Final = "read the conversation again instead"
_COPY: Final = f"copy it again from where it came from, or {_AGAIN}"


Parts = Mapping[str, bytes]
"""The tensors by name, as they are stored, little endian."""


def write_parts(path: Path, header: Mapping[str, Any], parts: Parts) -> None:
    """Writes a file that appears complete or not at all; one that was there is replaced.

    A new file can be read by its owner only, for it holds a conversation. Raises SavedSessionError
    if the file system refuses, InputError for a header that JSON cannot hold or a place for no
    file.
    """
    session, tensors = canonical(header), [parts[name] for name, *_ in _TENSORS]
    head = _head(FORMAT, session, [len(part) for part in tensors], _checksum(session, tensors))
    if len(head) > _MAX_HEAD:
        raise InputError(
            f"notes cannot be saved: {len(head)} bytes, expected at most {_MAX_HEAD} with the rest"
        )
    with write_whole(path, private=True, what="saved session", error=SavedSessionError) as file:
        for part in (head, *tensors):
            file.write(part)


def read_parts(path: Path) -> tuple[dict[str, Any], Parts]:
    """Reads a file, verifying its length before anything is allocated and its checksum before
    anything is believed. Raises SavedSessionError, and MissingFileError.
    """
    try:
        with open_file(path, "a saved session", SavedSessionError) as file:
            return _read(file, path, os.fstat(file.fileno()).st_size)
    except MemoryError:
        raise SavedSessionError(
            f"{path}: there is not enough memory for its cells; free some, or {_AGAIN}"
        ) from None


def is_saved_session(path: Path) -> bool:
    """Whether a file begins as saved sessions do, of this version or the first. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(200)
    return start.startswith(_FORMAT_1) or b'"format":"alora-gguf saved session ' in start


def canonical(header: Mapping[str, Any]) -> str:
    """`header` as JSON, the one way it is written. Raises InputError for what JSON cannot hold."""
    try:
        # ASCII: even half a surrogate pair comes back as it was
        return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"notes cannot be saved: {error}; use what JSON can hold") from error


def _head(form: str, session: str, lengths: list[int], checksum: str) -> bytes:
    """All that comes before the tensors, in the one form in which it is written."""
    about = {"format": form, "session": session, "sha256": checksum}
    table: dict[str, Any] = {"__metadata__": about}
    end = 0
    for (name, kind, size), length in zip(_TENSORS, lengths, strict=True):
        begin, end = end, end + length
        table[name] = {"dtype": kind, "shape": [length // size], "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _checksum(session: str, tensors: Sequence[bytes]) -> str:
    # sha256: processors compute it in hardware. Measured here on 256 MB: 1112 MB/s, blake2b
    # 923 MB/s, blake2s 570 MB/s
    digest = hashlib.sha256(struct.pack("<3Q", *map(len, tensors)))
    digest.update(session.encode())
    for part in tensors:
        digest.update(part)
    return digest.hexdigest()


def _read(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, Any], Parts]:
    head = _read_head(file, path, size)
    try:
        table = json.loads(head[8:])
        about = table["__metadata__"]
        form, session, checksum = about["format"], about["session"], about["sha256"]
        lengths = [table[name]["shape"][0] * width for name, _, width in _TENSORS]
        fits = all(type(n) is int and n >= 0 for n in lengths)
        same = fits and _head(form, session, lengths, checksum) == head
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _foreign(path, head) from error
    _check_format(form, path)
    if not same:
        raise SavedSessionError(
            f"{path}: is damaged: its head is not what this format writes; {_COPY}"
        )
    total = len(head) + sum(lengths)
    if size < total:
        raise _truncated(path, size, total)
    if size > total:
        raise SavedSessionError(
            f"{path}: {size - total} bytes follow the end of the saved session, expected "
            f"{total} bytes in all and found {size}; something was appended to it: {_AGAIN}"
        )
    tensors = [file.read(length) for length in lengths]
    found = _checksum(session, tensors)
    if found != checksum:
        raise SavedSessionError(
            f"{path}: is damaged: its checksum is {found[:16]}, expected {checksum[:16]}; {_COPY}"
        )
    names = (name for name, *_ in _TENSORS)
    return _parse(session, path), dict(zip(names, tensors, strict=True))


def _read_head(file: BinaryIO, path: Path, size: int) -> bytes:
    """The length and text of safetensors' header. Raises SavedSessionError if there is none."""
    start = file.read(8)
    if not start:
        raise SavedSessionError(f"{path}: the file is empty, expected a saved session; {_AGAIN}")
    if start == _FORMAT_1:
        raise SavedSessionError(
            f"{path}: was saved by an older alora-gguf, in version 1 of the format, and this one "
            f"reads 2; {_AGAIN}"
        )
    n = int.from_bytes(start, "little")
    if len(start) < 8 or (n <= _MAX_HEAD and size < 8 + n):
        raise _truncated(path, size, 8 + n if len(start) == 8 else 8)
    head = start + (file.read(n) if n <= _MAX_HEAD else file.read(56))
    if n > _MAX_HEAD or head[8:9] != b"{":
        raise _foreign(path, head)
    return head


def _foreign(path: Path, head: bytes) -> SavedSessionError:
    what = describe_foreign(head[:64]) or f"it starts with {head[:8]!r}"
    return SavedSessionError(
        f"{path}: is not a saved session, or its head is damaged: {what}; check the path"
    )


def _check_format(form: object, path: Path) -> None:
    if form == FORMAT:
        return
    stem, _, version = str(form).rpartition(" ")
    if stem == FORMAT[:-2] and version.isdecimal():
        raise SavedSessionError(
            f"{path}: has version {version} of the format, this alora-gguf reads 2; upgrade "
            "alora-gguf, unless the file is damaged"
        )
    raise SavedSessionError(
        f"{path}: is not a saved session: its format is {form!r:.60}, expected {FORMAT!r}; "
        "check the path"
    )


def _parse(session: str, path: Path) -> dict[str, Any]:
    """The header; anything but canonical JSON was not written by write_parts()."""
    try:
        header = json.loads(session)
        if isinstance(header, dict) and canonical(header) == session:
            return header
        problem = "it was made by something else"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise SavedSessionError(
        f"{path}: its header is not what this format writes: {problem}; {_AGAIN}"
    )


def _truncated(path: Path, size: int, expected: int) -> SavedSessionError:
    return SavedSessionError(
        f"{path}: is truncated: {size} bytes, expected at least {expected}; {_COPY}"
    )
