"""Files that are there whole or not at all, whoever else writes them and whenever one is killed.

A file is written as `.NAME.*.part` beside its target, flushed to the disk and renamed. A lock on
the part says that its writer lives, so the next writer of the name can remove abandoned ones.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from alora_gguf.errors import ConvertError, InputError


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
            f"{path}: is a link to {os.path.realpath(path)}, which does not exist; remove the "
            "link, or name the file itself"
        )
    if mode is None and not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(
            f"{path}: is a directory, expected a file name for the GGUF; name a file in it"
        )
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
    """A new file beside `real`, owned for as long as it is open, with the mode of any new file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        part = real.with_name(f"{_part_stem(real)}.{os.urandom(4).hex()}.part")
        try:
            number = os.open(part, flags, 0o666)
        except FileExistsError:
            continue
        _own(number)
        if part.exists():
            return number, part
        os.close(number)  # taken for abandoned between creation and lock


def _remove_abandoned(real: Path) -> None:
    """Removes the parts of writers that were killed, and of nobody else."""
    stem = _part_stem(real)
    with contextlib.suppress(OSError), os.scandir(real.parent) as entries:
        for entry in entries:
            middle = entry.name[len(stem) + 1 : -len(".part")]
            named_so = entry.name == f"{stem}.{middle}.part" and len(middle) == 8
            if named_so and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unless_owned(Path(entry.path))


if sys.platform == "win32":

    def _own(number: int) -> None:
        """Nothing to do: the system refuses to delete a file that is open."""

    def _remove_unless_owned(part: Path) -> None:
        part.unlink()

else:
    import fcntl

    def _own(number: int) -> None:
        """Locks an open part; the lock ends with its process, however that ends."""
        with contextlib.suppress(OSError):  # without locks, nobody can think it abandoned either
            fcntl.flock(number, fcntl.LOCK_EX)

    def _remove_unless_owned(part: Path) -> None:
        number = os.open(part, os.O_RDWR)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
        finally:
            os.close(number)


def _keep_mode(file: BinaryIO, real: Path) -> None:
    """Gives the file the permissions of the one that it replaces."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # there is none, or the file system keeps no modes
            os.fchmod(file.fileno(), real.stat().st_mode & 0o777)


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
