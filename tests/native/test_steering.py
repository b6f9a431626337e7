"""Steering wherever layers are: on a device, some or all, or on the CPU.

What each operation means, tests/parity has; here the same is asked of every place (test_devices),
and of batches in which tokens of the base, of vectors and of adapters stand side by side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from alora_gguf.errors import AdapterInUseError, AdapterMismatchError, InputError
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.vector import Directions
from tests.backends import ON_DEVICE
from tests.support.steering_oracle import random_part
from tests.support.tiny_models import tiny_model

from .harness import Base, Context, Logits, difference, sequence, write_adapter

TOLERANCE = 2e-4  # the same additions, in another order on a device
TOKENS = [int(t) for t in np.random.default_rng(19).integers(3, 300, 24)]
FIRST = 10
OPERATIONS = ("add", "project", "project_positive", "add_keep_norm")
ALL = 99  # layers


@dataclass
class Placed:
    """A base with some layers on the device, and one whose layers are all the CPU's."""

    ctx: Context
    on_the_cpu: Context
    adapters: tuple[int, int]  # the slot of one adapter in each
    n_layer: int
    n_embd: int

    def parts(self, hook: str, operation: str) -> list[Directions]:
        layers = range(1, self.n_layer, 2)  # of a hybrid those with attention
        return [random_part(i, hook, operation, self.n_embd) for i in layers]

    def add(self, ctx: Context, parts: list[Directions]) -> int:
        return ctx.native.vector_add(ctx.handle, parts, self.n_embd, "vector")


@pytest.fixture(
    scope="module",
    params=product(("llama", "granitemoe", "granitemoehybrid"), (0, 1, ALL)),
    ids=lambda p: f"{p[0]}-{p[1]}-layers",
)
def placed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Placed]:
    family, n_gpu_layers = request.param
    tiny = tiny_model(family)
    header = read_header(tiny.gguf)
    adapter = write_adapter(tmp_path_factory.mktemp(family) / "a.gguf", tiny, rank=8)
    bases = [Base(tiny.gguf, n_gpu_layers=n) for n in (n_gpu_layers, 0)]
    ctx, on_the_cpu = (base.context() for base in bases)
    n_layer, n_embd = (
        int(header.metadata[f"{header.architecture}.{key}"])  # type: ignore[arg-type]
        for key in ("block_count", "embedding_length")
    )
    yield Placed(ctx, on_the_cpu, (ctx.add(adapter), on_the_cpu.add(adapter)), n_layer, n_embd)
    for one, base in zip((ctx, on_the_cpu), bases, strict=True):
        one.close()
        base.close()


@pytest.fixture(autouse=True)
def nothing_active(placed: Placed) -> None:
    for ctx in (placed.ctx, placed.on_the_cpu):
        ctx.deactivate()
        ctx.clear()


@pytest.mark.parametrize("hook", ["block", "attention", "ffn"])
def test_every_operation_in_one_batch(placed: Placed, hook: str) -> None:
    """Rows of the base, of each operation, and of all of them with an adapter, side by side."""
    batch = [(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(6)]
    found: list[Logits] = []
    for ctx, adapter in zip((placed.ctx, placed.on_the_cpu), placed.adapters, strict=True):
        slots = [placed.add(ctx, placed.parts(hook, operation)) for operation in OPERATIONS]
        of_all = [adapter, *slots]
        everything = ctx.native.combine(ctx.handle, of_all, [1.0, 0.5, 0.25, 1.0, 0.5])
        for seq, slot in enumerate([*slots, everything], start=1):
            ctx.activate(seq, FIRST, slot)
        before = ctx.stats()
        found.append(ctx.decode(batch))
        after = ctx.stats()
        assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)
        assert after.n_steered == len(placed.parts(hook, "add"))
        ctx.deactivate()
        for slot in [everything, *slots]:
            ctx.native.adapter_remove(ctx.handle, slot, "vector")
        assert ctx.stats().n_vectors == 0
    ours, theirs = found
    assert difference(ours, theirs) < TOLERANCE
    placed.on_the_cpu.clear()
    idle = placed.on_the_cpu.decode(batch).reshape(len(TOKENS), 6, -1)
    rows = theirs.reshape(len(TOKENS), 6, -1)
    assert np.array_equal(rows[:FIRST], idle[:FIRST])
    assert np.array_equal(rows[:, 0], idle[:, 0])
    for seq in range(1, 6):
        for other in range(seq):
            assert difference(rows[FIRST:, seq], rows[FIRST:, other]) > 1e-3


def test_added_behind_every_block_is_upstreams_control_vector(placed: Placed) -> None:
    ctx, llama = placed.ctx, placed.ctx.llama
    parts = [random_part(i, "block", "add", placed.n_embd) for i in range(1, placed.n_layer)]
    slot = placed.add(ctx, parts)
    ctx.activate(0, 0, slot)
    ours = ctx.decode(sequence(TOKENS))
    ctx.deactivate()
    ctx.native.adapter_remove(ctx.handle, slot, "vector")
    values = np.concatenate([part.values[0] for part in parts])
    data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    set_cvec = llama.llama_set_adapter_cvec
    assert set_cvec(ctx.handle, data, len(values), placed.n_embd, 1, placed.n_layer - 1) == 0
    try:
        ctx.clear()
        theirs = ctx.decode(sequence(TOKENS))
    finally:
        set_cvec(ctx.handle, None, 0, placed.n_embd, 1, placed.n_layer - 1)
    if ON_DEVICE:
        assert difference(ours, theirs) < TOLERANCE
    else:
        assert np.array_equal(ours, theirs)
    ctx.clear()
    assert difference(ctx.decode(sequence(TOKENS)), theirs) > 1e-2


def test_errors_are_the_packages(placed: Placed) -> None:
    ctx, handle = placed.ctx, placed.ctx.handle
    native = ctx.native
    wide = random_part(0, "block", "add", placed.n_embd + 1)
    with pytest.raises(AdapterMismatchError, match=f"v: the vector is {placed.n_embd + 1} wide"):
        native.vector_add(handle, [wide], placed.n_embd + 1, "v")
    with pytest.raises(InputError, match=f"v: expected directions \\[n, {placed.n_embd}\\], found"):
        native.vector_add(handle, [wide], placed.n_embd, "v")
    late = random_part(placed.n_layer, "block", "add", placed.n_embd)
    with pytest.raises(AdapterMismatchError, match=f"layer {placed.n_layer} is not in"):
        placed.add(ctx, [late])
    slot = placed.add(ctx, [random_part(0, "block", "add", placed.n_embd)])
    pair = native.combine(handle, [slot, placed.adapters[0]], [1.0, 1.0])
    with pytest.raises(AdapterInUseError, match="part of a combination"):
        native.adapter_remove(handle, slot, "v")
    ctx.activate(3, 0, pair)
    with pytest.raises(AdapterInUseError, match="is active on a sequence"):
        native.adapter_remove(handle, pair, "v")
    assert native.slot_at(handle, 3, 5) == (pair, 1.0)
    ctx.deactivate()
    native.adapter_remove(handle, pair, "v")
    native.adapter_remove(handle, slot, "v")


def test_sequences_that_differ_cannot_share_a_token(placed: Placed) -> None:
    slot = placed.add(placed.ctx, [random_part(0, "block", "add", placed.n_embd)])
    placed.ctx.activate(1, 0, slot)
    status, _ = placed.ctx.try_decode([(5, 0, (0, 1))])
    assert status == -1
    assert "different adapters active" in placed.ctx.native.last_error()
    placed.ctx.deactivate()
    placed.ctx.native.adapter_remove(placed.ctx.handle, slot, "v")
