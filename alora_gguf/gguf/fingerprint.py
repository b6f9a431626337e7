"""Tells one base model from another by its content, in a fraction of a second for any size.

A KV cache computed by one base is nonsense to another, and llama.cpp would not notice.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from alora_gguf.errors import ModelError

from .base import BaseFile, BasePart, FileStamp

if TYPE_CHECKING:
    from hashlib import _Hash

_FORMAT: Final = b"alora-gguf base fingerprint 1\0"
_BLOCK: Final = 16 * 1024  # a disk takes as long for 4 KiB


@dataclass(frozen=True, slots=True)
class BaseFingerprint:
    """What a base is recognized by: equal for copies of a file wherever they lie.

    `digest` is the sha256, in hex, of each part's size, its whole header (every metadata entry,
    every tensor's name, shape, type and place), and of each tensor's first, middle and last 16 KiB,
    tensors of up to 48 KiB as a whole. `size` is that of all parts in bytes. `file`, the name it
    had, is for messages and does not count when two are compared.

    It detects another model, another quantization, another fine-tuning (any training step changes
    nearly every element of the tensors it trains), merged adapters, changed metadata, truncated and
    exchanged parts. It does not detect damage or edits that lie wholly between the sampled blocks
    of a tensor and keep the size: a full hash would, but takes seconds per GB and reads all of a
    file that is otherwise mapped lazily.
    """

    digest: str
    architecture: str
    size: int
    file: str = field(default="", compare=False)

    @classmethod
    def of(cls, base: BaseFile) -> BaseFingerprint:
        """Reads the blocks from the base's file or files. Raises ModelError if they cannot be
        read, or have changed since `base` was read.
        """
        digest = hashlib.sha256(_FORMAT)
        size = sum(_add_part(digest, part) for part in base.files)
        return cls(digest.hexdigest(), base.architecture, size, base.path.name)

    def __str__(self) -> str:
        return (
            f"{self.file or 'a base'} ({self.architecture}, {self.size} bytes, {self.digest[:12]})"
        )


def _add_part(digest: _Hash, part: BasePart) -> int:
    """Adds one file; returns its size."""
    path, size = part.path, part.stamp.size
    try:
        with path.open("rb") as file:
            _require_unchanged(part)
            head = min(part.data_offset, size)
            digest.update(struct.pack("<QQ", size, head))
            digest.update(_read(file, path, 0, head))
            for info in part.tensors:  # in the order of the header, which is hashed
                for begin, end in _samples(info.nbytes):
                    digest.update(_read(file, path, info.offset + begin, end - begin))
            _require_unchanged(part)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror or error}; it was there when the model was "
            "opened"
        ) from error
    return size


def _require_unchanged(part: BasePart) -> None:
    """A file that was replaced must not vouch for what was loaded."""
    if FileStamp.of(part.path) != part.stamp:
        raise ModelError(
            f"{part.path}: was changed or replaced since the model was opened, so it does not tell "
            "which base computed the cells; open the model again"
        )


def _samples(nbytes: int) -> list[tuple[int, int]]:
    """Which bytes of a tensor are hashed, as [begin, end)."""
    if nbytes <= 3 * _BLOCK:
        return [(0, nbytes)]
    middle = (nbytes - _BLOCK) // 2
    return [(begin, begin + _BLOCK) for begin in (0, middle, nbytes - _BLOCK)]


def _read(file: BinaryIO, path: Path, offset: int, n: int) -> bytes:
    file.seek(offset)
    data = file.read(n)
    if len(data) != n:
        raise ModelError(f"{path}: ends at {offset + len(data)} while it is read; it was cut short")
    return data
