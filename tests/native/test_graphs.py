"""The three graph shapes against stock's own LoRA, on equal weights and equal batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

from alora_gguf.errors import AdapterInUseError, AdapterMismatchError, InputError
from alora_gguf.gguf.header import read_header
from tests.backends import CHOOSES_FROM_FEW
from tests.support.make_gguf import adapter_keys, make_gguf
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

from .harness import Base, Context, Logits, difference, sequence, write_adapter

# measured: at most 9e-7; for gemma3, whose GELU is a table of half-precision numbers and whose
# logits are capped, 9e-5, and with BLAS on AVX-512 4.3e-4
TOLERANCE = 1e-3
RANKS = (8, 16, 5)  # one of them padded
TOKENS = [int(t) for t in np.random.default_rng(7).integers(3, 300, 24)]
N = len(TOKENS)


@dataclass
class Setup:
    """A family's base, a context with an adapter of each rank, and what stock makes of them."""

    base: Base
    ctx: Context
    slots: list[int]
    adapters: list[Path]
    expected: list[Logits] = field(default_factory=list)  # [0] is the base's, then each adapter's

    def stock(self, adapter: Path | None, scale: float = 1.0) -> Logits:
        ctx = self.base.context()
        if adapter is not None:
            ctx.stock_lora(adapter, scale)
        logits = ctx.decode(sequence(TOKENS))
        ctx.close()
        return logits


def set_up(family: str, folder: Path, **options: bool) -> Iterator[Setup]:
    model = tiny_model(family)
    adapters = [
        write_adapter(folder / f"{rank}.gguf", model, rank=rank, seed=rank, **options)
        for rank in RANKS
    ]
    base = Base(model.gguf)
    ctx = base.context()
    setup = Setup(base, ctx, [ctx.add(path) for path in adapters], adapters)
    setup.expected = [setup.stock(None), *(setup.stock(path) for path in adapters)]
    yield setup
    ctx.close()
    base.close()


@pytest.fixture(scope="module", params=list(FAMILIES))
def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    yield from set_up(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def nothing_active(request: pytest.FixtureRequest) -> None:
    if "setup" in request.fixturenames:
        ctx = request.getfixturevalue("setup").ctx
        ctx.deactivate()
        ctx.clear()


def test_idle_is_stock(setup: Setup) -> None:
    assert np.array_equal(setup.ctx.decode(sequence(TOKENS)), setup.expected[0])


def test_an_adapter_changes_much(setup: Setup) -> None:
    for expected in setup.expected[1:]:
        assert difference(expected, setup.expected[0]) > 0.1


def test_one_slot(setup: Setup) -> None:
    for slot, expected in zip(setup.slots, setup.expected[1:], strict=True):
        setup.ctx.clear()
        setup.ctx.activate(0, 0, slot)
        assert difference(setup.ctx.decode(sequence(TOKENS)), expected) < TOLERANCE


def test_one_slot_scaled(setup: Setup) -> None:
    setup.ctx.activate(0, 0, setup.slots[1], 0.5)
    expected = setup.stock(setup.adapters[1], 0.5)
    assert difference(setup.ctx.decode(sequence(TOKENS)), expected) < TOLERANCE


def test_mixed(setup: Setup) -> None:
    """Base and three adapters in one batch, tokens interleaved."""
    for seq, slot in enumerate(setup.slots, start=1):
        setup.ctx.activate(seq, 0, slot)
    batch = [(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(4)]
    logits = setup.ctx.decode(batch)
    for seq, expected in enumerate(setup.expected):
        assert difference(logits[seq::4], expected) < TOLERANCE


def test_mixed_scaled(setup: Setup) -> None:
    scales = (0.5, 2.0, -1.0)
    for seq, (slot, scale) in enumerate(zip(setup.slots, scales, strict=True)):
        setup.ctx.activate(seq, 0, slot, scale)
    logits = setup.ctx.decode([t for seq in range(3) for t in sequence(TOKENS, seq)])
    for seq, scale in enumerate(scales):
        expected = setup.stock(setup.adapters[seq], scale)
        assert difference(logits[seq * N : (seq + 1) * N], expected) < TOLERANCE


def test_fewer_outputs_than_tokens(setup: Setup) -> None:
    """After the last layer picks its rows, each still finds its own slot."""
    for seq, slot in enumerate(setup.slots, start=1):
        setup.ctx.activate(seq, 0, slot)
    wanted = (3, N - 1)
    batch = [t for seq in range(4) for t in sequence(TOKENS, seq)]
    logits = setup.ctx.decode(batch, lambda token: token[1] in wanted)
    for seq, expected in enumerate(setup.expected):
        assert difference(logits[2 * seq : 2 * seq + 2], expected[list(wanted)]) < TOLERANCE


def test_activation_in_the_middle_of_a_batch(setup: Setup) -> None:
    """One batch across the activation equals one before and one after it."""
    setup.ctx.activate(0, 10, setup.slots[1])
    whole = setup.ctx.decode(sequence(TOKENS))
    setup.ctx.clear()
    parts = [
        setup.ctx.decode(sequence(TOKENS[:10])),
        setup.ctx.decode(sequence(TOKENS[10:], start=10)),
    ]
    assert difference(whole, np.concatenate(parts)) < TOLERANCE
    assert difference(whole[:10], setup.expected[0][:10]) < TOLERANCE
    assert difference(whole[10:], setup.expected[0][10:]) > 0.1


def test_switching_reserves_nothing(setup: Setup) -> None:
    ctx = setup.ctx
    for seq, slot in enumerate(setup.slots):
        ctx.activate(seq, 0, slot)
    ctx.decode([t for seq in range(3) for t in sequence(TOKENS, seq)])
    before = ctx.stats()
    for i in range(100):
        ctx.deactivate()
        ctx.clear()
        ctx.activate(0, i % N, setup.slots[i % 3], 1.0 + i % 2)
        ctx.activate(1, 0, setup.slots[(i + 1) % 3])
        ctx.decode([*sequence(TOKENS[:12]), *sequence(TOKENS[:12], 1)][: 12 + i % 13])
    after = ctx.stats()
    assert after.n_reserves == before.n_reserves
    assert after.compute_bytes == before.compute_bytes


def test_graphs_are_reused_while_the_plan_stays(setup: Setup) -> None:
    """Which of two adapters a sequence uses is an input: swapping them builds no graph."""
    ctx = setup.ctx
    ctx.activate(0, 0, setup.slots[0])
    ctx.activate(1, 0, setup.slots[1])
    ctx.decode([(5, 0, (0,)), (5, 0, (1,))])
    ctx.decode([(6, 1, (0,)), (6, 1, (1,))])
    before = ctx.stats().n_graphs
    ctx.activate(0, 0, setup.slots[2])
    ctx.activate(1, 0, setup.slots[0])
    ctx.decode([(7, 2, (0,)), (7, 2, (1,))])
    assert ctx.stats().n_graphs == before


def test_a_token_of_two_sequences(setup: Setup) -> None:
    ctx = setup.ctx
    if setup.base.llama.llama_model_is_hybrid(setup.base.handle):
        return  # recurrent memories take no shared tokens, with or without adapters
    ctx.activate(0, 0, setup.slots[0])
    ctx.activate(1, 0, setup.slots[0])
    ctx.activate(1, N, setup.slots[1])
    shared = ctx.decode([(t, i, (0, 1)) for i, t in enumerate(TOKENS)])
    assert difference(shared, setup.expected[1]) < TOLERANCE

    status, _ = ctx.try_decode([(5, N, (0, 1))])
    assert status == -1
    assert "sequences" in ctx.native.last_error()
    assert "give each its own token" in ctx.native.last_error()
    ctx.decode([(5, N, (0,)), (5, N, (1,))])  # and nothing was lost


# the rest needs one family only ------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return tiny_model("llama")


@pytest.fixture
def ctx(llama: TinyModel) -> Iterator[Context]:
    base = Base(llama.gguf)
    ctx = base.context()
    yield ctx
    ctx.close()
    base.close()


@pytest.mark.parametrize("family", ["llama", "granite"])  # granite's output is tied
def test_embeddings(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    paths = [
        write_adapter(
            tmp_path / f"{seed}.gguf", model, rank=8, seed=seed, embedding=True, only="attn_q"
        )
        for seed in (1, 2)
    ]
    plain = write_adapter(tmp_path / "plain.gguf", model, rank=8, seed=1, only="attn_q")
    base = Base(model.gguf)
    ctx = base.context()
    slots = [ctx.add(path) for path in paths]
    expected = []
    for slot in slots:
        ctx.clear()
        ctx.activate(0, 0, slot)
        expected.append(ctx.decode(sequence(TOKENS)))

    ctx.deactivate()
    ctx.clear()
    ctx.activate(0, 0, slots[0])
    ctx.activate(1, 0, slots[1])
    logits = ctx.decode([*sequence(TOKENS), *sequence(TOKENS, 1)])
    for seq in (0, 1):
        assert difference(logits[seq * N : (seq + 1) * N], expected[seq]) < TOLERANCE

    stock = base.context()
    if family == "llama":  # stock aborts where the output is tied
        stock.stock_lora(paths[0], 1.0)
        assert difference(expected[0], stock.decode(sequence(TOKENS))) < TOLERANCE
    else:
        stock.stock_lora(plain, 1.0)
        assert difference(expected[0], stock.decode(sequence(TOKENS))) > 0.05
    stock.close()
    ctx.close()
    base.close()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_types(llama: TinyModel, ctx: Context, tmp_path: Path, dtype: str) -> None:
    path = write_adapter(
        tmp_path / "a.gguf", llama, rank=32, dtype=gguf.GGMLQuantizationType[dtype]
    )
    ctx.activate(0, 0, ctx.add(path))
    stock = ctx.base.context()
    stock.stock_lora(path, 1.0)
    # stock multiplies activations quantized to Q8_0, or rounded to BF16, with those
    tolerance = 5e-3 if dtype in ("Q8_0", "BF16") else TOLERANCE
    assert difference(ctx.decode(sequence(TOKENS)), stock.decode(sequence(TOKENS))) < tolerance
    stock.close()


def test_types_mix(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    """F16, then BF16: stacks on a device turn to F32, and the first adapter survives the move."""
    paths = [
        write_adapter(tmp_path / f"{t}.gguf", llama, rank=8, dtype=gguf.GGMLQuantizationType[t])
        for t in ("F16", "BF16")
    ]
    first = ctx.add(paths[0])
    ctx.activate(0, 0, first)
    before = ctx.decode(sequence(TOKENS))
    ctx.add(paths[1])
    ctx.clear()
    assert difference(ctx.decode(sequence(TOKENS)), before) < 1e-3


def test_growing_reserves_once(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    def add(rank: int, only: str = "") -> int:
        """The graphs that adding an adapter reserves."""
        path = write_adapter(tmp_path / f"{rank}{only}.gguf", llama, rank=rank, only=only)
        before = ctx.stats().n_reserves
        ctx.add(path)
        return ctx.stats().n_reserves - before

    fresh = ctx.base.context()
    once = fresh.stats().n_reserves
    fresh.close()

    assert 0 < add(16, "attn") <= once  # the first targets
    assert add(16, "attn_q") == 0
    assert add(4, "attn") == 0
    assert 0 < add(40, "attn") <= once  # a larger rank
    assert 0 < add(8, "ffn") <= once  # more targets
    assert ctx.stats().n_adapters == 5


def test_room_made_beforehand(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", llama, rank=8)
    ctx.native.bank_reserve(ctx.handle, 12, 32)
    ctx.add(path)
    before = ctx.stats().n_reserves
    ctx.add(write_adapter(tmp_path / "b.gguf", llama, rank=32, seed=1))
    for _ in range(10):
        ctx.add(path)
    assert ctx.stats().n_reserves == before
    assert ctx.stats().n_slots == 13


def test_adapters_survive_growing(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    first = ctx.add(write_adapter(tmp_path / "a.gguf", llama, rank=8, only="attn"))
    ctx.activate(0, 0, first)
    before = ctx.decode(sequence(TOKENS))
    for seed in range(6):  # past the first slots, with a larger rank and more targets
        ctx.add(write_adapter(tmp_path / "b.gguf", llama, rank=20, seed=seed))
    ctx.clear()
    assert difference(ctx.decode(sequence(TOKENS)), before) < TOLERANCE


def test_removing(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    wide = ctx.add(write_adapter(tmp_path / "a.gguf", llama, rank=8))
    narrow = write_adapter(tmp_path / "b.gguf", llama, rank=8, seed=1, only="attn_q")
    ctx.activate(3, 5, wide)
    with pytest.raises(AdapterInUseError, match="active on a sequence"):
        ctx.native.adapter_remove(ctx.handle, wide, "a")
    ctx.deactivate(3)
    ctx.native.adapter_remove(ctx.handle, wide, "a")
    with pytest.raises(InputError, match=f"slot {wide} holds no adapter"):
        ctx.native.adapter_remove(ctx.handle, wide, "a")
    with pytest.raises(InputError, match="holds no adapter"):
        ctx.activate(0, 0, wide)

    # the slot is taken again, and nothing of the old adapter is left in it, alone or mixed
    assert ctx.add(narrow) == wide
    stock = ctx.base.context()
    stock.stock_lora(narrow, 1.0)
    expected = stock.decode(sequence(TOKENS))
    stock.close()
    other = ctx.add(write_adapter(tmp_path / "c.gguf", llama, rank=8, seed=2))
    ctx.activate(0, 0, wide)
    assert difference(ctx.decode(sequence(TOKENS)), expected) < TOLERANCE
    ctx.clear()
    ctx.activate(1, 0, other)
    logits = ctx.decode([*sequence(TOKENS), *sequence(TOKENS, 1)])
    assert difference(logits[:N], expected) < TOLERANCE


def test_targets_that_the_graph_never_multiplies(
    llama: TinyModel, ctx: Context, tmp_path: Path
) -> None:
    """A norm's weight is in the base, but an adapter on it would do nothing."""
    path = tmp_path / "norm.gguf"
    shapes = {"lora_a": (8, 128), "lora_b": (1, 8)}
    tensors = {f"blk.0.attn_norm.weight.{k}": np.ones(s, np.float32) for k, s in shapes.items()}
    make_gguf(path, adapter_keys(8.0), tensors)
    before = ctx.stats()
    with pytest.raises(AdapterMismatchError, match="an adapter on it would do nothing"):
        ctx.add(path)
    assert ctx.stats() == before


def test_an_adapter_of_another_base(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "a.gguf", tiny_model("qwen2"), rank=8)
    with pytest.raises(
        AdapterMismatchError, match="for architecture 'qwen2', this base is 'llama'"
    ):
        ctx.add(other)


def test_batches_upstream_would_abort_on(ctx: Context) -> None:
    status, _ = ctx.try_decode(sequence([5] * 300))
    assert status == -1
    assert "300 tokens exceeds n_batch = 256" in ctx.native.last_error()
    ctx.decode(sequence(TOKENS))


def test_arguments(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    slot = ctx.add(write_adapter(tmp_path / "a.gguf", llama, rank=8))
    for seq, first, s, scale, text in [
        (-1, 0, slot, 1.0, "sequence -1 is not in"),
        (256, 0, slot, 1.0, "sequence 256 is not in"),
        (0, -1, slot, 1.0, "at least 0"),
        (0, 0, slot + 1, 1.0, "holds no adapter"),
        (0, 0, -1, 1.0, "holds no adapter"),
        (0, 0, slot, float("nan"), "finite"),
        (0, 0, slot, float("inf"), "finite"),
    ]:
        with pytest.raises(InputError, match=text):
            ctx.activate(seq, first, s, scale)
    for n_adapters, rank in [(0, 8), (2000, 8), (4, 0), (4, 5000)]:
        with pytest.raises(InputError, match="n_adapters should be in"):
            ctx.native.bank_reserve(ctx.handle, n_adapters, rank)
    lib = ctx.native._lib
    assert lib.alora_activate(None, 0, 0, slot, 1.0) == -1
    assert lib.alora_adapter_add(None, b"x", 1) == -1
    assert lib.alora_adapter_add(ctx.handle, None, 0) == -1
    assert lib.alora_stats_get(ctx.handle, None) == -1


def test_more_matrices_than_a_device_chooses_from(tmp_path: Path) -> None:
    """Metal aborts beyond 1024 of them, as what is behind RPC may; others have no such limit."""
    model = tiny_model("granitemoe")
    path = write_adapter(tmp_path / "a.gguf", model, rank=8, only="exps")
    base = Base(model.gguf)
    ctx = base.context()
    n_expert = int(read_header(model.gguf).metadata["granitemoe.expert_count"])
    room = 1024 // n_expert - 1
    ctx.native.bank_reserve(ctx.handle, 1000, 8)  # before it is known what for
    slot = ctx.add(path)
    assert ctx.stats().n_slots == (room + 1 if CHOOSES_FROM_FEW else 1001)
    ctx.activate(0, 0, slot)
    before = ctx.decode(sequence(TOKENS))
    if CHOOSES_FROM_FEW:
        with pytest.raises(AdapterMismatchError, match=f"there is room for {room} adapters"):
            ctx.native.bank_reserve(ctx.handle, room + 1, 8)
    ctx.clear()
    assert np.array_equal(ctx.decode(sequence(TOKENS)), before)
    ctx.close()
    base.close()


def test_what_overflows_for_the_base_alone(llama: TinyModel, tmp_path: Path) -> None:
    """A·x of a token that the adapter leaves alone may be infinite: nothing of it is added."""
    first, then = 5, 6  # a token of the base, and one of the adapter
    x = _first_inputs(llama, [first, then])
    one, other = next(
        (i, j)
        for i, j in np.ndindex(x.shape[1], x.shape[1])
        if abs(x[1, j] * x[0, i] - x[1, i] * x[0, j]) > 4 * abs(x[1, i] * x[1, j]) > 0.04
    )
    a = np.zeros((8, x.shape[1]), np.float32)  # at right angles to the adapted token
    size = 3e38 / 2 / abs(x[1, one] * x[1, other])
    a[:, one], a[:, other] = size * x[1, other], -size * x[1, one]
    with np.errstate(over="ignore"):
        assert np.isinf(a @ x[0]).all()
        assert np.isfinite(a @ x[1]).all()
    tensors = {
        "blk.0.attn_q.weight.lora_a": a,
        "blk.0.attn_q.weight.lora_b": np.full((x.shape[1], 8), 1e-38, np.float32),
    }
    path = make_gguf(tmp_path / "a.gguf", adapter_keys(8.0), tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALORA_CPU_PATH", "standard")
        base = Base(llama.gguf)
        ctx = base.context()
    slot = ctx.add(path)
    batch = [(first, 0, (0,)), (then, 0, (1,))]
    idle = ctx.decode(batch)
    ctx.clear()
    ctx.activate(1, 0, slot)
    logits = ctx.decode(batch)
    assert difference(logits[:1], idle[:1]) < TOLERANCE  # which NaN is not
    ctx.close()
    base.close()


def _first_inputs(model: TinyModel, tokens: list[int]) -> Logits:
    """What the first layer multiplies with for these tokens."""
    tensors = {t.name: t.data for t in gguf.GGUFReader(str(model.gguf)).tensors}
    x = np.asarray(tensors["token_embd.weight"], np.float32)[tokens]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
    return np.asarray(x * tensors["blk.0.attn_norm.weight"], np.float32)


def test_reading_back(llama: TinyModel, ctx: Context, tmp_path: Path) -> None:
    slot = ctx.add(write_adapter(tmp_path / "a.gguf", llama, rank=8))
    ctx.activate(2, 7, slot, 0.5)
    ctx.activate(2, 9, 0)
    at = [ctx.native.slot_at(ctx.handle, 2, pos) for pos in (6, 7, 8, 9)]
    assert at == [(0, 1.0), (slot, 0.5), (slot, 0.5), (0, 1.0)]
