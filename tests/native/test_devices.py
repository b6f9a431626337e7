"""Layers on a device, some or all, and cells beside them or in the host's memory.

With ALORA_TEST_BACKEND=rpc there are two devices whose memory is not the host's (tests/backends);
on the CPU alone the same is asked of the one place there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest

from tests.backends import ON_DEVICE
from tests.support.tiny_models import tiny_model

from .harness import F32, Base, Context, Logits, difference, sequence, write_adapter

TOLERANCE = 5e-3  # as tests of attention have it: upstream's flash attention sums V in F16
TOKENS = [int(t) for t in np.random.default_rng(17).integers(3, 300, 24)]
ALL = 99  # layers
RANKS = (8, 33)  # none fills what kernels take at a time


@dataclass
class Placed:
    """A base with some layers on the device, a context, and what stock's LoRA makes of them."""

    base: Base
    ctx: Context
    slots: list[int]
    some_cells_on_the_host: bool
    expected: list[Logits] = field(default_factory=list)  # the base's, then each adapter's


@pytest.fixture(
    scope="module",
    params=product(("llama", "granitemoe", "granitemoehybrid"), (0, 1, ALL), (True, False)),
    ids=lambda p: f"{p[0]}-{p[1]}-layers-cells-{'with-them' if p[2] else 'on-the-host'}",
)
def placed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Placed]:
    family, n_gpu_layers, cells_on_device = request.param
    folder, model = tmp_path_factory.mktemp(family), tiny_model(family)
    adapters = [write_adapter(folder / f"{r}.gguf", model, rank=r, seed=r) for r in RANKS]
    base = Base(model.gguf, n_gpu_layers=n_gpu_layers)

    def context() -> Context:
        return base.context(flash_cells=F32, cells_on_device=cells_on_device)

    ctx = context()
    on_the_host = not ON_DEVICE or not cells_on_device or n_gpu_layers < ALL
    this = Placed(base, ctx, [ctx.add(path) for path in adapters], on_the_host)
    for adapter in (None, *adapters):
        stock = context()
        if adapter is not None:
            stock.stock_lora(adapter, 1.0)
        this.expected.append(stock.decode(sequence(TOKENS)))
        stock.close()
    yield this
    ctx.close()
    base.close()


@pytest.fixture(autouse=True)
def nothing_active(placed: Placed) -> None:
    placed.ctx.deactivate()
    placed.ctx.clear()


def test_one_adapter(placed: Placed) -> None:
    for slot, expected in zip(placed.slots, placed.expected[1:], strict=True):
        placed.ctx.clear()
        placed.ctx.activate(0, 0, slot)
        assert difference(placed.ctx.decode(sequence(TOKENS)), expected) < TOLERANCE


def test_one_token_at_a_time(placed: Placed) -> None:
    placed.ctx.activate(0, 0, placed.slots[0])
    rows = [placed.ctx.decode([(t, i, (0,))]) for i, t in enumerate(TOKENS)]
    assert difference(np.concatenate(rows), placed.expected[1]) < TOLERANCE


def test_base_and_adapters_in_one_batch(placed: Placed) -> None:
    """More tokens than upstream leaves to the CPU whose weights have to be copied to a device."""
    for seq, slot in enumerate(placed.slots, start=1):
        placed.ctx.activate(seq, 0, slot)
    before = placed.ctx.stats()
    logits = placed.ctx.decode([(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(3)])
    for seq, expected in enumerate(placed.expected):
        assert difference(logits[seq::3], expected) < TOLERANCE
    after = placed.ctx.stats()
    assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)


def test_our_attention_is_used_where_cells_are_the_hosts(placed: Placed) -> None:
    """So that the tests above are of it, and of upstream's elsewhere."""
    placed.ctx.activate(0, 0, placed.slots[0])
    placed.ctx.decode(sequence(TOKENS))
    used = placed.ctx.stats().n_attention > 0
    assert used == placed.some_cells_on_the_host
