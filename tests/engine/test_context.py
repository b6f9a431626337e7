"""Batches, sequences and cells: the books, and that a failed call leaves nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf.engine.batch import Logits, Run
from alora_gguf.engine.cells import CellAllocator
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Tuning
from tests.support import inside
from tests.support.files import Files


@pytest.fixture
def engine(files: Files) -> Iterator[Engine]:
    with files.model(n_ctx=256, n_seq_max=6) as model:
        yield inside.engine(model)


def test_books_count_shared_cells_once() -> None:
    books = CellAllocator(3, 100)
    a = books.allocate()
    b = books.allocate()
    assert (a, b) == (0, 1)
    books.extend(0, 10)
    books.share(0, 1, 6)
    books.extend(1, 2)
    assert (books.length(0), books.length(1)) == (10, 8)
    assert (books.used(), books.free()) == (12, 88)
    assert books.freed_by(0, 4) == 4  # 6..9; 4 and 5 are shared
    assert books.freed_by(1, 0) == 2
    books.truncate(0, 0)
    assert books.used() == 8
    books.release(1)
    books.release(1)
    assert books.used() == 0
    assert books.free_sequences == 2


STEP = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))


@given(st.lists(STEP, max_size=40))
def test_books_equal_sets_of_cells(steps: list[tuple[int, int, int, int]]) -> None:
    books, cells, fresh = CellAllocator(4, 1000), dict[int, list[int]](), 0
    for action, seq, other, wish in steps:
        if action == 0 and len(cells) < 4:
            new = books.allocate()
            assert new is not None
            assert new not in cells
            cells[new] = []
        elif seq not in cells:
            continue
        elif action == 1:
            books.extend(seq, wish)
            cells[seq] += range(fresh, fresh + wish)
            fresh += wish
        elif action == 2:
            n = min(wish, len(cells[seq]))
            kept = set().union(*(c for s, c in cells.items() if s != seq), cells[seq][:n])
            assert books.freed_by(seq, n) == len(set(cells[seq][n:]) - kept)
            books.truncate(seq, n)
            del cells[seq][n:]
        elif action == 3 and cells.get(other) == []:
            n = min(wish, len(cells[seq]))
            books.share(seq, other, n)
            cells[other] = cells[seq][:n]
        elif action == 4:
            books.release(seq)
            del cells[seq]
        assert books.used() == len(set().union(*cells.values()))
        assert all(books.length(s) == len(c) for s, c in cells.items())
        assert books.free_sequences == 4 - len(cells)


def test_logits_of_every_token_equal_those_of_each_prefix(engine: Engine) -> None:
    seq = engine.allocate()
    tokens = list(range(40))
    (rows,) = engine.decode([Run(seq, tokens, "all")])
    assert rows is not None
    assert rows.shape == (40, engine.vocab.n_tokens)
    other = engine.allocate()
    for i, token in enumerate(tokens[:5]):
        (row,) = engine.decode([Run(other, [token])])
        assert row is not None
        assert np.abs(row - rows[i]).max() < 0.05
    (none,) = engine.decode([Run(other, tokens[5:], "none")])
    assert none is None


def test_runs_are_cut_into_batches_and_rows_stay_apart(files: Files) -> None:
    options = ag.ContextOptions(n_ctx=256, n_batch=7, n_ubatch=7, n_seq_max=6, n_threads=1)
    lengths = [1, 20, 3, 1, 7, 9]
    with ag.Model(files.base, options=options) as model:
        engine = inside.engine(model)
        runs = [Run(engine.allocate(), list(range(n, 2 * n))) for n in lengths]
        together = engine.decode(runs)
        for run, row in zip(runs, together, strict=True):
            engine.truncate(run.seq, 0)
            (alone,) = engine.decode([run])
            assert row is not None
            assert alone is not None
            assert np.abs(row - alone).max() < 0.05
        (every,) = engine.decode([Run(runs[0].seq, list(range(20)), "all")])
        assert every is not None
        assert every.shape[0] == 20


def test_a_batch_that_does_not_fit_leaves_no_cells(engine: Engine) -> None:
    a, b = engine.allocate(), engine.allocate()
    engine.decode([Run(a, list(range(100)))])
    state = engine.state(a)
    with pytest.raises(ag.CacheFullError):
        engine.decode([Run(a, [1] * 100), Run(b, [2] * 100)])
    assert engine.state(a) == state
    assert (engine.cells.length(a), engine.cells.length(b)) == (100, 0)
    for _ in range(156):
        engine.decode([Run(b, [3])])
    with pytest.raises(ag.CacheFullError, match="2 cells needed, 0 of 256 free"):
        engine.decode([Run(a, [1]), Run(b, [2])])
    assert engine.state(a) == state


def test_a_batch_llama_refuses_is_an_error_and_leaves_no_cells(engine: Engine) -> None:
    seq = engine.allocate()
    engine.decode([Run(seq, [1, 2, 3])])
    with pytest.raises(ag.DecodeError, match="refused the batch"):
        engine.decode([Run(seq, [4, 10**6])])
    assert engine.cells.length(seq) == 3
    engine.decode([Run(seq, [4])])


def test_fork_and_truncate_keep_books_and_memory_together(engine: Engine) -> None:
    a = engine.allocate()
    engine.decode([Run(a, list(range(30)))])
    b = engine.fork(a, 20)
    engine.decode([Run(b, [5, 5])])
    llama, memory = engine.native.llama, engine.context.memory
    assert llama.llama_memory_seq_pos_max(memory, b) == 21
    assert engine.truncate(a, 10) == 10
    assert llama.llama_memory_seq_pos_max(memory, a) == 9
    assert llama.llama_memory_seq_pos_max(memory, b) == 21
    engine.drop(b)
    assert llama.llama_memory_seq_pos_max(memory, b) == -1
    assert engine.cells.used() == 10


def test_decoding_a_token_costs_python_little(engine: Engine) -> None:
    """Some twenty microseconds beside the computation, counted in calls of functions."""
    seq = engine.allocate()
    engine.decode([Run(seq, [1])])
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        engine.decode([Run(seq, [1])])
    finally:
        sys.setprofile(None)
    assert calls < 250, calls


def test_tuning_reaches_llama_cpp_and_options_come_first(files: Files) -> None:
    def row(tuning: Tuning | None) -> tuple[int, Logits]:
        with ag.Model(files.base, n_ctx=256, n_threads=1, _tuning=tuning) as model:
            (logits,) = inside.engine(model).decode(
                [Run(inside.engine(model).allocate(), [1, 2, 3, 4])]
            )
            assert logits is not None
            return model.n_ctx, logits

    n_ctx, plain = row(None)
    tuned_n_ctx, tuned = row(Tuning(context={"rope_freq_base": 5.0, "n_ctx": 512}))
    assert n_ctx == tuned_n_ctx == 256
    assert np.abs(tuned - plain).max() > 1e-2
    assert np.array_equal(row(None)[1], plain)
