"""The cells of the KV cache: which sequences exist, which cells they have and share, which ones are
promised.

No C in here: the context does what is decided here, so lengths and free cells cost no call and can
be named in error messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

Range = tuple[int, int]
"""Numbers of cells, [begin, end)."""
NOBODY: Final = -1
"""The lender of a fork that borrowed of no promise. It lends nothing: it needs all of its own."""


class CellAllocator:
    """Sequence ids 0..n_seqs-1 and, for each one in use, the numbers of its cells by position.

    Cells are numbered as they are written and never again, so a sequence is a short list of ranges,
    and two sequences share a cell if both have its number. A promise keeps cells that are not
    written yet for one sequence, so that what was let in can finish. One that has a `holder`, a
    thread, is its sequence's for life, and that thread gives the sequence back soon. Forks borrow
    what is not free of it, unless it is a fork's own, which needs all of it.
    """

    def __init__(self, n_seqs: int, n_cells: int) -> None:
        self.n_cells = n_cells
        self.n_seqs = n_seqs
        self._free = list(range(n_seqs - 1, -1, -1))
        self._ranges: dict[int, list[Range]] = {}
        self._lengths: dict[int, int] = {}
        self._promises: dict[int, int] = {}
        self.holders: dict[int, int] = {}  # sequences that are given back soon: by which thread
        self._lenders: dict[int, tuple[int, int]] = {}  # by fork: whose promise, how much of it
        self.version = 0  # changes when something was given back
        self._next = 0
        self._used: int | None = 0  # None: to be counted again

    def allocate(self) -> int | None:
        """An empty sequence's id, or None if all are in use."""
        if not self._free:
            return None
        seq = self._free[-1]
        self._ranges[seq], self._lengths[seq] = [], 0
        self._free.pop()
        return seq

    def release(self, seq: int) -> None:
        """Frees a sequence; one that does not exist is ignored."""
        self._lengths.pop(seq, None)
        self.waive(seq)
        lender, n = self._lenders.pop(seq, (-1, 0))
        if self._ranges.pop(seq, None) is not None:
            self._used = None
            self.version += 1
            self._free.append(seq)
        if lender in self.holders:
            self._promises[lender] += n

    @property
    def sequences(self) -> tuple[int, ...]:
        """Those in use."""
        return tuple(sorted(self._lengths))

    @property
    def free_sequences(self) -> int:
        """How many more sequences can be allocated."""
        return len(self._free)

    def length(self, seq: int) -> int:
        """The number of cells of `seq`, which is also its next position."""
        return self._lengths[seq]

    def extend(self, seq: int, n: int) -> None:
        """Gives `seq` another `n` cells of its own, promised ones first."""
        ranges, begin = self._ranges[seq], self._next
        self._next += n
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], begin + n)
        else:
            ranges.append((begin, begin + n))
        self._lengths[seq] += n
        if self._used is not None:
            self._used += n
        if seq in self._promises:
            self._promises[seq] = max(0, self._promises[seq] - n)

    def truncate(self, seq: int, n: int) -> None:
        """Takes the cells from position `n` on away from `seq`; what a holder was promised grows
        by those that this frees.
        """
        self.version += 1
        if n < self._lengths[seq]:
            if seq in self.holders:
                self._promises[seq] += self.freed_by(seq, n)
            self._ranges[seq] = _head(self._ranges[seq], n)
            self._lengths[seq] = n
            self._used = None

    def share(self, source: int, target: int, n: int) -> None:
        """`target`, which is empty, now has the first `n` cells of `source`; it need not write so
        many that it was promised.
        """
        self._ranges[target] = _head(self._ranges[source], n)
        self._lengths[target] = n
        if target in self.holders:
            self._promises[target] = max(0, self._promises[target] - n)

    # Space ---------------------------------------------------------------------------------------

    def used(self) -> int:
        """Cells in use; shared ones count once."""
        if self._used is None:
            self._used = _count(r for ranges in self._ranges.values() for r in ranges)
        return self._used

    def promised(self) -> int:
        """Cells that are promised and not written yet."""
        return sum(self._promises.values())

    def promised_to(self, seq: int) -> int:
        """Cells that are promised to `seq` and not written yet."""
        return self._promises.get(seq, 0)

    def free(self) -> int:
        """Cells neither in use nor promised."""
        return self.n_cells - self.used() - self.promised()

    def promise(
        self, seq: int, n: int, *, holder: int | None = None, lender: int | None = None
    ) -> None:
        """Keeps `n` more cells for `seq`: until settle(), or until release() if it has a holder.
        What is not free of them is the promise's of a `lender` meanwhile, which may be NOBODY.
        """
        if lender is not None:
            lent = 0 if lender == NOBODY else max(0, n - self.free())
            if lent:
                self._promises[lender] -= lent
            self._lenders[seq] = lender, lent
        self._promises[seq] = self._promises.get(seq, 0) + n
        if holder is not None:
            self.holders[seq] = holder

    def lender(self, source: int) -> int | None:
        """Whose promise a fork of `source` can borrow of: its own, or that which it is a fork of
        itself; None if there is none that has a holder.
        """
        root = self._lenders.get(source, (source, 0))[0]
        return root if root in self.holders else None

    def waive(self, seq: int) -> None:
        """Ends a promise, also one that has a holder."""
        self.version += self._promises.pop(seq, None) is not None
        self.holders.pop(seq, None)

    def settle(self, seq: int) -> None:
        """Ends a promise that has no holder."""
        if seq not in self.holders:
            self._promises.pop(seq, None)

    def beyond_promise(self, seq: int, n: int) -> int:
        """How many of `n` more cells for `seq` are not promised to it."""
        return max(0, n - self.promised_to(seq))

    def freed_by(self, seq: int, n: int) -> int:
        """How many cells truncating `seq` to `n` would free: those it shares with no other."""
        left = {**self._ranges, seq: _head(self._ranges[seq], n)}
        return self.used() - _count(r for ranges in left.values() for r in ranges)

    def used_without(self, seqs: Collection[int]) -> int:
        """The cells in use once `seqs` were released."""
        left = (ranges for seq, ranges in self._ranges.items() if seq not in seqs)
        return _count(r for ranges in left for r in ranges)


def _head(ranges: list[Range], n: int) -> list[Range]:
    """The first `n` cells."""
    head = []
    for begin, end in ranges:
        if n <= 0:
            break
        head.append((begin, min(end, begin + n)))
        n -= end - begin
    return head


def _count(ranges: Iterable[Range]) -> int:
    """How many different cells the ranges name."""
    total, reached = 0, 0
    for begin, end in sorted(ranges):
        if end > reached:
            total += end - max(begin, reached)
            reached = end
    return total
