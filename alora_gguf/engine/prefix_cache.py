"""Whose cells a conversation can share: those of open sequences, and of closed ones that are kept.

Closed ones only ever use room that nobody needs: the least recently used gives way first.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from .provenance import CachedTokens, Spans

if TYPE_CHECKING:
    from .context import Engine

MIN_GAIN: Final = 16
"""Tokens: fewer are read as fast as their cells are found and shared."""


class OpenSequence(Protocol):
    """A sequence that is in use, as others see it."""

    seq: int
    cached: CachedTokens

    @property
    def closed(self) -> bool:
        """Whether it or its model was closed."""

    def borrow(self) -> AbstractContextManager[bool]:
        """Keeps it as it is meanwhile; false if it is closed or another thread is using it."""


@dataclass(slots=True, eq=False)
class CacheEntry:
    """The cells of a conversation that is over."""

    seq: int
    cached: CachedTokens
    last_used: float = field(default_factory=time.monotonic)
    users: int = 0  # calls that are about to share its cells


class PrefixCache:
    """Up to `capacity` closed ones, and all that are open, of one engine; for any thread."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._engine = engine
        self._capacity = capacity
        self._entries: list[CacheEntry] = []  # the least recently used first
        self._open: weakref.WeakSet[OpenSequence] = (
            weakref.WeakSet()
        )  # both guarded by the condition

    def register(self, sequence: OpenSequence) -> None:
        """Lets others share the cells of an open sequence."""
        with self._engine.condition:
            self._open.add(sequence)

    def open_sequences(self) -> list[OpenSequence]:
        """Those that are open."""
        with self._engine.condition:
            return [sequence for sequence in self._open if not sequence.closed]

    def give(self, seq: int, record: CachedTokens) -> None:
        """Takes a sequence over from a conversation that is closed: keeps its cells or drops it."""
        engine, n = self._engine, len(record)
        with engine.condition:
            # what begins another one is held by that one
            covered = any(
                n <= len(e.cached) and e.cached.common_prefix(record.tokens, record.spans) == n
                for e in self._entries
            )
            keep = self._capacity and n >= MIN_GAIN and not covered
            keep = keep and engine.cells.length(seq) == n
            dropped = [] if keep else [seq]
            if keep:
                for entry in [e for e in self._entries if not e.users]:
                    tokens, spans = entry.cached.tokens, entry.cached.spans
                    if record.common_prefix(tokens, spans) == len(tokens):
                        self._entries.remove(entry)
                        dropped.append(entry.seq)
                self._entries.append(CacheEntry(seq, record))
            while len(self._entries) > self._capacity and (oldest := self._oldest()) is not None:
                self._entries.remove(oldest)
                dropped.append(oldest.seq)
        for each in dropped:
            engine.drop(each)

    def evict(self) -> bool:
        """Drops the least recently used one; says whether there was one to drop."""
        with self._engine.condition:
            entry = self._oldest()
            if entry is None:
                return False
            self._entries.remove(entry)
        self._engine.drop(entry.seq)
        return True

    @contextmanager
    def longest(
        self, tokens: Sequence[int], spans: Spans
    ) -> Iterator[tuple[CacheEntry | None, int]]:
        """The one that has most of `tokens` as `spans` say in its cells, and how many; it stays
        meanwhile.
        """
        best, most = None, 0
        with self._engine.condition:
            for entry in self._entries:
                n = usable(self._engine, entry.cached, tokens, spans)
                if n > most:
                    best, most = entry, n
            if best is not None:
                best.users += 1
        try:
            yield best, most
        finally:
            if best is not None:
                with self._engine.condition:
                    best.users -= 1

    def used(self, entry: CacheEntry) -> None:
        """Notes that a conversation began with it."""
        with self._engine.condition:
            entry.last_used = time.monotonic()
            if entry in self._entries:
                self._entries.remove(entry)
                self._entries.append(entry)

    @property
    def entries(self) -> tuple[CacheEntry, ...]:
        """All of them, the least recently used first."""
        with self._engine.condition:
            return tuple(self._entries)

    def _oldest(self) -> CacheEntry | None:
        return next((entry for entry in self._entries if not entry.users), None)


def usable(engine: Engine, record: CachedTokens, tokens: Sequence[int], spans: Spans) -> int:
    """How many of `record`'s cells a conversation of `tokens` could share."""
    n = record.common_prefix(tokens, spans)
    if engine.rewinds:
        return n
    return (
        n if n == len(record) and n < len(tokens) else 0
    )  # all, and one to be read for its logits
