"""Entries of the store in words, for the commands that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from .text import printable, size_text

if TYPE_CHECKING:
    from alora_gguf.store.entry import StoreEntry

_KINDS: Final = {"alora": "aLoRA", "lora": "LoRA"}
_HEAD: Final = ("NAME", "KIND", "SIZE", "BASE", "FROM")


def kind_of(entry: StoreEntry) -> str:
    """What an entry is: aLoRA, LoRA or base."""
    return _KINDS.get(entry.about.technology or "", entry.about.kind)


def table(entries: Sequence[StoreEntry]) -> Iterator[str]:
    """A line for each entry below a head; columns as wide as what is in them."""
    rows = [_HEAD]
    for entry in entries:
        commit = f"@{entry.about.commit[:12]}" if entry.about.commit else ""
        source = f"{entry.about.repository or '-'}{commit}"
        base = entry.about.base or "-"
        cells = (entry.name, kind_of(entry), size_text(entry.nbytes), base, source)
        rows.append(tuple(map(printable, cells)))  # type: ignore[arg-type]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for name, kind, size, base, source in rows:
        line = f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {size:>{widths[2]}}"
        yield f"{line}  {base:<{widths[3]}}  {source}".rstrip()
