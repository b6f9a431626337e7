"""What a caller's words stand for: an adapter's files and a base, in a directory or on a hub."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

from alora_gguf.errors import FileFormatError, InputError, MissingFileError
from alora_gguf.files import reason
from alora_gguf.gguf.base import parts_of
from alora_gguf.gguf.glp import is_vector
from alora_gguf.gguf.header import GGUFHeader, read_header

from .adapter import WEIGHTS
from .base.gguf import GGUFBase
from .base.hf import HFBase
from .base.match import is_called
from .base.model import BaseModel
from .hub.reference import FORM, is_reference, parse_reference
from .library import Pick, listing
from .mlx.config import MLX_WEIGHTS
from .peft.config import FILE_NAME
from .snapshot import Snapshot, open_directory
from .source import Source, check_base, find_in


def find_source(
    source: str | Path,
    pick: Pick = Pick(),  # noqa: B008 - frozen
    base: str | Path | None = None,
) -> Source:
    """The one adapter that a directory or a hub reference stands for.

    source  directory with adapter_config.json, or with such directories below; or
            "hf://owner/repo[@revision][/path]"
    pick    which one, if there are several; without a technology an aLoRA
    base    what it shall be converted for: without a model in `pick` the one of the same name

    Raises what convert_adapter() does of an adapter's files.
    """
    is_base = None if base is None else _names_of(base)
    if is_reference(source):
        from .hub.fetch import fetch_adapter

        return fetch_adapter(parse_reference(source), pick, is_base)
    directory = _check_directory(Path(source))
    snapshot, inside = open_directory(directory)
    return find_in(snapshot, inside, pick, str(directory), is_base)


def _names_of(base: str | Path) -> Callable[[str], bool]:
    """Says whether a name is the base's, which is opened when that is asked."""
    opened = cache(lambda: open_base(base))
    return lambda name: is_called(name, opened())


def _mode(path: Path) -> int | None:
    """What there is, as stat() says; None for nothing. Raises FileFormatError."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise FileFormatError(f"{path}: cannot be read: {reason(error)}") from error


def _check_directory(directory: Path) -> Path:
    """The directory to look in, or an error that says what was given instead of one."""
    text = str(directory)
    if re.match(r"https?:/+(huggingface\.co|hf\.co)/", text):
        raise InputError(f"{text}: is a web address, expected {FORM}")
    mode = _mode(directory)
    if mode is None:
        raise MissingFileError(
            f"{directory}: there is no such directory; give an adapter's directory, or {FORM}",
            directory,
        )
    if directory.suffix.lower() == ".gguf" and not stat.S_ISDIR(mode):
        if _is_vector(directory):
            raise InputError(
                f"{directory}: is a steering vector in a GGUF, and needs no conversion; use it as "
                f"it is: -a NAME={directory.name}"
            )
        raise InputError(
            f"{directory}: is a GGUF, and needs no conversion; give the PEFT adapter's directory, "
            "and the model that it was trained on as the base (--base)"
        )
    if not stat.S_ISDIR(mode):
        own = (FILE_NAME, WEIGHTS, MLX_WEIGHTS)
        known = f" (here {directory.parent})" if directory.name in own else ""
        raise InputError(
            f"{directory}: is a file, expected the adapter's directory it lies in{known}; give that"
        )
    if directory.resolve().name.startswith("models--"):  # a repository in the hub's cache
        return _current(directory)
    return directory


def _is_vector(file: Path) -> bool:
    try:
        return is_vector(read_header(file))
    except FileFormatError:
        return False


def _current(folder: Path) -> Path:
    """The snapshot of a repository's folder in the hub's cache that is main, or the only one."""
    from .hub.client import cached_snapshot

    repo = folder.resolve().name.removeprefix("models--").replace("--", "/")
    found = cached_snapshot(repo, None, folder.resolve().parent)
    if found is not None:
        return folder / "snapshots" / found.name
    names = sorted(path.name for path in folder.glob("snapshots/*"))
    if len(names) > 1:
        raise InputError(
            f"{folder}: holds several snapshots and does not say which is current; give the "
            f"directory of one: {listing(f'snapshots/{name}' for name in names)}"
        )
    return folder / "snapshots" / names[0] if names else folder


def open_base(base: str | Path) -> BaseModel:
    """The base model, of which no weights are read.

    base  a GGUF, of which only the header is read; a directory with config.json; or
          "hf://owner/repo[@revision][/path]", where the path may be that of a GGUF
    """
    if is_reference(base):
        from .hub.fetch import fetch_base

        fetched = fetch_base(parse_reference(base))
        return GGUFBase(fetched) if isinstance(fetched, GGUFHeader) else HFBase(fetched, str(base))
    path = Path(base)
    mode = _mode(path)
    if mode is None:
        raise MissingFileError(
            f"{path}: there is no such file or directory; expected the base model: a GGUF, a "
            "directory with config.json, or hf://owner/repo",
            path,
        )
    if stat.S_ISDIR(mode):
        check_base(str(path), Snapshot(path, path).names(""))
        return HFBase(path)
    if path.suffix in (".json", ".safetensors", ".bin", ".pt", ".pth"):
        raise InputError(
            f"{path}: is one of a model's files, expected the base as a GGUF, or the directory "
            "that holds its config.json"
        )
    return GGUFBase(_read_parts(path))


def _read_parts(path: Path) -> GGUFHeader:
    """A GGUF's header, and of a split model's first part one with the tensors of all parts."""
    header = read_header(path)
    names = parts_of(path.name)
    if header.metadata.get("split.count") == len(names) and path.name == names[0]:
        for name in names[1:]:
            if (part := path.with_name(name)).exists():
                header.tensors.update(read_header(part).tensors)
    return header
