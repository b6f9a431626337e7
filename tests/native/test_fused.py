"""Fused products on the CPU against ggml's own, which ALORA_CPU_PATH=standard keeps to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest

from alora_gguf.gguf.header import read_header
from tests.backends import NAME as BACKEND
from tests.support.make_gguf import adapter_keys, make_gguf
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

from .harness import (
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

TOLERANCE = 1e-5  # measured: at most 2e-6
CAPPED = {"gemma3": 2e-4}  # its logits are capped, which ends in larger differences
RANKS = (8, 5, 33)
TOKENS = [int(t) for t in np.random.default_rng(3).integers(3, 300, 21)]
N = len(TOKENS)

Run = Callable[[Context, list[int]], Logits]


def one_slot(ctx: Context, slots: list[int]) -> Logits:
    ctx.activate(0, 0, slots[2])
    return ctx.decode(sequence(TOKENS))


def one_token_at_a_time(ctx: Context, slots: list[int]) -> Logits:
    ctx.activate(0, 4, slots[1], -0.5)
    return np.concatenate([ctx.decode([(t, i, (0,))]) for i, t in enumerate(TOKENS)])


def from_the_middle(ctx: Context, slots: list[int]) -> Logits:
    ctx.activate(0, 10, slots[0], 0.5)
    return ctx.decode(sequence(TOKENS))


def several(ctx: Context, slots: list[int]) -> Logits:
    """Interleaved rows of base and three adapters at scales of their own, some rows' logits."""
    for seq, slot in enumerate(slots, start=1):
        ctx.activate(seq, seq, slot, seq - 1.5)
    batch = [(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(4)]
    return ctx.decode(batch, lambda token: token[1] % 3 != 1)


def many_rows_of_a_slot(ctx: Context, slots: list[int]) -> Logits:
    """More rows than are computed at once, before and behind another slot's."""
    for seq, slot in enumerate((slots[1], slots[0], slots[1])):
        ctx.activate(seq, 0, slot)
    return ctx.decode([token for seq in range(3) for token in sequence(TOKENS, seq)])


@contextmanager
def prepared(
    base: Base, adapters: list[Path], path: str, n_threads: int = 1, n_batch: int = 256
) -> Iterator[tuple[Context, list[int]]]:
    """A context on one path with the adapters loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALORA_CPU_PATH", path)
        ctx = base.context(n_threads=n_threads, n_batch=n_batch)
    try:
        yield ctx, [ctx.add(adapter) for adapter in adapters]
    finally:
        ctx.close()


def adapters_of(model: TinyModel, folder: Path, **options: object) -> list[Path]:
    return [
        write_adapter(folder / f"{rank}.gguf", model, rank=rank, seed=rank, **options)  # type: ignore[arg-type]
        for rank in RANKS
    ]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_both_paths_agree(family: str, tmp_path: Path) -> None:
    adapters = adapters_of(tiny_model(family), tmp_path)
    base = Base(tiny_model(family).gguf)
    runs: list[Run] = [one_slot, one_token_at_a_time, from_the_middle, several, many_rows_of_a_slot]
    results = []
    for path in ("standard", "fused"):
        with prepared(base, adapters, path) as (ctx, slots):
            results.append([_alone(ctx, slots, run) for run in runs])
    for run, standard, fused in zip(runs, *results, strict=True):
        found = difference(fused, standard)
        assert found < CAPPED.get(family, TOLERANCE), (run.__name__, found)
    base.close()


def _alone(ctx: Context, slots: list[int], run: Run) -> Logits:
    ctx.clear()
    ctx.deactivate()
    return run(ctx, slots)


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_a_files_type_is_closer_to_f32_than_ggmls(dtype: str, family: str, tmp_path: Path) -> None:
    """ggml rounds activations to the adapter's type, or quantises them and holds Q8_0 as F16; fused
    products take values of the file, whatever their type, and activations as they are.
    """
    model = tiny_model(family)
    half = write_adapter(
        tmp_path / "half.gguf", model, rank=32, dtype=gguf.GGMLQuantizationType[dtype]
    )
    whole = tmp_path / "whole.gguf"
    _widen(half, whole, gguf.GGMLQuantizationType[dtype])
    base = Base(model.gguf)

    def run(adapter: Path, path: str) -> Logits:
        with prepared(base, [adapter], path) as (ctx, slots):
            ctx.activate(0, 0, slots[0])
            return ctx.decode(sequence(TOKENS))

    exact = run(whole, "standard")
    fused, standard = run(half, "fused"), run(half, "standard")
    # both files hold the same values
    assert difference(fused, exact) < TOLERANCE
    assert difference(fused, exact) < difference(standard, exact)
    base.close()


def _widen(source: Path, target: Path, dtype: gguf.GGMLQuantizationType) -> None:
    """Copies an adapter, its tensors as F32."""
    reader = gguf.GGUFReader(str(source))
    tensors = {t.name: gguf.quants.dequantize(t.data, dtype) for t in reader.tensors}
    make_gguf(target, adapter_keys(), tensors, architecture=read_header(source).architecture)


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_the_bank_takes_what_adapters_take(family: str, tmp_path: Path) -> None:
    """Neither room for others, nor for a larger rank, nor a type that holds those of all."""
    model, base = tiny_model(family), Base(tiny_model(family).gguf)
    types = {"F16": 8, "BF16": 40, "F32": 5, "Q8_0": 32}
    paths = [
        write_adapter(
            tmp_path / f"{name}.gguf", model, rank=rank, dtype=gguf.GGMLQuantizationType[name]
        )
        for name, rank in types.items()
    ]
    with prepared(base, [], "fused") as (ctx, _):
        ctx.native.bank_reserve(ctx.handle, 12, 64)
        taken = [0]
        for i, path in enumerate(paths):
            slot = ctx.add(path)
            taken.append(ctx.stats().bank_bytes)
            if i == 0:
                first = slot
                reserved = ctx.stats().n_reserves
                ctx.activate(0, 0, first)
                before = ctx.decode(sequence(TOKENS))
        for path, more in zip(paths, np.diff(taken), strict=True):
            tensors = gguf.GGUFReader(str(path)).tensors
            # tiles of 64 outputs, A's scales as floats, beginnings at multiples of 64 bytes
            most = sum(
                t.n_bytes * 36 / 34 + 64
                if t.name.endswith("lora_a")
                else t.n_bytes / t.shape[1] * -(-int(t.shape[1]) // 64) * 64 + 64
                for t in tensors
            )
            assert sum(t.n_bytes for t in tensors) <= more <= most, path
        assert ctx.stats().n_reserves == reserved
        ctx.clear()
        assert np.array_equal(ctx.decode(sequence(TOKENS)), before)
        ctx.deactivate()
        for slot in range(1, 5):
            ctx.native.adapter_remove(ctx.handle, slot, "")
        assert ctx.stats().bank_bytes == 0
    base.close()


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_types_and_ranks_side_by_side(family: str, tmp_path: Path) -> None:
    """In one batch each slot's tokens have the bits that they have in a batch with others that are
    the base's; also after a slot was given to an adapter of another type and rank.
    """
    model, base = tiny_model(family), Base(tiny_model(family).gguf)
    kinds = gguf.GGMLQuantizationType
    made = {"F16": (8, None), "BF16": (40, None), "F32": (5, None), "Q8_0": (12, kinds.F16)}
    paths = [
        write_adapter(tmp_path / f"{t}.gguf", model, rank=r, dtype=kinds[t], dtype_b=b, seed=r)
        for t, (r, b) in made.items()
    ]
    with prepared(base, paths, "fused") as (ctx, slots):

        def read(used: list[int]) -> Logits:
            ctx.clear()
            ctx.deactivate()
            for seq, slot in enumerate(used):
                if slot:
                    ctx.activate(seq, 0, slot)
            return ctx.decode([(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(4)])

        def expect(used: list[int]) -> None:
            together = read(used)
            for seq, slot in enumerate(used):
                alone = read([slot if i == seq else 0 for i in range(4)])
                assert np.array_equal(together[seq::4], alone[seq::4])

        expect(slots)
        ctx.deactivate()
        ctx.native.adapter_remove(ctx.handle, slots[1], "")
        other = write_adapter(tmp_path / "other.gguf", model, rank=32, dtype=kinds.Q8_0, seed=7)
        assert ctx.add(other) == slots[1]
        expect(slots)
        with prepared(base, [other], "fused") as (fresh, (only,)):
            fresh.activate(0, 0, only)
            expected = fresh.decode(sequence(TOKENS))
        ctx.clear()
        ctx.deactivate()
        ctx.activate(0, 0, slots[1])
        assert np.array_equal(ctx.decode(sequence(TOKENS)), expected)
    base.close()


@own_threads
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_results_do_not_depend_on_threads(family: str, tmp_path: Path) -> None:
    adapters = adapters_of(tiny_model(family), tmp_path)
    base = Base(tiny_model(family).gguf)
    first = None
    for n_threads in (1, 2, 3, 2):
        with prepared(base, adapters, "fused", n_threads) as (ctx, slots):
            logits = [_alone(ctx, slots, run) for run in (one_slot, several, many_rows_of_a_slot)]
        first = first or logits
        for ours, theirs in zip(logits, first, strict=True):
            assert np.array_equal(ours, theirs)
    base.close()


@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_base_rows_are_untouched(family: str, tmp_path: Path) -> None:
    """Tokens of the base in a mixed batch: bit for bit the same batch without adapters."""
    adapters = adapters_of(tiny_model(family), tmp_path)
    base = Base(tiny_model(family).gguf)
    batch: list[Token] = [(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(3)]
    with prepared(base, adapters, "fused") as (ctx, slots):
        idle = ctx.decode(batch)
        ctx.clear()
        ctx.activate(0, 0, slots[0])
        ctx.activate(2, 0, slots[1])
        mixed = ctx.decode(batch)
    assert np.array_equal(mixed[1::3], idle[1::3])
    assert difference(mixed[0::3], idle[0::3]) > 0.1
    base.close()


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_fewer_nodes_and_no_more_memory(family: str, tmp_path: Path) -> None:
    adapters = adapters_of(tiny_model(family), tmp_path)
    base = Base(tiny_model(family).gguf)
    stats = {}
    for path in ("standard", "fused"):
        with prepared(base, adapters, path) as (ctx, slots):
            several(ctx, slots)
            stats[path] = ctx.stats()
    assert stats["fused"].n_nodes < stats["standard"].n_nodes
    assert stats["fused"].bank_bytes <= stats["standard"].bank_bytes
    # the sums of several targets are kept at once, which only a model this small notices
    assert stats["fused"].compute_bytes <= 1.05 * stats["standard"].compute_bytes
    base.close()


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_one_graph_for_every_slot(family: str, tmp_path: Path) -> None:
    """Another slot or scale, or a base token beside it, builds no graph."""
    adapters = adapters_of(tiny_model(family), tmp_path)
    base = Base(tiny_model(family).gguf)
    built = {}
    for path in ("standard", "fused"):
        for beside in (False, True):
            with prepared(base, adapters, path) as (ctx, slots):
                for i, slot in enumerate([slots[0], *slots, slots[1]]):
                    if i == 1:
                        before = ctx.stats().n_graphs
                    for seq in (0,) if beside else (0, 1):
                        ctx.activate(seq, 0, slot, 1.0 + i % 2)
                    ctx.decode([(5, i, (0,)), (6, i, (1,))])
                built[path, beside] = ctx.stats().n_graphs - before
    assert built["fused", False] == built["fused", True] == 0 < built["standard", False]
    base.close()


@pytest.mark.parametrize("path", ["fused", "standard"])
@pytest.mark.parametrize("family", ["llama", "granitemoe"])
def test_a_small_alpha_loses_nothing_of_f16(family: str, path: str, tmp_path: Path) -> None:
    """Values of 1e-3 times 1/256 would be subnormal in F16, a few bits each: the same adapter with
    alpha = rank, activated at 1/256, is what alpha = rank/256 means.
    """
    model, rank = tiny_model(family), 32
    small, plain = (
        write_adapter(
            tmp_path / f"{alpha}.gguf",
            model,
            rank=rank,
            alpha=alpha,
            gain=1e-3 * rank**0.5,
            dtype=gguf.GGMLQuantizationType.F16,
        )
        for alpha in (rank / 256, float(rank))
    )
    base = Base(model.gguf)
    with prepared(base, [small, plain], path) as (ctx, (first, second)):
        logits = []
        for slot, scale in ((0, 1.0), (first, 256 * 64.0), (second, 64.0)):
            ctx.clear()
            ctx.activate(0, 4, slot, scale)  # beside tokens of the base
            logits.append(ctx.decode(sequence(TOKENS)))
        none, ours, expected = logits
        assert np.abs(expected - none).max() > 0.1 * np.abs(none).max()
        assert np.array_equal(ours, expected)  # by powers of 2, nothing is rounded

        ctx.clear()
        ctx.deactivate()
        ctx.activate(0, 4, first, 256 * 64.0)  # and beside the other
        ctx.activate(1, 4, second, 64.0)
        both = ctx.decode([t for seq in (0, 1) for t in sequence(TOKENS, seq)])
        fused = path == "fused" and BACKEND != "rpc"  # a device has ggml's own products
        most = 1e-5 if fused else 1e-3  # which round activations to F16
        assert difference(both[:N] - none, expected - none) <= most
        assert difference(both[N:] - none, expected - none) <= most
    base.close()
