"""Adapters and bases in a store, made of a few bytes."""

from __future__ import annotations

from typing import Any

from alora_gguf.store.entry import Description, Kind, StoreEntry
from alora_gguf.store.store import Store


def about(kind: Kind = "adapter", **changes: Any) -> Description:
    given: dict[str, Any] = {
        "kind": kind,
        "technology": "alora" if kind == "adapter" else None,
        "architecture": "llama",
        "repository": "o/r",
        "commit": "0" * 40,
        "sources": ("sure/alora",),
    }
    return Description(**given | changes)


def add(
    store: Store,
    name: str,
    data: bytes = b"weights",
    *,
    replace: bool = False,
    kind: Kind = "adapter",
) -> StoreEntry:
    with store.adding(name, replace=replace) as addition:
        (addition.folder / f"{name}.gguf").write_bytes(data)
        return addition.commit(about(kind))


def files_of(store: Store) -> list[str]:
    """Everything below the store, but for its lock."""
    found = [p.relative_to(store.home).as_posix() for p in store.home.rglob("*") if p.is_file()]
    return sorted(name for name in found if name != "lock")
