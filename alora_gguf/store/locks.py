"""Locks between processes that end with their process, however that ends.

They keep the store's steps apart and say of a directory that somebody is still filling it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ABANDONED_AFTER: Final = 24 * 3600  # seconds, where directories cannot be locked


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for the lock of that name, a file that is created; OSError if it cannot be."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(number)
        yield
    finally:
        os.close(number)


if sys.platform == "win32":
    import msvcrt

    def _wait_for(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):  # after ten seconds it gives up
                msvcrt.locking(number, msvcrt.LK_LOCK, 1)
                return

    @contextlib.contextmanager
    def owned(_folder: Path) -> Iterator[None]:
        """Nothing to do: directories cannot be locked."""
        yield

    def is_abandoned(folder: Path) -> bool:
        """Whether a directory was left by a process that has ended, as far as its age tells."""
        return time.time() - folder.stat().st_mtime > _ABANDONED_AFTER

else:
    import fcntl

    def _wait_for(number: int) -> None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(number, fcntl.LOCK_EX)

    @contextlib.contextmanager
    def owned(folder: Path) -> Iterator[None]:
        """Says that this process fills a directory, to the end of the block or of the process."""
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # without locks, nobody thinks it abandoned either
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(number)

    def is_abandoned(folder: Path) -> bool:
        """Whether a directory was left by a process that has ended."""
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(number)
        return True
