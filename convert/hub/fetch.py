"""What is fetched from a hub: one adapter's files and no other's, of a base its configuration and
tokenizer or the beginning of its GGUF, and GGUF models whole.

Everything comes from the commit that the revision meant at the start.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from alora_gguf.convert.adapter import WEIGHTS, weights_name
from alora_gguf.convert.library import (
    Layout,
    Pick,
    adapter_paths,
    check_wanted,
    choose,
    layout_of,
    listing,
)
from alora_gguf.convert.mlx.config import MLX_WEIGHTS
from alora_gguf.convert.peft.config import FILE_NAME
from alora_gguf.convert.source import (
    CONFIG,
    MAX_TEXT,
    Source,
    check_base,
    check_weights,
    contracts,
    describe,
    no_adapter,
    readmes,
)

from alora_gguf.errors import FileFormatError, HubError, InputError
from alora_gguf.files import describe_foreign
from alora_gguf.gguf.base import models_in, stem_of
from alora_gguf.gguf.header import GGUFHeader, read_header
from alora_gguf.gguf.parser import PartialHeaderError

from .client import Repository
from .reference import HubReference

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


@dataclass(frozen=True)
class Offer:
    """An adapter or a GGUF of a repository.

    path    its directory, "" for the root, or the GGUF, of a split one the first
    nbytes  what there is to download, nearly; None where the hub does not say
    layout  what a library's path says of an adapter: intrinsic, model, technology
    """

    kind: Literal["adapter", "gguf"]
    path: str
    nbytes: int | None
    layout: Layout | None = None


def offers(ref: HubReference) -> list[Offer]:
    """All that a repository, or the directory that the reference names, has to pull. Raises
    InputError if that is nothing.
    """
    repo = Repository(ref)
    inside = _inside(repo)
    found = [
        Offer("adapter", path, _weights_size(repo, path), layout_of(path))
        for path in adapter_paths(inside)
    ]
    for parts in models_in(inside):
        sizes = [repo.files.get(part) for part in parts]
        known = None if None in sizes else sum(size for size in sizes if size is not None)
        found.append(Offer("gguf", parts[0], known))
    if not found:
        raise no_adapter(ref.text, repo.names(ref.path))
    return found


def _weights_size(repo: Repository, path: str) -> int | None:
    """The bytes of an adapter's weights, as far as the hub says; who wrote them is not fetched."""
    sizes = (repo.files.get(f"{path}/{name}".lstrip("/")) for name in (WEIGHTS, MLX_WEIGHTS))
    return next((size for size in sizes if size is not None), None)


def _inside(repo: Repository) -> list[str]:
    """The files below the reference's path."""
    ref = repo.reference
    prefix = f"{ref.path}/" if ref.path else ""
    if not repo.names(ref.path):
        raise InputError(
            f"{ref.text}: {ref.repo} has no directory '{ref.path}'; it holds "
            f"{listing(repo.names(''))}"
        )
    return [name for name in repo.files if name.startswith(prefix)]


def fetch_adapter(
    ref: HubReference, wanted: Pick, is_base: Callable[[str], bool] | None = None
) -> Source:
    """Fetches one adapter of a repository, see choose(), into huggingface_hub's cache: its
    configuration, weights, io.yaml and the READMEs that may name its licence.
    """
    repo = Repository(ref)
    path = _choose(repo, wanted, is_base)
    where = f"{ref.text}: {path or 'its root'}"
    prefix = f"{path}/" if path else ""
    # the small files first: if one of them will not do, the weights need not come
    config = _fetch_small(repo, prefix + FILE_NAME, _MAX_CONFIG)
    weights = weights_name(config)
    check_weights(repo.names(path), where, weights)
    check_wanted(path, config, wanted, where)
    for name in [name for name in contracts(path) if name in repo.files][:1]:
        _fetch_small(repo, name, MAX_TEXT)
    for name in readmes(path):
        if (repo.files.get(name) or MAX_TEXT + 1) <= MAX_TEXT:
            repo.fetch(name)
    repo.fetch(prefix + weights)
    return describe(repo.snapshot, path, wanted)


def fetch_base(ref: HubReference) -> GGUFHeader | Path:
    """What of a base an adapter needs to be converted for it.

    hf://owner/repo[@revision][/file.gguf] gives the file's header, of which the data of the tensors
    is missing; any other reference, a local directory with config.json and what there is of
    tokenizer files.
    """
    repo = Repository(ref)
    if ref.path.endswith(".gguf"):
        return _fetch_header(repo)
    names = repo.names(ref.path)
    prefix = f"{ref.path}/" if ref.path else ""
    check_base(ref.text, names, ref.to(prefix))
    config = _fetch_small(repo, prefix + CONFIG, _MAX_CONFIG)
    for name in _TOKENIZER:
        if name in names:
            repo.fetch(prefix + name)
    return config.parent


def _choose(repo: Repository, wanted: Pick, is_base: Callable[[str], bool] | None) -> str:
    """The path of the one adapter that is meant."""
    ref = repo.reference
    if (f"{ref.path}/" if ref.path else "") + FILE_NAME in repo.files:
        return ref.path
    paths = adapter_paths(_inside(repo))
    if not paths:
        raise no_adapter(ref.text, repo.names(ref.path))
    return choose(paths, wanted, ref.text, is_base)


def _fetch_small(repo: Repository, name: str, limit: int) -> Path:
    size = repo.files[name]
    if size is not None and size > limit:
        raise FileFormatError(
            f"{repo.reference.text}: '{name}' has {size} bytes, too many for such a file (at most "
            f"{limit}); was another one saved under this name?"
        )
    return repo.fetch(name)


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
        raise HubError(f"{ref.text}: the hub does not say how large it is; download it first")
    data = b""
    needed = _FIRST_BYTES
    while True:
        stop = min(size, max(needed, 2 * len(data)))
        data += repo.read(ref.path, len(data), stop)
        if len(data) < stop:
            known = describe_foreign(data[:64])
            if known and not known.startswith("a GGUF"):
                raise FileFormatError(f"{ref.text}: is not a GGUF file: {known}")
            raise HubError(f"{ref.text}: did not arrive whole; try again")
        try:
            return read_header(data, name=ref.text, size=size)
        except PartialHeaderError as error:
            needed = error.needed
        if needed > _MAX_HEADER:
            raise FileFormatError(
                f"{ref.text}: claims a header of more than {needed - 1} bytes; it is damaged"
            )


class RemoteModel:
    """A GGUF model of a repository, at one commit; nothing is fetched yet.

    reference  what it was asked for by; its path, if there is one, is that of a directory to look
               in, or of the file itself
    commit     the commit's hash
    names      its files in the repository, one or, if it is split, all parts in order
    stem       their name, without directories, part and ending
    nbytes     their size, as far as the hub says

    Raises InputError if the pattern does not mean exactly one model, HubError if the hub cannot
    be asked.
    """

    def __init__(self, reference: HubReference, pattern: str) -> None:
        self.reference = reference
        self._repo = Repository(reference)
        there: Iterable[str] = self._repo.files
        if reference.path and reference.path != pattern:
            there = [name for name in there if name.startswith(f"{reference.path}/")]
        self.names = choose_model(there, pattern, reference.text)
        self.stem = stem_of(self.names[0]).rpartition("/")[2]
        self.commit = self._repo.snapshot.revision
        self.nbytes = sum(self._repo.files[name] or 0 for name in self.names)

    def sha256(self, name: str) -> str | None:
        """What the hub says that a file's SHA-256 is, where it says so."""
        return self._repo.sha256.get(name)

    def fetch(self) -> list[Path]:
        """The local copies of its files, downloaded if they are not in the cache.

        Raises HubError if that fails.
        """
        return [self._repo.fetch(name) for name in self.names]


def choose_model(names: Iterable[str], pattern: str, where: str) -> list[str]:
    """The files of the one model among `names` that a name or a glob pattern means. Case does not
    count in a pattern; `*` stands for directories too.
    """
    there = set(names)
    models = models_in(there)
    if not models:
        raise InputError(
            f"{where}: holds no GGUF files, expected '{pattern}'; it holds "
            f"{listing(sorted(there)) or 'nothing'}"
        )
    found = [parts for parts in models if pattern in parts]
    if not found:
        matches = re.compile(fnmatch.translate(pattern.lower())).match
        found = [parts for parts in models if any(matches(part.lower()) for part in parts)]
    if not found:
        raise InputError(
            f"{where}: none of its GGUF files is '{pattern}'; there are {_listing(models)}"
        )
    if len(found) > 1:
        raise InputError(
            f"{where}: '{pattern}' means {len(found)} of its GGUF files, expected one; choose with "
            f"a longer --file: {_listing(found)}"
        )
    missing = [part for part in found[0] if part not in there]
    if missing:
        raise InputError(
            f"{where}: of the {len(found[0])} parts of the model there is no {listing(missing)}; "
            "choose another one with --file"
        )
    return found[0]


def _listing(models: Sequence[Sequence[str]]) -> str:
    return listing(
        parts[0] if len(parts) == 1 else f"{parts[0]} ({len(parts)} parts)" for parts in models
    )
