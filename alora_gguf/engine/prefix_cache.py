"""Whose cells a conversation can share: those of open sequences, and of closed ones that are kept.

Closed ones only ever use room that nobody needs: the least recently used gives way first.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from .llama_context import LlamaContext
from .tokens import CachedTokens, Spans

MIN_GAIN: Final = 16
"""Tokens: fewer are prefilled as fast as their cells are found and shared."""


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
    users: int = 0  # calls that are about to share its cells


class PrefixCache:
    """Up to `capacity` closed ones, and all that are open, of one context; for any thread."""

    def __init__(self, context: LlamaContext, capacity: int) -> None:
        self._context, self._condition = context, context.condition
        self._capacity = capacity
        # both guarded by the condition; the least recently used entry first
        self._entries: list[CacheEntry] = []
        self._open: weakref.WeakSet[OpenSequence] = weakref.WeakSet()

    def register(self, sequence: OpenSequence) -> None:
        """Lets others share the cells of an open sequence."""
        with self._condition:
            self._open.add(sequence)

    def open_sequences(self) -> list[OpenSequence]:
        """Those that are open."""
        with self._condition:
            return [sequence for sequence in self._open if not sequence.closed]

    def give(self, seq: int, cached: CachedTokens) -> None:
        """Takes a sequence over from a conversation that is closed: keeps its cells or drops it."""
        n = len(cached)
        with self._condition:
            # what begins another one is held by that one
            covered = any(
                n <= len(e.cached) and e.cached.common_prefix(cached.tokens, cached.spans) == n
                for e in self._entries
            )
            keep = self._capacity and n >= MIN_GAIN and not covered
            keep = keep and self._context.cells.length(seq) == n
            dropped = [] if keep else [seq]
            if keep:
                for each in [e for e in self._entries if not e.users]:
                    tokens, spans = each.cached.tokens, each.cached.spans
                    if cached.common_prefix(tokens, spans) == len(tokens):
                        self._entries.remove(each)
                        dropped.append(each.seq)
                self._entries.append(CacheEntry(seq, cached))
            while len(self._entries) > self._capacity and (entry := self._least_recent()):
                self._entries.remove(entry)
                dropped.append(entry.seq)
        for other in dropped:
            self._context.drop(other)

    def evict(self) -> bool:
        """Drops the least recently used one; says whether there was one to drop."""
        with self._condition:
            entry = self._least_recent()
            if entry is None:
                return False
            self._entries.remove(entry)
        self._context.drop(entry.seq)
        return True

    def evictable(self) -> list[int]:
        """The sequences that evict() could drop; the caller holds the condition."""
        return [entry.seq for entry in self._entries if not entry.users]

    @contextmanager
    def longest(
        self, tokens: Sequence[int], spans: Spans
    ) -> Iterator[tuple[CacheEntry | None, int]]:
        """The one that has most of `tokens` as `spans` say in its cells, and how many; it stays
        meanwhile.
        """
        best, most = None, 0
        with self._condition:
            for entry in self._entries:
                n = usable(self._context, entry.cached, tokens, spans)
                if n > most:
                    best, most = entry, n
            if best is not None:
                best.users += 1
        try:
            yield best, most
        finally:
            if best is not None:
                with self._condition:
                    best.users -= 1

    def used(self, entry: CacheEntry) -> None:
        """Notes that a conversation began with it."""
        with self._condition:
            if entry in self._entries:
                self._entries.remove(entry)
                self._entries.append(entry)

    @property
    def entries(self) -> tuple[CacheEntry, ...]:
        """All of them, the least recently used first."""
        with self._condition:
            return tuple(self._entries)

    def _least_recent(self) -> CacheEntry | None:
        return next((entry for entry in self._entries if not entry.users), None)


def usable(context: LlamaContext, cached: CachedTokens, tokens: Sequence[int], spans: Spans) -> int:
    """How many of `cached`'s cells a conversation of `tokens` could share."""
    n = cached.common_prefix(tokens, spans)
    if context.rewinds:
        return n
    # all or nothing, and one token to be decoded for its logits
    return n if n == len(cached) and n < len(tokens) else 0
