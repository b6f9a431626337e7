"""What the store notes of an adapter or a base: names that may be, and the JSON of an entry.

Where entries and files lie is store.py's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.gguf.base import vocabulary_sha256
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.inspection import inspect_gguf

Kind = Literal["adapter", "base"]

FORMAT: Final = 1
_MAX_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FOLDER: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}\.[0-9a-f]{8}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # of Windows, as files
_NAME_RULE: Final = (
    "up to 100 letters, digits, '.', '_' and '-', the first a letter or a digit, the end neither "
    "'.' nor '.gguf', and no device of Windows such as con"
)


@dataclass(frozen=True)
class StoredFile:
    """A file of an entry: its name without a directory, its bytes and their SHA-256."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """What is known of an adapter or a base beside its files.

    technology         "alora", "lora" or "vector", a steering one; None for a base
    architecture       general.architecture, such as "granite"; of a vector its base's
    repository         "owner/repo" on the hub, and `commit` the commit there
    sources            the adapter's directory ("" for the root) or the base's files in it
    base               the base an adapter was converted for, by its name in the store or its file's
    base_model         the model that the adapter's configuration names, such as "org/model"
    vocabulary_sha256  of the base's tokens, as the converter writes it into an adapter
    """

    kind: Kind
    technology: str | None
    architecture: str | None
    repository: str | None
    commit: str | None
    sources: tuple[str, ...]
    base: str | None = None
    base_model: str | None = None
    vocabulary_sha256: str | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        repository: str | None,
        commit: str | None,
        sources: Sequence[str],
        base: str | None = None,
    ) -> Description:
        """What an adapter's or a base's GGUF says of itself, with where it came from. Raises
        FileFormatError for a file that is not a GGUF.
        """
        summary, header = inspect_gguf(path), read_header(path)
        said = {key: value for key, value in header.metadata.items() if isinstance(value, str)}
        named = [said.get(f"general.base_model.0.{part}") for part in ("organization", "name")]
        is_base = summary.kind == "model"
        sha256 = vocabulary_sha256(header) if is_base else said.get("alora.vocab.sha256")
        return cls(
            kind="base" if is_base else "adapter",
            technology=None if is_base else summary.kind,
            architecture=summary.architecture,
            repository=repository,
            commit=commit,
            sources=tuple(sources),
            base=base,
            base_model=None if is_base or not all(named) else f"{named[0]}/{named[1]}",
            vocabulary_sha256=sha256 or None,
        )

    @property
    def origin(self) -> str:
        """In words: the repository and, in it, the adapter's directory or the first file."""
        more = f" and {len(self.sources) - 1} more" if len(self.sources) > 1 else ""
        parts = [self.repository or "-", *self.sources[:1]]
        return "/".join(part for part in parts if part) + more


@dataclass(frozen=True)
class StoreEntry:
    """An adapter or a base in the store.

    about   what it is and where it came from
    folder  the directory below the store's files/ that has its files
    files   all of them, the one to open first
    added   when, as in "2026-01-31T12:00:00Z"
    """

    name: str
    about: Description
    folder: str
    files: tuple[StoredFile, ...]
    added: str

    @property
    def nbytes(self) -> int:
        """The size of all its files."""
        return sum(file.nbytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The entry as its JSON has it."""
        plain = asdict(self)
        name, about = plain.pop("name"), plain.pop("about")
        return {"format": FORMAT, "name": name, **about, **plain}


def key_of(name: str) -> str:
    """What a name is filed under: case does not count, as on some file systems.

    Raises InputError for what is not a name.
    """
    if not _is_name(name):
        shown = name if name.isprintable() else ascii(name)[1:-1]
        raise InputError(f"'{shown}' is not a name for the store: expected {_NAME_RULE}")
    return name.lower()


def name_from(text: str) -> str:
    """The name nearest to a text that may be none, such as a directory's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:100].rstrip(".-")
    while name.lower().endswith((".gguf", ".")):
        name = name.rstrip(".")[: -len(".gguf")] if name.lower().endswith(".gguf") else name[:-1]
    return f"x-{name}"[:100] if _DEVICES.fullmatch(name.lower()) else name or "unnamed"


def read_entry(path: Path) -> StoreEntry:
    """The entry in a file.

    Raises FileNotFoundError if there is none, FileFormatError, with what to do, if it is damaged
    or of a later version, and OSError.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        value = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _damaged(path, "is not what the store wrote there")
    version = value.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FileFormatError(
            f"{path}: is of format {version}, expected {FORMAT}: a later alora-gguf wrote it; "
            "upgrade this one"
        )

    def field(key: str, accepts: Callable[[Any], bool]) -> Any:
        if not accepts(value.get(key)):
            raise _damaged(path, f"has no usable '{key}'")
        return value.get(key)

    if value.get("files") == []:
        raise _damaged(path, "has no files")
    optional = [each.name for each in fields(Description) if each.name not in ("kind", "sources")]
    about = Description(
        kind=field("kind", ("adapter", "base").__contains__),
        sources=tuple(field("sources", lambda v: isinstance(v, list) and all(map(_is_text, v)))),
        **{key: field(key, lambda v: v is None or (_is_text(v) and v)) for key in optional},
    )
    name = field("name", lambda v: _is_text(v) and _is_name(v) and v.lower() == path.stem)
    files = field("files", lambda v: isinstance(v, list) and all(map(_is_file, v)))
    return StoreEntry(
        name=name,
        about=about,
        folder=field("folder", lambda v: _is_text(v) and bool(_FOLDER.fullmatch(v))),
        files=tuple(StoredFile(f["name"], f["nbytes"], f["sha256"]) for f in files),
        added=field("added", lambda v: _is_text(v) and v),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_file(value: object) -> bool:
    match value:
        case {"name": str(name), "nbytes": int(nbytes), "sha256": str(sha256)}:
            return is_file_name(name) and nbytes >= 0 and bool(_DIGEST.fullmatch(sha256))
    return False


def is_file_name(name: str) -> bool:
    """Whether a name stays in its directory, on any system."""
    return (
        bool(name.rstrip(". "))
        and name.isprintable()
        and not name.startswith(".")
        and not re.search(r'[/\\:*?"<>|]', name)
        and not _DEVICES.fullmatch(name.lower())
    )


def _is_name(name: str) -> bool:
    key = name.lower()
    ends = (".", ".gguf")
    return bool(_NAME.fullmatch(name)) and not (key.endswith(ends) or _DEVICES.fullmatch(key))


def _damaged(path: Path, problem: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: {problem}, expected an entry of the store; remove it with `alora-gguf rm "
        f"{path.stem}` and pull again"
    )
