"""A file of weights, opened once: read at any place, by any thread, and hashed."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import BinaryIO, Final, cast

from alora_gguf.errors import FileFormatError

_BLOCK: Final = 4 << 20  # few turns between the threads


class InputFile:
    """An open file and its size in bytes.

    It is read, not mapped: pages of a map count as resident memory, and a mapped file that shrinks
    meanwhile kills the process where a read returns less. Raises FileFormatError if it is missing,
    is no ordinary file, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # between seek and read: Windows cannot read at a place
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
                kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
                raise self.fail(f"is {kind}, expected a file of weights")
            self._file = path.open("rb", buffering=0)
            self.size = self._file.seek(0, 2)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise self._cannot_read(error) from error

    def close(self) -> None:
        """Closes it; nothing can be read any more. May be called again."""
        self._file.close()

    @property
    def handle(self) -> BinaryIO:
        """The open file, for libraries that read on their own, while no other thread reads."""
        return cast("BinaryIO", self._file)

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on, fewer at the end of the file.

        Raises FileFormatError if they cannot be read.
        """
        parts = []
        while count > 0:
            try:
                with self._lock:
                    self._file.seek(offset)
                    part = self._file.read(count)  # one system call, which may give less
            except OSError as error:
                raise self._cannot_read(error) from error
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

    def _cannot_read(self, error: OSError | ValueError) -> FileFormatError:
        reason = error.strerror if isinstance(error, OSError) else None
        return self.fail(f"cannot be read: {reason or error}")
