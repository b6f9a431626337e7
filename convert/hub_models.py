"""GGUF files of a repository, fetched whole: which model a pattern means, and all of its parts."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.gguf.split import models_in

from .hub_client import Hub, Repository, cached, is_offline
from .hub_reference import HubReference
from .library import listing
from .snapshot import Snapshot, files_below, open_directory


class RemoteModel:
    """A GGUF model of a repository, at one commit; nothing is fetched yet.

    reference  what it was asked for by; its path, if there is one, is that of a directory to look
               in, or of the file itself
    commit     the commit's hash
    names      its files in the repository, one or, if it is split, all parts in order

    Raises InputError if the pattern does not mean exactly one model, ConvertError if the hub cannot
    be asked.
    """

    def __init__(
        self,
        reference: HubReference,
        pattern: str,
        *,
        hub: Hub = Hub(),  # noqa: B008 - frozen
    ) -> None:
        self.reference = reference
        self._repo: Repository | None = None
        if is_offline(hub):
            self._snapshot, _ = open_directory(cached(replace(reference, path=""), hub))
            there: Iterable[str] = files_below(self._snapshot)
        else:
            self._repo = Repository(reference, hub)
            self._snapshot = self._repo.snapshot
            there = self._repo.files
        if reference.path and reference.path != pattern:
            there = [name for name in there if name.startswith(f"{reference.path}/")]
        self.names = choose_model(there, pattern, reference.text)
        self.commit = self._snapshot.revision

    def sha256(self, name: str) -> str | None:
        """What the hub says that a file's SHA-256 is, where it says so."""
        return self._repo.sha256.get(name) if self._repo else None

    def fetch(self) -> list[Path]:
        """The local copies of its files, downloaded if they are not in the cache.

        Raises ConvertError if that fails.
        """
        if self._repo is not None:
            for name in self.names:
                self._repo.fetch(name)
            self._repo.remember()
        return [_local(self._snapshot, name) for name in self.names]


def choose_model(names: Iterable[str], pattern: str, where: str) -> list[str]:
    """The files of the one model among `names` that a name or a glob pattern means. Case does not
    count in a pattern; `*` stands for directories too.

    Raises InputError, with what there is, unless it is exactly one whose parts are all there.
    """
    there = set(names)
    models = models_in(there)
    if not models:
        raise InputError(
            f"{where}: holds no GGUF files, expected '{pattern}'; it holds "
            f"{listing(sorted(there)) or 'nothing'}"
        )
    found = [parts for parts in models if pattern in parts]
    found = found or [parts for parts in models if _matches(parts, pattern)]
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


def _matches(parts: Sequence[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(part.lower(), pattern.lower()) for part in parts)


def _listing(models: Sequence[Sequence[str]]) -> str:
    return listing(
        parts[0] if len(parts) == 1 else f"{parts[0]} ({len(parts)} parts)" for parts in models
    )


def _local(snapshot: Snapshot, name: str) -> Path:
    found = snapshot.file(name)
    if found is None:
        raise FileFormatError(f"{snapshot.root / name}: there is no such file any more; try again")
    return found
