"""A directory tree whose files may not lead out of it: a PEFT directory or a library of several.

Knows the layout of the hub's cache, where files are links: in models--OWNER--REPO/snapshots/COMMIT,
FILE -> ../../blobs/HASH, which may itself be a link to blobs/HH/HASH beside all the models.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alora_gguf.errors import ConvertError, FileFormatError, InputError

from .peft.config import FILE_NAME

_MAX_DEPTH: Final = 6  # a library has adapters three directories down
_MAX_ENTRIES: Final = 100_000
_REPO_FOLDER: Final = re.compile(r"models--([^/\\]+?)--([^/\\]+)|models--([^/\\]+)")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHARED_BLOB: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A tree, and the hub's repository that it is a copy of, if the hub's cache holds it.

    root      the directory, as messages name it
    real      the same without links
    repo      "owner/name"
    revision  the commit's hash
    """

    root: Path
    real: Path
    repo: str | None = None
    revision: str | None = None

    def file(self, name: str) -> Path | None:
        """The file of that name, with "/", if it is there."""
        path = self.root.joinpath(*name.split("/"))
        if not os.path.lexists(path):
            return None
        try:
            target = path.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise _cannot_read(path, error) from error
        if not self._holds(target):
            raise ConvertError(
                f"{path}: is a link to {target}, outside of {self.root}; a link could bring any "
                "file of this computer into the GGUF, so replace it by a copy if you trust it"
            )
        if not stat.S_ISREG(mode):
            raise FileFormatError(f"{path}: is a directory, a pipe or a device, expected a file")
        return path

    def require(self, name: str) -> Path:
        """The same for a file that was listed or fetched a moment ago: FileFormatError without."""
        path = self.file(name)
        if path is None:
            raise FileFormatError(f"{self.root / name}: there is no such file any more; try again")
        return path

    def names(self, path: str) -> list[str]:
        """What the directory at `path` holds, sorted; FileFormatError if it cannot be read."""
        directory = self.root.joinpath(*path.split("/"))
        try:
            return sorted(entry.name for entry in directory.iterdir())
        except OSError as error:
            raise _cannot_read(directory, error) from error

    def _holds(self, target: Path) -> bool:
        if target.is_relative_to(self.real):
            return True
        if self.repo is None:
            return False
        folder = self.real.parents[1]  # models--OWNER--REPO
        if target.is_relative_to(folder / "blobs"):
            return True
        shared = folder.parent / "blobs"
        return target.is_relative_to(shared) and bool(
            _SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix())
        )


def open_directory(directory: Path) -> tuple[Snapshot, str]:
    """The tree that a directory is or lies in, and its path there, "" for the tree itself.

    Only a directory in the hub's cache lies in a larger tree. Raises InputError if it is none.
    """
    try:
        real = directory.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _cannot_read(directory, error) from error
    names = real.parts
    for i in range(len(names) - 2, 1, -1):
        match = _REPO_FOLDER.fullmatch(names[i - 1])
        if match and names[i] == "snapshots" and COMMIT.fullmatch(names[i + 1]):
            root = Path(*names[: i + 2])
            inside = real.relative_to(root).as_posix()
            repo = f"{match[1]}/{match[2]}" if match[1] else match[3]
            return Snapshot(root, root, repo, names[i + 1]), "" if inside == "." else inside
    return Snapshot(directory, real), ""


def find_configs(snapshot: Snapshot, under: str) -> tuple[list[str], list[str]]:
    """The paths of all adapter_config.json below a directory of the tree, and what was not looked
    into: directories that cannot be read, and links to directories, which may lead anywhere.
    """
    top = snapshot.root.joinpath(*under.split("/"))
    found: list[Path] = []
    skipped: list[Path] = []

    def skip(error: OSError) -> None:
        if Path(error.filename) == top:
            raise _cannot_read(top, error) from error
        skipped.append(Path(error.filename))

    count = 0
    for folder, folders, files in os.walk(top, onerror=skip):
        here = Path(folder)
        count += len(folders) + len(files)
        if count > _MAX_ENTRIES:
            raise InputError(
                f"{snapshot.root}: holds more than {_MAX_ENTRIES} files and directories; give the "
                "adapter's own directory"
            )
        if FILE_NAME in (*folders, *files):
            found.append(here / FILE_NAME)
        skipped += [here / name for name in folders if (here / name).is_symlink()]
        if len(here.relative_to(top).parts) == _MAX_DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if name != FILE_NAME and not name.startswith(".")]

    def name(path: Path) -> str:
        return path.relative_to(snapshot.root).as_posix()

    return list(map(name, found)), sorted(map(name, skipped))


def _cannot_read(path: Path, error: OSError | RuntimeError) -> FileFormatError:
    reason = error.strerror if isinstance(error, OSError) else "its links run in a circle"
    return FileFormatError(f"{path}: cannot be read: {reason or error}")
