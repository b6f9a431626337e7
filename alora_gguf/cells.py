"""The books of the KV cache: which sequences exist, how long they are, and which cells they share.

No C in here: engine.py does what these books say, so lengths and free room cost no call and can be
named in error messages.
"""

from __future__ import annotations


class CellBooks:
    """Sequence ids 0..n_seqs-1 and, for each one in use, the number of its cell per position."""

    def __init__(self, n_seqs: int, n_cells: int) -> None:
        self.n_cells = n_cells
        self.n_seqs = n_seqs
        self._free = list(range(n_seqs - 1, -1, -1))
        self._cells: dict[int, list[int]] = {}
        self._next = 0

    def allocate(self) -> int | None:
        """An empty sequence's id, or None if all are in use."""
        if not self._free:
            return None
        seq = self._free[-1]
        self._cells[seq] = []
        self._free.pop()
        return seq

    def release(self, seq: int) -> None:
        """Takes a sequence out of the books; one that is not in them is ignored."""
        if self._cells.pop(seq, None) is not None:
            self._free.append(seq)

    @property
    def free_sequences(self) -> int:
        """How many more sequences can be allocated."""
        return len(self._free)

    def length(self, seq: int) -> int:
        """The number of cells of `seq`, which is also its next position."""
        return len(self._cells[seq])

    def extend(self, seq: int, n: int) -> None:
        """Gives `seq` another `n` cells of its own."""
        self._cells[seq].extend(range(self._next, self._next + n))
        self._next += n

    def truncate(self, seq: int, n: int) -> None:
        """Takes the cells from position `n` on away from `seq`."""
        del self._cells[seq][n:]

    def share(self, source: int, target: int, n: int) -> None:
        """`target`, which is empty, now has the first `n` cells of `source`."""
        self._cells[target] = self._cells[source][:n]

    def used(self) -> int:
        """Cells in use; shared ones count once."""
        return len(set().union(*self._cells.values()))

    def free(self) -> int:
        """Cells not in use."""
        return self.n_cells - self.used()

    def freed_by(self, seq: int, n: int) -> int:
        """How many cells truncating `seq` to `n` would free: those it shares with no other."""
        tail = set(self._cells[seq][n:])
        for other, cells in self._cells.items():
            if other != seq and tail:
                tail.difference_update(cells)
        return len(tail)
