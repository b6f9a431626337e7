"""Files of any kind: written whole or not at all, and small ones read up to a limit.

A file, or a directory of files, is written as `.NAME.*.part` beside its target, flushed to the disk
and renamed. A lock on the part says that its writer lives, so the next writer of the name can
remove abandoned ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from .errors import AloraError, FileFormatError, InputError, MissingFileError

HOME_VARIABLE: Final = "ALORA_GGUF_HOME"


def data_home() -> Path:
    """Where this package keeps what it writes for itself: ALORA_GGUF_HOME or, without it, the
    system's directory for a user's data.
    """
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 - leaves what it cannot
    from platformdirs import user_data_path

    return user_data_path("alora-gguf", appauthor=False)


@contextlib.contextmanager
def write_whole(
    path: Path,
    *,
    overwrite: bool = True,
    private: bool = False,
    what: str = "file",
    error: type[AloraError] = FileFormatError,
) -> Iterator[BinaryIO]:
    """A file to write into that becomes `path` at the end of the block, in one step.

    What it replaces keeps its permissions. Where a writer was killed, its part stays behind; the
    next one for the same name removes it.

    overwrite  whether a file that is there may be replaced
    private    a new file can be read by its owner only
    what       what is written, such as "GGUF", for messages
    error      raised if the file system refuses

    Raises InputError as check_target() does.
    """
    real = check_target(path, overwrite=overwrite, what=what, error=error)
    remove_abandoned(real)
    try:
        number, part = _create_part(real, 0o600 if private else 0o666)
    except OSError as cause:
        raise _cannot_write(path, cause, error) from cause
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            _keep_mode(file, real)
            os.fsync(file.fileno())
            if sys.platform != "win32":  # while the lock says that the part has an owner
                _move(part, real, path, overwrite=overwrite, what=what)
        if sys.platform == "win32":  # an open file cannot be renamed there
            _move(part, real, path, overwrite=overwrite, what=what)
    except OSError as cause:
        if isinstance(cause, AloraError):  # of the block
            raise
        raise _cannot_write(path, cause, error) from cause
    finally:
        with contextlib.suppress(OSError):  # the first error says more
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def write_whole_directory(
    path: Path, *, error: type[AloraError] = FileFormatError
) -> Iterator[Path]:
    """A directory to put files into that becomes `path` at the end of the block, in one step.

    `path` must not exist or be an empty directory, whose permissions it keeps: check_directory().
    Raises InputError as that does, `error` if the file system refuses.
    """
    real = check_directory(path)
    remove_abandoned(real)
    with contextlib.ExitStack() as stack:
        try:
            part = _create_directory(real, stack)
            yield part
            _flush(part)
            if real.is_dir():
                part.chmod(real.stat().st_mode & 0o777)
                if sys.platform == "win32":  # which minds one that is there
                    real.rmdir()
            part.rename(real)
            sync_folder(real.parent)
        except OSError as cause:
            if isinstance(cause, AloraError):  # of the block
                raise
            raise _cannot_write(path, cause, error) from cause


def check_directory(path: Path) -> Path:
    """The directory that write_whole_directory() makes, whatever links lead to it. Raises
    InputError if it cannot be made there.
    """
    try:
        real = Path(os.path.realpath(path))
        exists = os.path.lexists(real)
        empty = real.is_dir() and not any(real.iterdir())
        here = Path.cwd()
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise InputError(
            f"{path}: cannot be looked at: {reason(cause)}; name another directory"
        ) from cause
    if empty and real == here:
        raise InputError(f"{path}: is where you are, and would be replaced; name another")
    if exists and not empty:
        raise InputError(f"{path}: exists already; name a directory that does not, or an empty one")
    if not real.parent.is_dir():
        raise InputError(f"{path}: there is no directory {real.parent}; create it first")
    return real


def _flush(folder: Path) -> None:
    """Writes all of a directory to the disk."""
    for here, _, names in os.walk(folder):
        for name in names:
            with (Path(here) / name).open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(here))


def check_target(
    path: Path,
    *,
    overwrite: bool = True,
    what: str = "file",
    instead: str = "",
    error: type[AloraError] = FileFormatError,
) -> Path:
    """The file that writing to `path` makes: `path` itself or, as with cp, the file it links to.

    `instead` is what to do in place of writing to a pipe. Raises InputError if a file cannot be
    written there, before any work is done, and `error` if the file system will not tell.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise _cannot_write(path, cause, error) from cause
    if mode is None and path.is_symlink():
        raise InputError(
            f"{path}: is a link to {os.path.realpath(path)}, which does not exist; remove the "
            "link, or name the file itself"
        )
    if mode is None and not path.parent.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(
            f"{path}: is a directory, expected a file name for the {what}; name a file in it"
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(
            f"{path}: is a pipe or a device, expected a file name: the {what} is written beside "
            f"its target and renamed{instead and f'; {instead}'}"
        )
    if mode is not None and not overwrite:
        raise _exists(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def open_file(
    path: Path, what: str, error: type[AloraError] = FileFormatError
) -> Iterator[BinaryIO]:
    """An ordinary file to read, which should be `what`, such as "a GGUF file".

    Raises MissingFileError if it is not there, `error` if it is something else or cannot be read.
    """
    expected = f"expected {what}; check the path"
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path}: is a directory, {expected}")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise error(f"{path}: is a pipe or a device, {expected}")
        with path.open("rb") as file:
            yield file
    except AloraError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{path}: there is no such file, {expected}", path) from None
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise error(f"{path}: cannot be read: {reason(cause)}") from cause


def read_small(
    path: Path,
    limit: int,
    *,
    what: str = "file",
    error: type[AloraError] = FileFormatError,
    way_out: str = "was another file saved under this name?",
) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    `what` it should be is said of a directory or a device, `way_out` of a larger file. Raises
    MissingFileError if it is not there, `error` if it is not an ordinary file, larger, or something
    else saved under its name, such as a Git LFS pointer.
    """
    with open_file(path, f"a {what}", error) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{path}: has more than {limit} bytes, too many for a {path.name}; {way_out}")
    known = describe_foreign(data[:64])
    if known:
        raise error(f"{path}: is {known}")
    return data


def read_json(path: Path, limit: int = 16 << 20) -> dict[str, Any]:
    """The fields of a JSON file that holds one object, unchecked.

    Raises FileFormatError as read_small() does, and if it holds anything else.
    """
    try:
        fields = json.loads(read_small(path, limit).decode())
    except (ValueError, RecursionError) as cause:
        raise FileFormatError(
            f"{path}: is not JSON: {cause}; download it again, or save it again"
        ) from None
    if not isinstance(fields, dict):
        raise FileFormatError(
            f"{path}: holds {type(fields).__name__}, expected a JSON object; download it again, or "
            "save it again"
        )
    return fields


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


def reason(error: OSError | ValueError) -> str:
    """Why the system refused, in its words."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk; a refusal is passed over: the files are there."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: exists already; pass overwrite=True to replace it")


def _cannot_write(path: Path, cause: OSError | ValueError, error: type[AloraError]) -> AloraError:
    return error(f"{path}: cannot be written: {reason(cause)}")


def _part_stem(real: Path) -> str:
    """What the names of a file's parts begin with, short enough for the 255 bytes of a name."""
    stem = f".{real.name}"
    while len(os.fsencode(stem)) > 255 - len(".01234567.part"):
        stem = stem[:-1]
    return stem


def _new_name(real: Path) -> Path:
    return real.with_name(f"{_part_stem(real)}.{os.urandom(4).hex()}.part")


def _create_part(real: Path, mode: int) -> tuple[int, Path]:
    """A new file beside `real`, owned for as long as it is open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        part = _new_name(real)
        try:
            number = os.open(part, flags, mode)
        except FileExistsError:
            continue
        own(number)
        if part.exists():
            return number, part
        os.close(number)  # taken for abandoned between creation and lock


def _create_directory(real: Path, owner: contextlib.ExitStack) -> Path:
    """A new directory beside `real`, the owner's, which removes it in the end."""
    while True:
        part = _new_name(real)
        try:
            part.mkdir()
        except FileExistsError:
            continue
        owner.callback(shutil.rmtree, part, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # taken for abandoned before the lock
            owner.enter_context(owned(part))
            if part.exists():
                return part


def remove_abandoned(real: Path) -> None:
    """Removes the parts of writers that were killed, and of nobody else."""
    stem = _part_stem(real)
    with contextlib.suppress(OSError), os.scandir(real.parent) as entries:
        for entry in entries:
            middle = entry.name[len(stem) + 1 : -len(".part")]
            named_so = entry.name == f"{stem}.{middle}.part" and len(middle) == 8
            is_folder = entry.is_dir(follow_symlinks=False)
            if named_so and (is_folder or entry.is_file(follow_symlinks=False)):
                part = Path(entry.path)
                with contextlib.suppress(OSError), abandoned(part) as free:
                    if free:
                        shutil.rmtree(part) if is_folder else part.unlink()


def _keep_mode(file: BinaryIO, real: Path) -> None:
    """Gives the file the permissions of the one that it replaces."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # there is none, or the file system keeps no modes
            os.fchmod(file.fileno(), real.stat().st_mode & 0o777)


def _move(part: Path, real: Path, path: Path, *, overwrite: bool, what: str) -> None:
    if overwrite:
        part.replace(real)
    else:
        try:
            real.hardlink_to(part)  # unlike a rename, fails if the name was taken meanwhile
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without hard links
            check_target(path, overwrite=False, what=what)
            part.replace(real)
    sync_folder(real.parent)


# Locks between processes that end with their process, however that ends.

if sys.platform == "win32":
    import msvcrt

    def own(number: int) -> None:
        """Nothing to do: the system refuses to delete a file that is open."""

    def _wait_for(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):  # after ten seconds it gives up
                msvcrt.locking(number, msvcrt.LK_LOCK, 1)
                return

    @contextlib.contextmanager
    def owned(_folder: Path) -> Iterator[None]:
        """Nothing to do: directories cannot be locked."""
        yield

    @contextlib.contextmanager
    def abandoned(path: Path) -> Iterator[bool]:
        """Whether nobody fills a file or directory any more, as far as a directory's age tells."""
        yield path.is_file() or time.time() - path.stat().st_mtime > 24 * 3600

else:
    import fcntl

    def own(number: int) -> None:
        """Says that this process fills an open file or directory, until it closes it or ends."""
        with contextlib.suppress(OSError):  # without locks, nobody can think it abandoned either
            fcntl.flock(number, fcntl.LOCK_EX)

    _wait_for = own

    @contextlib.contextmanager
    def owned(folder: Path) -> Iterator[None]:
        """Says that this process fills a directory, to the end of the block or of the process."""
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            own(number)
            yield
        finally:
            os.close(number)

    @contextlib.contextmanager
    def abandoned(path: Path) -> Iterator[bool]:
        """Whether nobody fills a file or directory any more; nobody can to the end of the block."""
        flags = os.O_RDWR if path.is_file() else os.O_RDONLY
        number = os.open(path, flags | os.O_NOFOLLOW)
        free = False
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            yield free
        finally:
            os.close(number)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for the lock of that name, a file that is created; OSError if it cannot be."""
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(number)
        yield
    finally:
        os.close(number)
