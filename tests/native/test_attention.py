"""Attention that reads the shared prefix once, against upstream's node: alora_attention_set()."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.backends import ON_DEVICE
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_models import tiny_model

from .harness import (
    F32,
    Base,
    Context,
    Logits,
    Token,
    difference,
    on_the_cpu,
    own_threads,
    sequence,
    write_adapter,
)

F16, Q8_0, BF16 = 1, 8, 30  # ggml_type
Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL = 2, 3, 6, 7, 20
TOLERANCE = 5e-3  # of the largest logit
PREFIX = [int(t) for t in np.random.default_rng(4).integers(3, 300, 150)]
SUFFIX = [int(t) for t in np.random.default_rng(5).integers(3, 300, 16)]
FORKS = range(1, 7)


@contextmanager
def prepared(
    base: Base, how: str, adapters: list[Path], cells: int | None = F16, n_threads: int = 1
) -> Iterator[tuple[Context, list[int]]]:
    """A context that computes attention in one mode, with PREFIX in sequence 0 and in its forks.

    Without a type for `cells`: no flash attention, which is exact. Cells lie in the host's memory,
    also where layers are on a device: only there are ours.
    """
    ctx = base.context(n_threads=n_threads, flash_cells=cells, cells_on_device=False)
    ctx.native.set_attention(ctx.handle, how)
    try:
        slots = [ctx.add(adapter) for adapter in adapters]
        ctx.decode(sequence(PREFIX))
        memory = ctx.llama.llama_get_memory(ctx.handle)
        for seq in FORKS:
            ctx.llama.llama_memory_seq_cp(memory, 0, seq, -1, -1)
            if slots:
                ctx.activate(seq, len(PREFIX), slots[seq % len(slots)])
        yield ctx, slots
    finally:
        ctx.close()


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    model = tiny_model("llama")
    return [write_adapter(tmp_path / f"{r}.gguf", model, rank=r, seed=r) for r in (8, 5)]


@pytest.fixture
def base() -> Iterator[Base]:
    base = Base(tiny_model("llama").gguf)
    yield base
    base.close()


def forks(first: int, n: int = 1) -> list[Token]:
    """`n` tokens of each of several forks, interleaved, `first` tokens after the prefix."""
    places = [(i, seq) for i in range(first, first + n) for seq in FORKS[1:]]
    return [(SUFFIX[i] + seq, len(PREFIX) + i, (seq,)) for i, seq in places]


def suffix(seq: int = 1) -> list[Token]:
    return sequence(SUFFIX, seq, len(PREFIX))


def run(ctx: Context) -> list[Logits]:
    """A suffix, then forks beside it, one token of a fork, and a text of the base's own."""
    one, text = [(9, len(PREFIX) + 4, (2,))], sequence(PREFIX[:90], 7)
    return [ctx.decode(batch) for batch in (suffix(), forks(0), forks(1, 3), one, text)]


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "gpt2"])
def test_all_families(family: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a.gguf", tiny_model(family), rank=8)
    base = Base(tiny_model(family).gguf)
    results = []
    for how in ("stock", "auto"):
        with prepared(base, how, [adapter]) as (ctx, _):
            results.append([ctx.decode(suffix(0)), ctx.decode(suffix())])
            assert (ctx.stats().n_attention > 0) == (how == "auto")
            if family != "granitemoehybrid":  # cannot go back
                results[-1] += [ctx.decode(forks(0)), ctx.decode(forks(1))]
    for stock, ours in zip(*results, strict=True):
        assert difference(ours, stock) < TOLERANCE
    base.close()


@pytest.mark.parametrize("cells", [F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL])
def test_closer_to_exact_than_upstreams(cells: int, base: Base, adapters: list[Path]) -> None:
    """Upstream rounds queries, and what it adds up, to the cells' type or to F16. Others than
    F32 and F16 are themselves rounded by more than the bound; where they have less than 8 bits, by
    so much more than attention that hardly anything else is seen.
    """
    with prepared(base, "stock", adapters, None) as (ctx, _):
        exact = run(ctx)
    farthest, rms = {}, {}
    for how in ("stock", "auto"):
        with prepared(base, how, adapters, cells) as (ctx, _):
            results = run(ctx)
            assert ctx.stats().n_attention == (3 if how == "auto" else 0)
        farthest[how] = max(difference(a, b) for a, b in zip(results, exact, strict=True))
        off = np.concatenate([(a - b).ravel() for a, b in zip(results, exact, strict=True)])
        rms[how] = float(np.sqrt(np.mean(np.square(off, dtype=np.float64))))
    assert rms["auto"] < (1 if cells in (F32, F16, BF16, Q8_0) else 1.05) * rms["stock"], rms
    assert cells not in (F32, F16) or farthest["auto"] < TOLERANCE
    assert cells != F32 or farthest["auto"] < 1e-5


@own_threads
def test_results_do_not_depend_on_threads(base: Base, adapters: list[Path]) -> None:
    first = None
    for n_threads in (1, 2, 3):
        with prepared(base, "auto", adapters, n_threads=n_threads) as (ctx, _):
            results = run(ctx)
        first = first or results
        assert all(np.array_equal(a, b) for a, b in zip(results, first, strict=True))


def test_the_base_keeps_upstreams(base: Base, adapters: list[Path]) -> None:
    """As a context begins, too."""
    with contextlib.closing(base.context(flash_cells=F16, cells_on_device=False)) as ctx:
        ctx.decode(sequence(PREFIX))
        results = [ctx.decode(suffix(0))]
        assert ctx.stats().n_attention == 0
    for how in ("stock", "upstream"):
        with prepared(base, how, adapters) as (ctx, _):
            results.append(ctx.decode(suffix(0)))
            assert ctx.stats().n_attention == 0
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_auto_is_every_tokens(base: Base, adapters: list[Path]) -> None:
    """The base's too, alone, beside adapted ones and in long batches, without a second mask; and it
    has the same bits whatever is beside it.
    """
    with prepared(base, "auto", adapters) as (ctx, _):
        before = ctx.stats()
        beside = ctx.decode([*suffix(0), *forks(0)])
        n_nodes = ctx.stats().n_nodes
        assert ctx.stats().n_attention == 3
        ctx.decode([(5, i, (7,)) for i in range(200)])
        ctx.decode([(5, 200, (7,)), *((5, len(PREFIX) + 1 + i, (3,)) for i in range(199))])
        assert ctx.stats().n_attention == 3
        after = ctx.stats()
        assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)
    with prepared(base, "auto", []) as (ctx, _):
        alone = ctx.decode([*suffix(0), *forks(0)])
        assert ctx.stats().n_attention == 3
    n = len(SUFFIX)
    assert np.array_equal(beside[:n], alone[:n])
    assert not np.array_equal(beside[n:], alone[n:])
    with prepared(base, "upstream", adapters) as (ctx, _):
        upstreams = ctx.decode([*suffix(0), *forks(0)])
        assert ON_DEVICE or ctx.stats().n_nodes > n_nodes
    assert not np.array_equal(upstreams[:n], alone[:n])


def test_the_mode_may_change(base: Base, adapters: list[Path]) -> None:
    """The next batch has a graph of its own, over the same cells; a mode must be one."""
    results = []
    with prepared(base, "upstream", adapters) as (ctx, _):
        for mode in (-1, 4):
            assert ctx.native._lib.alora_attention_set(ctx.handle, mode) == -1
            assert "alora_attention_mode" in ctx.native.last_error()
        for how in ("upstream", "auto", "upstream", "stock"):
            ctx.native.set_attention(ctx.handle, how)
            results.append(ctx.decode(suffix(0)))
            assert ctx.stats().n_attention == (3 if how == "auto" else 0)
            memory = ctx.llama.llama_get_memory(ctx.handle)
            ctx.llama.llama_memory_seq_rm(memory, 0, len(PREFIX), -1)
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[0], results[3])
    assert not np.array_equal(results[0], results[1])
    assert difference(results[1], results[0]) < TOLERANCE


@on_the_cpu
@pytest.mark.parametrize("cells", [F32, F16])
def test_base_and_adapted_tokens_in_one_batch(cells: int, base: Base, adapters: list[Path]) -> None:
    """Those of the base are upstream's bit for bit, the others ours, wherever they lie."""
    ours = [*forks(0), *forks(1)]
    theirs = [*suffix(0)[:3], (9, 0, (7,))]
    batches = [
        [*ours, *theirs],
        [token for pair in zip(ours, [*theirs, *suffix(0)[3:9]], strict=True) for token in pair],
        [*theirs, *ours],
    ]
    results: dict[str, list[Logits]] = {}
    for how in ("stock", "upstream"):
        results[how] = []
        for batch in batches:
            with prepared(base, how, adapters, cells, n_threads=2) as (ctx, _):
                results[how].append(ctx.decode(batch))
                assert ctx.stats().n_attention == (0 if how == "stock" else 3)
    for batch, stock, mixed in zip(batches, *results.values(), strict=True):
        is_base = np.array([token[2][0] in (0, 7) for token in batch])
        assert np.array_equal(mixed[is_base], stock[is_base])
        assert not np.array_equal(mixed[~is_base], stock[~is_base])
        assert difference(mixed[~is_base], stock[~is_base]) < TOLERANCE


def test_one_graph_whichever_tokens_are_adapted(base: Base, adapters: list[Path]) -> None:
    first, other = forks(0)[:2], suffix(0)[:2]
    mixed = [[first[0], other[0], first[1]], [other[1], forks(1)[1], forks(1)[0]]]
    results = []
    for how in ("stock", "upstream"):
        with prepared(base, how, adapters) as (ctx, _):
            results.append([ctx.decode(mixed[0])])
            n_graphs = ctx.stats().n_graphs
            results[-1].append(ctx.decode(mixed[1]))
            assert ctx.stats().n_graphs == n_graphs
    for stock, ours in zip(*results, strict=True):
        assert difference(ours, stock) < TOLERANCE
    assert np.array_equal(results[1][0][1], results[0][0][1])
    assert np.array_equal(results[1][1][0], results[0][1][0])


@on_the_cpu
def test_long_mixed_batches_keep_upstreams(base: Base, adapters: list[Path]) -> None:
    """A second mask might not fit into the memory that is reserved."""
    with prepared(base, "upstream", adapters) as (ctx, _):
        before = ctx.stats()
        for n, n_ours in ((63, 3), (64, 0), (200, 0)):
            ctx.decode([(9, 0, (7,)), *((5, len(PREFIX) + i, (1,)) for i in range(n))])
            assert ctx.stats().n_attention == n_ours
            memory = ctx.llama.llama_get_memory(ctx.handle)
            ctx.llama.llama_memory_seq_rm(memory, 1, len(PREFIX), -1)
            ctx.llama.llama_memory_seq_rm(memory, 7, -1, -1)
        after = ctx.stats()
    assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)


@pytest.mark.parametrize("how", ["auto", "upstream"])
def test_nothing_is_reserved_and_the_base_stays(how: str, base: Base, adapters: list[Path]) -> None:
    with prepared(base, how, adapters) as (ctx, _):
        ctx.decode(sequence(SUFFIX, 0, len(PREFIX)))
        before, cells = ctx.stats(), state(ctx)
        run(ctx)
        ctx.decode([(5, 90 + i, (7,)) for i in range(150)])
        for seq in FORKS:
            ctx.llama.llama_memory_seq_rm(ctx.llama.llama_get_memory(ctx.handle), seq, -1, -1)
        after = ctx.stats()
        assert state(ctx) == cells
    assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)


def state(ctx: Context) -> bytes:
    """The cells of sequence 0."""
    size = ctx.llama.llama_state_seq_get_size(ctx.handle, 0)
    buffer = (ctypes.c_uint8 * size)()
    assert ctx.llama.llama_state_seq_get_data(ctx.handle, buffer, size, 0) == size
    return bytes(buffer)


def test_cells_that_overflowed_stay_their_sequences_own(base: Base, adapters: list[Path]) -> None:
    """An adapter at an absurd scale leaves infinities in a fork; its neighbours do not see them."""
    with prepared(base, "ours", adapters) as (ctx, slots):
        clean = ctx.decode(forks(0))
        ctx.activate(1, len(PREFIX), slots[0], 1e30)
        ctx.decode(suffix())
        beside = ctx.decode(forks(1))
    with prepared(base, "ours", adapters) as (ctx, _):
        assert np.array_equal(ctx.decode(forks(0)), clean)
        alone = ctx.decode(forks(1))
    assert np.isfinite(beside).all()
    assert difference(beside, alone) < TOLERANCE
