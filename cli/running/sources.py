"""Which files the names on the command line stand for: base, adapters, contracts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from alora_gguf.demo import INTRINSICS, adapter_path, base_path
from alora_gguf.errors import InputError
from alora_gguf.store.store import Store, is_path


@dataclass(frozen=True)
class Sources:
    """The base's file, those of the adapters that are used, and the contracts that were given
    beside them.
    """

    base: Path
    adapters: Mapping[str, Path]
    contracts: Mapping[str, Path]


def find_sources(
    base: str | None,
    adapters: Sequence[str],
    contracts: Sequence[str],
    used: Iterable[str],
) -> Sources:
    """The files of the adapters named `used`. `base` is a path or a name of the store, `adapters`
    are NAME=PATH, paths, or names of the store, `contracts` are NAME=PATH. Without a base it is the
    demo's. An adapter that is not among those given is the demo's then, else the store's.

    Raises click.UsageError, and InputError, FileFormatError and StoreError for names of the store.
    """
    given = dict[str, str]()
    for text in adapters:
        name, path = _adapter(text)
        if name in given:
            raise click.UsageError(f"-a: two adapters are named '{name}'; write NAME=PATH")
        given[name] = path
    beside = {name: Path(path) for name, path in map(_contract, contracts)}
    names = list(dict.fromkeys(used))
    unused = sorted(set(beside) - set(names) - set(given))
    if unused:
        raise click.UsageError(f"--contract is for '{unused[0]}', which is not asked anything")
    store = Store()
    found = {
        name: _of_demo(name)
        if base is None and name not in given
        else store.resolve(given.get(name, name), "adapter")
        for name in names
    }
    return Sources(base_path() if base is None else store.resolve(base, "base"), found, beside)


def _of_demo(name: str) -> Path:
    if name not in INTRINSICS:
        raise InputError(
            f"the demo model has no adapter '{name}', only {', '.join(INTRINSICS)}; for another "
            "base give -m, and its adapters with -a"
        )
    return adapter_path(name)


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and is_path(name):  # a path with a sign in it
        name, equals, path = text, "", ""
    if not name or (equals and not path):
        raise click.UsageError(f"-a {text}: expected NAME=PATH, a path, or a name in the store")
    return (name, path) if equals else (Path(text).name.removesuffix(".gguf"), text)


def _contract(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise click.UsageError(f"--contract {text}: expected NAME=io.yaml")
    return name, path
