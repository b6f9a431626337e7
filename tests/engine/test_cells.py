"""The allocator of cells, against sets of cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alora_gguf.engine.cells import CellAllocator


def test_shared_cells_count_once() -> None:
    cells = CellAllocator(3, 100)
    a = cells.allocate()
    b = cells.allocate()
    assert (a, b) == (0, 1)
    cells.extend(0, 10)
    cells.share(0, 1, 6)
    cells.extend(1, 2)
    assert (cells.length(0), cells.length(1)) == (10, 8)
    assert (cells.used(), cells.free()) == (12, 88)
    assert cells.freed_by(0, 4) == 4  # 6..9; 4 and 5 are shared
    assert cells.freed_by(1, 0) == 2
    cells.truncate(0, 0)
    assert cells.used() == 8
    cells.release(1)
    cells.release(1)
    assert cells.used() == 0
    assert cells.free_sequences == 2


def test_promised_cells_are_kept_until_they_are_written_or_settled() -> None:
    cells = CellAllocator(3, 100)
    call, fork = cells.allocate(), cells.allocate()
    assert call is not None
    assert fork is not None
    cells.promise(call, 30)
    assert (cells.free(), cells.beyond_promise(call, 40)) == (70, 10)
    cells.extend(call, 20)
    assert (cells.used(), cells.promised(), cells.free()) == (20, 10, 70)
    cells.settle(call)
    assert cells.free() == 80
    cells.promise(fork, 50, holder=7)
    assert cells.holders == {fork: 7}
    cells.extend(fork, 50)
    cells.truncate(fork, 40)  # what a holder gives back it may have again
    cells.settle(fork)
    assert (cells.promised_to(fork), cells.free()) == (10, 30)
    cells.release(fork)
    assert (cells.holders, cells.free()) == ({}, 80)
    assert cells.used_without([call]) == 0


def test_the_version_tells_that_something_was_given_back() -> None:
    cells = CellAllocator(2, 10)
    seq = cells.allocate()
    assert seq is not None
    cells.extend(seq, 5)
    before = cells.version
    cells.promise(seq, 2)
    cells.extend(seq, 1)
    assert cells.version == before
    cells.truncate(seq, 3)
    between = cells.version
    cells.release(seq)
    assert before < between < cells.version


STEP = st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))


@given(st.lists(STEP, max_size=40))
def test_it_agrees_with_sets_of_cells(steps: list[tuple[int, int, int, int]]) -> None:
    allocator, cells, promised, fresh = CellAllocator(4, 1000), dict[int, list[int]](), {}, 0
    for action, seq, other, wish in steps:
        if action == 0 and len(cells) < 4:
            new = allocator.allocate()
            assert new is not None
            assert new not in cells
            cells[new], promised[new] = [], 0
        elif seq not in cells:
            continue
        elif action == 1:
            allocator.extend(seq, wish)
            cells[seq] += range(fresh, fresh + wish)
            promised[seq] = max(0, promised[seq] - wish)
            fresh += wish
        elif action == 2:
            n = min(wish, len(cells[seq]))
            kept = set().union(*(c for s, c in cells.items() if s != seq), cells[seq][:n])
            assert allocator.freed_by(seq, n) == len(set(cells[seq][n:]) - kept)
            allocator.truncate(seq, n)
            del cells[seq][n:]
        elif action == 3 and cells.get(other) == []:
            n = min(wish, len(cells[seq]))
            allocator.share(seq, other, n)
            cells[other] = cells[seq][:n]
        elif action == 4:
            allocator.release(seq)
            del cells[seq], promised[seq]
        elif action == 5:
            allocator.promise(seq, wish)
            promised[seq] += wish
        elif action == 6:
            allocator.settle(seq)
            promised[seq] = 0
        used = len(set().union(*cells.values()))
        assert allocator.used() == used
        assert allocator.free() == 1000 - used - sum(promised.values())
        left = set().union(*(c for s, c in cells.items() if s not in (seq, other)))
        assert allocator.used_without({seq, other}) == len(left)
        assert all(allocator.length(s) == len(c) for s, c in cells.items())
        assert allocator.sequences == tuple(sorted(cells))
        assert allocator.free_sequences == 4 - len(cells)
