"""Batches and sequences; a failed call leaves nothing, and a model that nobody has is freed."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.bank import MAX_NAME
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Logits, Run
from alora_gguf.engine.loading import Tuning
from alora_gguf.engine.native import Native
from alora_gguf.gguf.adapter import MAX_RANK
from tests.support import inside, tiny_base
from tests.support.files import Files
from tests.support.make_gguf import adapter_keys, make_gguf


@pytest.fixture
def engine(files: Files) -> Iterator[Engine]:
    with files.model(n_ctx=256, n_seq_max=6) as model:
        yield inside.engine(model)


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


def test_a_model_that_nobody_has_is_freed_without_the_cycle_collector(files: Files) -> None:
    """Whatever was done with it; its sessions were closed, or dropped like it."""

    def conversations(model: ag.Model) -> None:
        closed = model.session()
        closed.append([1] * 20)
        closed.close()
        with model.session() as again:
            assert again.sync([1] * 24).reused

    def amid_a_reply(model: ag.Model) -> None:
        session = model.session()
        session.append([1, 2, 3])
        next(session.generate(max_tokens=9))

    def calls_that_fail(model: ag.Model) -> None:
        session, cancel = model.session(), ag.CancelToken()
        session.append([1, 2, 3])
        with contextlib.suppress(ag.CacheFullError):
            session.append([1] * 2000)
        with contextlib.suppress(ag.DecodeError):
            inside.engine(model).decode([Run(inside.sequence(session).seq, [10**6])])
        cancel.cancel()
        with contextlib.suppress(ag.CancelledError):
            session.append([4], cancel=cancel)

    def questions(model: ag.Model) -> None:
        session = model.session()
        session.append([1, 2, 3])
        session.invoke_many([ag.Invocation("sure", [5]), ag.Invocation(None, [6])])
        chat = model.chat(template="{{ messages[0].content }}")
        chat.add("what?")
        chat.say("what?", max_tokens=2)

    gc.disable()
    try:
        for use in (conversations, amid_a_reply, calls_that_fail, questions):
            model = files.model(options=ag.ContextOptions(n_pooled=4))
            context = weakref.ref(inside.engine(model).context)
            use(model)
            model = files.model()
            assert context() is None, use.__name__
            model.close()
    finally:
        gc.enable()


# The bank's memory --------------------------------------------------------------------------------


def large_rank(path: Path, rank: int, others: int) -> Path:
    """An adapter whose first target has rank `rank`, the rest of the linear layers `others`."""
    tensors = {}
    for layer in range(tiny_base.N_LAYER):
        for name, (n_in, n_out) in tiny_base.TARGETS.items():
            r = rank if (layer, name) == (0, "attn_q") else others
            for half, shape in (("a", (r, n_in)), ("b", (n_out, r))):
                if r:
                    values = np.full(shape, 1e-3, np.float16)
                    tensors[f"blk.{layer}.{name}.weight.lora_{half}"] = values
    return make_gguf(path, adapter_keys(16.0), tensors, architecture="llama")


def bank_of(files: Files, *adapters: Path) -> int:
    """Bytes of the bank after loading them one after another."""
    with files.model(adapters={}) as model:
        for i, path in enumerate(adapters):
            model.load_adapter(f"a{i}", path)
        return model.stats().bank_bytes


def test_one_large_rank_does_not_become_every_targets(files: Files, tmp_path: Path) -> None:
    """Whichever file has it, and whichever comes first: what is stored is what the files hold."""
    small = large_rank(tmp_path / "small.gguf", 1, 1)
    only = large_rank(tmp_path / "only.gguf", MAX_RANK, 0)
    both = large_rank(tmp_path / "both.gguf", MAX_RANK, 1)
    taken = {path: bank_of(files, path) for path in (small, only, both)}
    assert taken[both] <= 1.01 * (taken[small] + taken[only])
    for adapters in ([only, small], [small, only], [small, both], [only, both]):
        assert bank_of(files, *adapters) == sum(taken[path] for path in adapters)
    together = {"small": small, "only": only, "both": both}
    with files.model(adapters=together) as model:
        assert list(model.adapters) == list(together)
        assert model.stats().bank_bytes == sum(taken.values())


def test_adapters_that_are_loaded_together_reserve_once(files: Files, tmp_path: Path) -> None:
    ranks = [4, 32, 8, 16]
    paths = {f"r{r}": large_rank(tmp_path / f"{r}.gguf", r, r) for r in ranks}

    def reserves(adapters: dict[str, Path]) -> int:
        with files.model(adapters=adapters) as model:
            return model.stats().n_reserves

    assert reserves(paths) == reserves({"r32": paths["r32"]})


def test_adapters_of_which_one_fails_leave_nothing(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger one, which is added first, is removed again."""
    large = large_rank(tmp_path / "large.gguf", 32, 32)
    add = Native.adapter_add

    def fail(native: Native, ctx: int, gguf: bytes, what: str) -> int:
        if what == str(files.lora):
            raise ag.AdapterError("cannot be added")
        return add(native, ctx, gguf, what)

    with files.model(adapters={}) as model:
        bank = inside.runtime(model).bank
        monkeypatch.setattr(Native, "adapter_add", fail)
        with pytest.raises(ag.AdapterError, match="cannot be added"):
            bank.load({"lora": files.lora, "large": large})
        assert (list(model.adapters), model.stats().n_adapters) == ([], 0)
        monkeypatch.undo()
        bank.load({"lora": files.lora, "large": large})
        assert list(model.adapters) == ["lora", "large"]


NAMES = ["", "a\0b", "a\nb", "\x1b[2J", "\u202ea", 5, None, b"a", "x" * (MAX_NAME + 1)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_names_that_no_adapter_can_have(files: Files, name: Any) -> None:
    problem = "name must be (1 to 256 printable characters|a string), got "
    with pytest.raises(ag.InputError, match=problem) as caught:
        files.model(adapters={name: files.lora})
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
    with files.model(adapters={}) as model:
        with pytest.raises(ag.InputError, match=problem):
            model.load_adapter(name, files.lora)
        assert (list(model.adapters), model.stats().n_adapters) == ([], 0)


def test_names_that_an_adapter_can_have(files: Files) -> None:
    names = ["x" * MAX_NAME, " ", "a b/c.gguf", "Ä漢😊"]
    with files.model(adapters=dict.fromkeys(names, files.lora)) as model:
        assert list(model.adapters) == names
        session = model.session()
        session.append("Hi")
        verdicts = [session.invoke(name, max_tokens=1, temperature=0) for name in names]
        assert len({verdict.text for verdict in verdicts}) == 1
