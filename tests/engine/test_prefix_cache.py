"""Which prefixes are kept, found and evicted, without llama.cpp."""

from __future__ import annotations

from typing import Any, cast

import pytest

from alora_gguf.engine.cells import CellAllocator
from alora_gguf.engine.prefix_cache import MIN_GAIN, PrefixCache
from alora_gguf.engine.tokens import BASE, CachedTokens, Provenance, Spans, spans_for
from tests.support.bare_context import BareContext

TEXT = list(range(100, 140))
ALL_BASE = ((0, BASE),)


class Shelf:
    """A context of 1000 cells and its cache."""

    def __init__(self, capacity: int = 3, *, rewinds: bool = True) -> None:
        self.context = BareContext(CellAllocator(20, 1000), rewinds=rewinds)
        self.cache = PrefixCache(cast("Any", self.context), capacity)

    def give(self, tokens: list[int], spans: Spans = ALL_BASE) -> int:
        """Closes a conversation of these tokens."""
        seq, cached = self.context.sequence(len(tokens)), CachedTokens()
        cached.extend(tokens, spans)
        self.cache.give(seq, cached)
        return seq

    def longest(self, tokens: list[int], spans: Spans = ALL_BASE) -> tuple[int | None, int]:
        with self.cache.longest(tokens, spans) as (entry, n):
            return (None if entry is None else entry.seq), n

    @property
    def kept(self) -> list[int]:
        return [entry.seq for entry in self.cache.entries]


def test_the_longest_common_prefix_is_found() -> None:
    shelf = Shelf()
    short, long = shelf.give([*TEXT[:20], 1]), shelf.give([*TEXT, 2])
    assert shelf.longest([*TEXT[:20], 1, 7]) == (short, 21)
    assert shelf.longest([*TEXT, 9]) == (long, 40)
    assert shelf.longest([9, *TEXT]) == (None, 0)


def test_adapted_cells_serve_the_same_adapter_at_the_same_scale() -> None:
    shelf = Shelf()
    adapted = spans_for(25, Provenance.of("hash", 2.0))
    seq = shelf.give(TEXT, adapted)
    assert shelf.longest(TEXT, adapted) == (seq, 40)
    assert shelf.longest(TEXT) == (seq, 25)
    assert shelf.longest(TEXT, spans_for(25, Provenance.of("hash", 1.0))) == (seq, 25)


def test_a_memory_that_cannot_rewind_is_shared_whole_or_not_at_all() -> None:
    shelf = Shelf(rewinds=False)
    seq = shelf.give(TEXT)
    assert shelf.longest(TEXT) == (None, 0)  # a token must be left to read
    assert shelf.longest([*TEXT, 1]) == (seq, 40)
    assert shelf.longest([*TEXT[:39], 1]) == (None, 0)


def test_what_begins_another_one_is_not_kept_twice() -> None:
    shelf = Shelf()
    beginning = shelf.give(TEXT[:30])
    whole = shelf.give(TEXT)
    assert shelf.kept == [whole]
    again = shelf.give(TEXT[:35])
    assert shelf.context.dropped == [beginning, again]


@pytest.mark.parametrize(("n", "kept"), [(MIN_GAIN - 1, False), (MIN_GAIN, True)])
def test_too_short_ones_are_not_kept(n: int, *, kept: bool) -> None:
    shelf = Shelf()
    seq = shelf.give(TEXT[:n])
    assert shelf.kept == ([seq] if kept else [])
    assert shelf.context.dropped == ([] if kept else [seq])


def test_no_capacity_keeps_nothing() -> None:
    shelf = Shelf(capacity=0)
    seq = shelf.give(TEXT)
    assert shelf.context.dropped == [seq]


def test_cells_that_are_not_known_are_not_kept() -> None:
    """An interrupt struck between allocator and sequence."""
    shelf = Shelf()
    seq, cached = shelf.context.sequence(41), CachedTokens()
    cached.extend(TEXT, ALL_BASE)
    shelf.cache.give(seq, cached)
    assert not shelf.kept


def test_the_least_recently_used_goes_first_and_never_one_in_use() -> None:
    shelf = Shelf(capacity=3)
    a, b, c = (shelf.give([i, *TEXT]) for i in range(3))
    shelf.cache.used(shelf.cache.entries[0])
    assert shelf.kept == [b, c, a]
    with shelf.cache.longest([1, *TEXT], ALL_BASE) as (entry, _):
        assert entry is not None
        assert entry.seq == b
        assert shelf.cache.evictable() == [c, a]
        assert shelf.cache.evict()
    assert shelf.kept == [b, a]
    d, e = shelf.give([3, *TEXT]), shelf.give([4, *TEXT])
    assert shelf.kept == [a, d, e]
    while shelf.cache.evict():
        pass
    assert sorted(shelf.context.dropped) == [a, b, c, d, e]
    assert shelf.context.cells.used() == 0


def test_only_open_sequences_are_shown() -> None:
    class Open:
        seq, cached, closed = 0, CachedTokens(), False

    shelf, one, other = Shelf(), Open(), Open()
    shelf.cache.register(cast("Any", one))
    shelf.cache.register(cast("Any", other))
    other.closed = True
    assert shelf.cache.open_sequences() == [one]
    del one
    assert not shelf.cache.open_sequences()
