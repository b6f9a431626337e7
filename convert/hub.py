"""Adapters and bases on a hub, fetched with huggingface_hub: one adapter's files and no other's, of
a base its configuration and tokenizer or the beginning of its GGUF, and never its weights.

Everything comes from the commit that the revision meant at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alora_gguf.errors import ConvertError, FileFormatError, InputError
from alora_gguf.files import describe_foreign, read_json
from alora_gguf.gguf.header import GGUFHeader, read_header
from alora_gguf.gguf.parser import PartialHeaderError

from .hub_client import Hub, Repository, cached, is_offline
from .hub_reference import HubReference, is_reference, parse_reference
from .library import Wanted, adapter_paths, check_wanted, choose, listing
from .peft_config import FILE_NAME
from .snapshot import open_directory
from .source import (
    MAX_TEXT,
    Source,
    contracts,
    describe,
    find_in,
    no_adapter,
    pick_weights,
    readmes,
)

__all__ = ["Hub", "HubReference", "fetch_adapter", "fetch_base", "is_reference", "parse_reference"]

_CONFIG: Final = "config.json"
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_MAX_CONFIG: Final = 16 << 20
_FIRST_BYTES: Final = 2 << 20  # a header has one to ten megabytes, nearly all of it vocabulary
_MAX_HEADER: Final = 256 << 20


def fetch_adapter(
    reference: str | Path | HubReference,
    wanted: Wanted,
    *,
    allow_pickle: bool = False,
    hub: Hub = Hub(),  # noqa: B008 - frozen
) -> Source:
    """Fetches one adapter of a repository into huggingface_hub's cache: its configuration, weights,
    io.yaml and the READMEs that may name its licence.

    Raises what find_source() does, and ConvertError for a hub that fails.
    """
    ref = reference if isinstance(reference, HubReference) else parse_reference(reference)
    if is_offline(hub):
        snapshot, _ = open_directory(cached(ref, hub))
        return find_in(snapshot, ref.path, wanted, ref.text, allow_pickle=allow_pickle)
    repo = Repository(ref, hub)
    path = _choose(repo, wanted)
    where = f"{ref.text}: {path or 'its root'}"
    names = repo.names(path)
    weights = pick_weights(names, where, allow_pickle=allow_pickle)
    prefix = f"{path}/" if path else ""
    # the small files first: if one of them will not do, the weights need not come
    config = _fetch_small(repo, prefix + FILE_NAME, _MAX_CONFIG)
    if wanted.given():
        check_wanted(path, read_json(config), wanted, where)
    for name in [name for name in contracts(path) if name in repo.files][:1]:
        _fetch_small(repo, name, MAX_TEXT)
    for name in readmes(path):
        if (repo.files.get(name) or MAX_TEXT + 1) <= MAX_TEXT:
            repo.fetch(name)
    repo.fetch(prefix + weights)
    repo.remember()
    return describe(repo.snapshot, path, wanted, allow_pickle=allow_pickle)


def fetch_base(
    reference: str | Path | HubReference,
    *,
    hub: Hub = Hub(),  # noqa: B008 - frozen
) -> GGUFHeader | Path:
    """What of a base an adapter needs to be converted for it.

    hf://owner/repo/file.gguf[@revision] gives the file's header, of which the data of the tensors
    is missing; any other reference, a local directory with config.json and what there is of
    tokenizer files.

    Raises InputError for a repository or directory without either, FileFormatError for a file that
    is no sound GGUF, ConvertError for a hub that fails.
    """
    ref = reference if isinstance(reference, HubReference) else parse_reference(reference)
    if is_offline(hub):
        return _cached_base(ref, cached(ref, hub))
    repo = Repository(ref, hub)
    if ref.path.endswith(".gguf"):
        header = _fetch_header(repo)
        repo.remember()
        return header
    prefix = f"{ref.path}/" if ref.path else ""
    names = repo.names(ref.path)
    _check_base(ref, names)
    _fetch_small(repo, prefix + _CONFIG, _MAX_CONFIG)
    for name in _TOKENIZER:
        if name in names:
            repo.fetch(prefix + name)
    repo.remember()
    return repo.snapshot.root.joinpath(*ref.path.split("/"))


def _choose(repo: Repository, wanted: Wanted) -> str:
    """The path of the one adapter that is meant."""
    ref = repo.reference
    prefix = f"{ref.path}/" if ref.path else ""
    if prefix + FILE_NAME in repo.files:
        return ref.path
    names = repo.names(ref.path)
    if not names:
        raise InputError(
            f"{ref.text}: {ref.repo} has no directory '{ref.path}'; it holds "
            f"{listing(repo.names(''))}"
        )
    paths = adapter_paths(name for name in repo.files if name.startswith(prefix))
    if not paths:
        raise no_adapter(ref.text, names)
    return choose(paths, wanted, ref.text)


def _fetch_small(repo: Repository, name: str, limit: int) -> Path:
    size = repo.files[name]
    if size is not None and size > limit:
        raise FileFormatError(
            f"{repo.reference.text}: '{name}' has {size} bytes, too many for such a file (at most "
            f"{limit}); was another one saved under this name?"
        )
    return repo.fetch(name)


def _check_base(ref: HubReference, names: list[str]) -> None:
    """Raises InputError, with what to write instead, where there is no config.json."""
    if _CONFIG in names:
        return
    start, end = f"hf://{ref.repo}/", f"@{ref.revision}" if ref.revision else ""
    start += f"{ref.path}/" if ref.path else ""
    ggufs = [f"{start}{name}{end}" for name in names if name.endswith(".gguf")]
    if ggufs:
        raise InputError(
            f"{ref.text}: holds GGUF files and no {_CONFIG}; name one of them: {listing(ggufs)}"
        )
    what = "is an adapter, not a base" if FILE_NAME in names else f"has no {_CONFIG}"
    raise InputError(
        f"{ref.text}: {what}; expected a model's repository or the name of a GGUF in it. It holds "
        f"{listing(names) or 'nothing'}"
    )


def _cached_base(ref: HubReference, root: Path) -> GGUFHeader | Path:
    snapshot, _ = open_directory(root)
    if ref.path.endswith(".gguf"):
        file = snapshot.file(ref.path)
        if file is not None:
            return read_header(file, name=ref.text)
    _check_base(ref, snapshot.names(ref.path))
    return root.joinpath(*ref.path.split("/"))


def _fetch_header(repo: Repository) -> GGUFHeader:
    """The header of a remote GGUF from as much of its beginning as it takes."""
    ref = repo.reference
    if ref.path not in repo.files:
        ggufs = [name for name in repo.files if name.endswith(".gguf")]
        there = f"its GGUF files are {listing(ggufs)}" if ggufs else "it has no GGUF files"
        raise InputError(f"{ref.text}: {ref.repo} has no file '{ref.path}'; {there}")
    local = repo.snapshot.file(ref.path)
    if local is not None:
        return read_header(local, name=ref.text)
    size = repo.files[ref.path]
    if size is None:
        raise ConvertError(f"{ref.text}: the hub does not say how large it is; download it first")
    data = b""
    needed = _FIRST_BYTES
    while True:
        stop = min(size, max(needed, 2 * len(data)))
        data += repo.read(ref.path, len(data), stop)
        if len(data) < stop:
            known = describe_foreign(data[:64])
            if known and not known.startswith("a GGUF"):
                raise FileFormatError(f"{ref.text}: is not a GGUF file but {known}")
            raise ConvertError(f"{ref.text}: did not arrive whole; try again")
        try:
            return read_header(data, name=ref.text, size=size)
        except PartialHeaderError as error:
            needed = error.needed
        if needed > _MAX_HEADER:
            raise FileFormatError(
                f"{ref.text}: claims a header of more than {needed - 1} bytes; it is damaged"
            )
