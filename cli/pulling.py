"""From the hub into the store: an adapter, converted for a base, or a GGUF as it is.

What a person sees of it is pull.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alora_gguf.convert import Pick, convert_adapter
from alora_gguf.convert.find import find_source
from alora_gguf.convert.hub.fetch import RemoteModel
from alora_gguf.convert.hub.reference import HubReference, is_reference

from alora_gguf import inspect_gguf
from alora_gguf.errors import ConvertError, FileFormatError, InputError
from alora_gguf.gguf.base import stem_of, vocabulary_sha256
from alora_gguf.gguf.header import GGUFHeader, read_header
from alora_gguf.store.entry import Description, StoreEntry, name_from
from alora_gguf.store.store import Store, StoreAddition, taken

ProgressCall = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """Where what is pulled is to go: in `store` under `name`, by default one that is made from the
    adapter's or file's own; `replace` says whether another entry of that name may go.
    """

    store: Store
    name: str | None = None
    replace: bool = False


@dataclass(frozen=True)
class AdapterOptions:
    """Which adapter of a repository, and how it is converted; as convert_adapter() has them.

    base  a path, the name of a stored base, or "hf://owner/repo[@revision][/file.gguf]"
    """

    pick: Pick
    base: str
    outtype: str = "f16"
    invocation: str | None = None


@dataclass(frozen=True)
class Pulled:
    """What pulling did: `changed` is false if the store had the very same files already."""

    entry: StoreEntry
    path: Path
    changed: bool
    warnings: tuple[str, ...] = ()


def pull_adapter(
    reference: HubReference,
    options: AdapterOptions,
    place: Place,
    progress: ProgressCall | None = None,
) -> Pulled:
    """Fetches an adapter, converts it for a base and stores it.

    Raises what Store and convert_adapter() do.
    """
    store = place.store
    base, base_name = _base(options.base, store)
    found = find_source(reference.text, options.pick)
    name = name_from(found.name) if place.name is None else place.name
    with store.adding(name, replace=place.replace) as addition:
        out = addition.folder / f"{name}.gguf"
        try:
            report = convert_adapter(
                found.directory,
                base,
                out,
                pick=options.pick,
                outtype=options.outtype,
                invocation=options.invocation,
                progress=progress,
            )
        except ConvertError as error:
            if isinstance(error.__cause__, OSError) and str(error).startswith(str(out)):
                raise store.refusal(error.__cause__) from error
            raise
        header = read_header(out.read_bytes(), name=str(out))
        about = Description(
            kind="adapter",
            technology=report.kind,
            architecture=report.architecture,
            repository=found.repo,
            commit=found.revision,
            sources=(found.path or "",),
            base=base_name,
            base_model=_base_model(header),
            vocabulary_sha256=_text(header, "alora.vocab.sha256"),
        )
        entry = addition.commit(about)
    return Pulled(entry, store.path(entry), addition.changed, report.warnings)


def pull_gguf(
    reference: HubReference,
    pattern: str,
    place: Place,
    progress: ProgressCall | None = None,
) -> Pulled:
    """Fetches a base, or an adapter that is a GGUF already, and stores it as it is.

    `pattern` is the file's name or a glob pattern that means exactly one, or one split model.
    Raises InputError if it does not, FileFormatError for files that are no base and no adapter or
    did not arrive as they were, and what Store does.
    """
    store = place.store
    model = RemoteModel(reference, pattern)
    own_name = stem_of(model.names[0]).rpartition("/")[2]
    name = name_from(own_name) if place.name is None else place.name
    there = _already_there(model, name, place)
    if there is not None:
        return Pulled(there, store.path(there), changed=False)
    paths = model.fetch()
    about, warnings = _describe(model, paths[0])
    with store.adding(name, replace=place.replace) as addition:
        for i, path in enumerate(paths, 1):
            part = f"-{i:05}-of-{len(paths):05}" if len(paths) > 1 else ""
            addition.put(path, f"{name}{part}.gguf")
        _verify(model, paths, addition, progress)
        entry = addition.commit(about)
    return Pulled(entry, store.path(entry), addition.changed, warnings)


def _base(text: str, store: Store) -> tuple[str | Path, str]:
    """What the converter takes for the base, and what an entry says that it was."""
    if is_reference(text):
        return text, text
    if Store.is_path(text):
        return Path(text), Path(text).name
    entry = store.get(text, "base")
    return store.path(entry), entry.name


def _base_model(header: GGUFHeader) -> str | None:
    owner = _text(header, "general.base_model.0.organization")
    name = _text(header, "general.base_model.0.name")
    return f"{owner}/{name}" if owner and name else None


def _text(header: GGUFHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) and value else None


def _already_there(model: RemoteModel, name: str, place: Place) -> StoreEntry | None:
    """The entry that has the very files; told, if the hub lists hashes, before any is fetched.

    Raises InputError if the name stands for others.
    """
    old = None if place.replace else place.store.find(name)
    expected = [model.sha256(file) for file in model.names]
    if old is None or None in expected:
        return None
    try:
        place.store.path(old)
    except FileFormatError:  # it lost some: they are fetched again
        return None
    if expected != [file.sha256 for file in old.files]:
        raise taken(old)
    return old


def _describe(model: RemoteModel, path: Path) -> tuple[Description, tuple[str, ...]]:
    """What a fetched file is, and warnings; of a split model it is the first part."""
    summary = inspect_gguf(path)
    where = f"{model.reference.text}: '{model.names[0]}'"
    if summary.kind in ("alora", "lora"):
        if summary.problems:
            raise FileFormatError(
                f"{where}: is a malformed adapter: {summary.problems[0]}; choose another --file"
            )
    elif summary.kind != "model":
        raise InputError(
            f"{where}: is a GGUF of the kind '{summary.kind}', expected a base model or an "
            "adapter; choose another --file"
        )
    is_base = summary.kind == "model"
    header = read_header(path)
    return Description(
        kind="base" if is_base else "adapter",
        technology=None if is_base else summary.kind,
        architecture=summary.architecture,
        repository=model.reference.repo,
        commit=model.commit,
        sources=tuple(model.names),
        base_model=None if is_base else _base_model(header),
        vocabulary_sha256=(
            vocabulary_sha256(header) if is_base else _text(header, "alora.vocab.sha256")
        ),
    ), summary.problems


def _verify(
    model: RemoteModel,
    paths: Sequence[Path],
    addition: StoreAddition,
    progress: ProgressCall | None,
) -> None:
    """Raises FileFormatError for a file that is not what the hub says it sent."""
    files = addition.files(progress)
    for name, path, file in zip(model.names, paths, files, strict=True):
        expected = model.sha256(name)
        if expected not in (None, file.sha256):
            raise FileFormatError(
                f"{model.reference.text}: '{name}' arrived with the SHA-256 {file.sha256}, but the "
                f"hub says {expected}; remove {path.resolve()} and pull again"
            )
