"""Conversations: what is reused, what generation leaves behind, and every way to end it."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.context import Engine
from alora_gguf.engine.scheduler import Scheduler
from alora_gguf.engine.tokens import BASE, CachedTokens, Provenance, Spans
from tests.support import inside, tiny_base
from tests.support.batches import amid_batch
from tests.support.files import EXACT, Files
from tests.support.gguf_bytes import tensor_array

GREEDY = ag.Sampling(temperature=0.0)
TEXT = "<|user|>Is the answer certain?<|end|><|assistant|>"


def sound(session: ag.Session) -> None:
    """Python and llama.cpp agree about the cells, and the logits are those of a fresh reading."""
    engine = inside.engine(session.model)
    n = session.cached
    seq, record = inside.sequence(session).seq, inside.sequence(session).cached
    assert engine.cells.length(seq) == n
    llama = engine.native.llama
    assert llama.llama_memory_seq_pos_max(engine.context.memory, seq) == n - 1
    assert record.tokens == session.tokens[:n]


def fresh(files: Files, tokens: list[int], **use: object) -> np.ndarray:  # type: ignore[type-arg]
    """The logits after `tokens`, computed from scratch in a model of its own."""
    with files.model() as model:
        session = model.session()
        session.sync(tokens, **use)  # type: ignore[arg-type]
        return inside.last_logits(session).copy()


def close_to(a: np.ndarray, b: np.ndarray) -> bool:  # type: ignore[type-arg]
    return float(np.abs(a - b).max()) < 1e-4 * float(np.abs(b).max())


# Reading and reuse -------------------------------------------------------------------------------


def test_append_reads_only_what_is_new(model: ag.Model) -> None:
    session = model.session()
    first = session.append("Hello")
    assert session.tokens[0] == tiny_base.BOS
    assert (first.reused, first.evaluated) == (0, len(session.tokens))
    n = len(session.tokens)
    second = session.append(" there")
    assert second.reused == n
    assert second.evaluated == len(session.tokens) - n
    assert second.reuse_note == ""
    assert session.text == "<|bos|>Hello there"
    sound(session)


def test_text_and_tokens_are_the_same_thing(model: ag.Model) -> None:
    by_text, by_token = model.session(), model.session()
    by_text.append(TEXT)
    by_token.append([tiny_base.BOS, *model.tokenize(TEXT)])
    assert by_text.tokens == by_token.tokens
    said = [each.generate(max_tokens=4, temperature=0).read() for each in (by_text, by_token)]
    assert said[0] == said[1]
    assert model.detokenize(model.tokenize("Grüße €")) == "Grüße €"


def test_sync_reuses_the_longest_common_prefix(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.sync(list(range(50)))
    timings = session.sync([*range(30), 7, 7, 7])
    assert (timings.reused, timings.evaluated) == (30, 3)
    assert timings.reuse_note == "the conversation differs from the cached one at token 30"
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, [*range(30), 7, 7, 7]))


def test_rewind_and_read_on(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.sync(list(range(40)))
    session.rewind(10)
    assert session.tokens == list(range(10))
    sound(session)
    session.append([3, 4])
    assert close_to(inside.last_logits(session), fresh(files, [*range(10), 3, 4]))
    with pytest.raises(ag.InputError, match=r"n must be an integer in \[0, 12\], got 13"):
        session.rewind(13)


def test_adapted_cells_are_not_taken_for_base_cells(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    n = len(session.tokens)
    session.append("<certainty>", adapter="sure")
    reply = session.generate(max_tokens=5, sampling=GREEDY, adapter="sure")
    reply.read()
    identity = ag.AdapterFile.read(files.alora).identity
    assert session.provenance == ((0, BASE), (n, Provenance(identity, 1.0)))
    timings = session.append(" and on")
    assert timings.reused == n
    assert "computed by an adapter" in timings.reuse_note
    assert session.provenance == ((0, BASE),)
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def test_the_same_adapter_and_scale_reuses_its_own_cells(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT + "<certainty>ab", adapter="sure")
    n = len(session.tokens)
    assert session.append("cd", adapter="sure").reused == n
    n = len(session.tokens)
    assert session.append("ef", adapter="sure", scale=0.5).reused < n
    assert session.append("gh", adapter="other").reused < n


def test_the_same_weights_under_another_name_share_cells(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT + "<certainty>ab", adapter="sure")
    n = len(session.tokens)
    model.load_adapter("again", files.alora)
    assert session.append("cd", adapter="again").reused == n


def test_other_weights_under_the_same_name_share_nothing(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    session = model.session()
    session.append(TEXT + "<certainty>ab", adapter="sure")
    at = session.provenance[1][0]
    before = inside.last_logits(session).copy()
    changed = tiny_base.write_adapter(tmp_path / "s.gguf", seed=77, invocation=files.invocation)
    model.unload_adapter("sure")
    model.load_adapter("sure", changed)
    tokens = session.tokens
    timings = session.sync(tokens, adapter="sure")
    assert timings.reused == at
    assert not close_to(inside.last_logits(session), before)


def test_a_plain_lora_equals_the_merged_weights(files: Files, tmp_path: Path) -> None:
    """An oracle that shares no code: W + B A written into the base's file."""
    from alora_gguf.gguf.header import read_header

    base, lora = read_header(files.base), read_header(files.lora)
    merged = {}
    for target in ag.AdapterFile.read(files.lora).targets:
        a = tensor_array(lora, f"{target}.lora_a").astype(np.float64)
        b = tensor_array(lora, f"{target}.lora_b").astype(np.float64)
        weight = tensor_array(base, target) + 0.5 * 16.0 / 16 * (b @ a)
        merged[target] = (weight.astype(np.float32), None)
    path = tiny_base.write_base(tmp_path / "merged.gguf", replace=merged)
    tokens = list(range(30))
    options = replace(EXACT, n_ctx=256, n_threads=1)
    with ag.Model(path, options=options) as model:
        session = model.session()
        session.sync(tokens)
        expected = inside.last_logits(session).copy()
    with ag.Model(files.base, adapters={"lora": files.lora}, options=options) as model:
        session = model.session()
        session.sync(tokens, adapter="lora", scale=0.5)
        assert close_to(inside.last_logits(session), expected)
        session.sync(tokens)
        assert not close_to(inside.last_logits(session), expected)


def test_a_missing_invocation_shows_the_nearest_miss(model: ag.Model) -> None:
    session = model.session()
    with pytest.raises(ag.InvocationNotFoundError) as caught:
        session.append("so <certain", adapter="sure")
    text = str(caught.value)
    assert "adapter 'sure'" in text
    assert '60 "<"' in text  # the invocation's first token, with its id
    assert "whose first 6 of 9 tokens agree" in text
    assert session.tokens == []
    with pytest.raises(ag.InvocationNotFoundError, match="not even its first token occurs"):
        session.append("so", adapter="sure")


def test_fork_goes_its_own_way(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    used = inside.cells(model).used()
    other = session.fork()
    assert inside.cells(model).used() == used  # cells are shared
    other.append([1, 2, 3])
    session.append([4, 5])
    for each in (session, other):
        sound(each)
        assert close_to(inside.last_logits(each), fresh(files, each.tokens))
    session.close()
    assert close_to(inside.last_logits(other), fresh(files, other.tokens))
    other.append([6])
    assert close_to(inside.last_logits(other), fresh(files, other.tokens))


# Generation --------------------------------------------------------------------------------------


def test_streaming_and_what_it_leaves(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    prompt = session.tokens
    reply = session.generate(max_tokens=12, sampling=GREEDY)
    pieces = list(reply)
    assert "".join(pieces) == reply.text
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == 12
    assert session.tokens == prompt + reply.tokens
    assert session.cached == len(session.tokens)
    assert reply.timings.generated == 12
    assert (reply.timings.reused, reply.timings.evaluated) == (len(prompt), 0)
    assert reply.timings.first_token is not None
    assert 0 < reply.timings.first_token <= reply.timings.total
    assert (reply.timings.tokens_per_second or 0) > 0
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


@pytest.mark.parametrize("adapter", [None, "sure", "lora"])
def test_a_reply_to_a_prompt_reads_what_sync_does(model: ag.Model, adapter: str | None) -> None:
    def run(one_call: bool) -> tuple[list[int], tuple[int, int, str], Spans]:
        with model.session() as session:
            session.append(TEXT)
            session.generate(max_tokens=4, sampling=GREEDY).read()
            prompt = [*session.tokens[:-2], *model.tokenize(" not so<certainty>")]
            timings, given = None, prompt
            if not one_call:
                timings, given = session.sync(prompt, adapter=adapter), None  # type: ignore[assignment]
            reply = session.generate(prompt=given, max_tokens=5, sampling=GREEDY, adapter=adapter)
            reply.read()
            assert session.tokens == prompt + reply.tokens
            sound(session)
            read = timings or reply.timings
            return reply.tokens, (read.reused, read.evaluated, read.reuse_note), session.provenance

    assert run(True) == run(False)
    assert run(True)[1][2] != ""


def test_a_prompt_that_was_read_is_not_read_again(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    prompt = session.tokens
    first = session.generate(prompt=prompt, max_tokens=5, sampling=GREEDY)
    assert (first.timings.reused, first.timings.evaluated) == (len(prompt), 0)
    first.read()
    second = session.generate(prompt=prompt, max_tokens=5, sampling=GREEDY)
    assert (second.timings.reused, second.timings.evaluated) == (len(prompt) - 1, 1)  # its logits
    assert second.read() == first.text


def test_a_prompt_that_fails_leaves_the_conversation(
    model: ag.Model, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    with pytest.raises(ag.InputError, match="the conversation is empty"):
        session.generate(prompt=[])
    session.append(TEXT)
    before = session.tokens
    bad: list[tuple[type[ag.AloraError], str, list[int], dict[str, Any]]] = [
        (ag.InputError, "conversation is empty", [], {}),
        (ag.InputError, "prompt: token 1 is -1", [1, -1], {}),
        (ag.InvocationNotFoundError, "does not occur", [1], {"adapter": "sure"}),
        (ag.UnknownAdapterError, "no adapter", [1], {"adapter": "none"}),
        (ag.SchemaError, "cannot be used", [1], {"schema": {"type": "x"}}),
        (ag.CacheFullError, "is full", [1] * 2000, {}),
    ]
    for error, said, prompt, options in bad:
        with pytest.raises(error, match=said):
            session.generate(prompt=prompt, **options)
        assert session.tokens == before
        sound(session)

    def broken(self: Scheduler, *arguments: object) -> None:
        raise ag.DecodeError("broken")

    monkeypatch.setattr(Scheduler, "_compute", broken)
    with pytest.raises(ag.DecodeError):
        session.generate(prompt=[*before[:-3], 7, 7], adapter="lora")
    assert session.tokens == before
    monkeypatch.undo()
    session.append("x")
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, [*before, *model.tokenize("x")]))


def test_an_interrupt_after_a_prompt_was_read_leaves_the_conversation(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    session.append(TEXT)
    before = session.tokens
    real, calls = Engine.activate, 0

    def once(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the prompt is read, and the reply begins
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(Engine, "activate", once)
    with pytest.raises(KeyboardInterrupt):
        session.generate(prompt=[*before[:-3], 7, 7], adapter="lora")
    assert calls == 2
    assert session.tokens == before
    sound(session)
    assert session.append("x").reused == 0  # what the adapter computed is none of the base's


def test_greedy_equals_the_largest_logit_each_time(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    tokens = session.tokens
    reply = session.generate(max_tokens=8, sampling=GREEDY)
    reply.read()
    for i, token in enumerate(reply.tokens):
        assert int(np.argmax(fresh(files, tokens + reply.tokens[:i]))) == token


def test_a_seed_repeats_and_another_differs(model: ag.Model) -> None:
    def run(seed: int) -> list[int]:
        session = model.session()
        session.append(TEXT)
        reply = session.generate(max_tokens=20, sampling=ag.Sampling(temperature=2.0, seed=seed))
        reply.read()
        return reply.tokens

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_an_end_token_stops_and_is_not_kept(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    bias = {tiny_base.END: 1000.0}
    reply = session.generate(sampling=ag.Sampling(temperature=0.0, logit_bias=bias))
    assert reply.read() == ""
    assert reply.finish_reason == "stop"
    assert reply.tokens == []
    assert session.text.endswith("<|assistant|>")


def test_a_stop_string_ends_the_text_and_its_tokens_leave(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    n = len(session.tokens)
    grammar = 'root ::= "abc STOP def"'
    reply = session.generate(sampling=ag.Sampling(temperature=0.0, grammar=grammar), stop=["STOP"])
    assert "".join(reply) == "abc "
    assert reply.finish_reason == "stop"
    assert model.detokenize(reply.tokens) == "abc "
    assert session.tokens[n:] == reply.tokens
    assert session.cached == len(session.tokens)
    assert reply.timings.generated == len("abc STOP")
    session.append("x")
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def test_leaving_the_loop_early_keeps_what_was_generated(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)
    with session.generate(max_tokens=50, sampling=GREEDY, adapter="lora") as reply:
        for _ in reply:
            break
    assert reply.finish_reason == "closed"
    assert session.tokens[-len(reply.tokens) :] == reply.tokens
    assert len(reply.tokens) >= 1
    model.unload_adapter("lora")  # no longer in use
    sound(session)
    session.append("x")
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def test_an_exception_in_the_loop_leaves_the_session_usable(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT)

    def show() -> None:
        for _ in session.generate(max_tokens=50, sampling=GREEDY):
            raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError):
        show()
    sound(session)
    session.append("x")
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def test_using_the_session_ends_its_generation(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    reply = session.generate(max_tokens=50, sampling=GREEDY)
    next(reply)
    session.append("x")
    assert reply.finish_reason == "closed"
    assert list(reply) == []
    sound(session)


def test_invoking_does_not_end_a_generation(model: ag.Model) -> None:
    def run(invoke: bool) -> list[int]:
        session = model.session()
        session.append(TEXT)
        reply = session.generate(max_tokens=6, sampling=GREEDY, adapter="lora")
        for _ in reply:
            if invoke:
                session.invoke(ag.Invocation("sure", max_tokens=2))
        return reply.tokens

    assert run(True) == run(False)


@pytest.mark.parametrize("moment", ["before", "after", "while recording"])
def test_ctrl_c_at_any_decode_leaves_the_session_as_it_was(
    model: ag.Model, files: Files, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    session = model.session()
    session.append(TEXT)
    before = session.tokens
    state = session.state()
    place, name = Scheduler, "_compute"
    if moment == "while recording":
        place, name = CachedTokens, "extend"  # type: ignore[assignment]
    real = getattr(place, name)

    def interrupted(*arguments: object) -> None:
        if moment != "before":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupted)
    calls: list[Callable[[], object]] = [
        lambda: session.append(" more"),
        lambda: session.append("<certainty>", adapter="sure"),
        lambda: session.generate(max_tokens=3, sampling=GREEDY).read(),
        lambda: session.invoke(ag.Invocation("sure")),
        lambda: session.invoke_many([ag.Invocation(n) for n in ("sure", "lora", None)]),
    ]
    for call in calls[:3] if moment == "while recording" else calls:  # forks keep no record
        with pytest.raises(KeyboardInterrupt):
            call()
        assert session.tokens == before
        assert inside.cells(model).free_sequences == inside.cells(model).n_seqs - 1
    monkeypatch.undo()
    sound(session)
    assert session.state() == state
    session.append(" more")
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def generate_for_long(session: ag.Session) -> None:
    """Generates until it is interrupted, but not for ever."""
    for _ in range(5000):
        session.generate(max_tokens=20, sampling=GREEDY).read()
        session.rewind(20)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends this process a Ctrl-C.

    A process that was started in the background ignores it, and Python then leaves it so.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself a Ctrl-C signal")
def test_a_real_ctrl_c_while_generating(files: Files, ctrl_c: Callable[[], None]) -> None:
    with files.model(n_ctx=4096) as model:
        session = model.session()
        session.append(TEXT)
        for n in (3, 20, 47):
            with pytest.raises(KeyboardInterrupt), amid_batch(n, ctrl_c):
                generate_for_long(session)
            session.rewind(min(20, len(session.tokens)))
            sound(session)
        session.append("x")
        assert close_to(inside.last_logits(session), fresh(files, session.tokens))


def test_a_failed_read_in_the_middle_of_a_re_read_loses_no_tokens(
    model: ag.Model, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    session.append(TEXT + "<certainty>abc", adapter="sure")
    before = session.tokens

    def broken(self: Scheduler, *arguments: object) -> None:
        raise ag.DecodeError("broken")

    monkeypatch.setattr(Scheduler, "_compute", broken)
    with pytest.raises(ag.DecodeError):
        session.append("x")  # the adapted cells are dropped and cannot be read again
    assert session.tokens == before
    assert session.cached < len(before)
    monkeypatch.undo()
    sound(session)
    assert session.append("x").reused == session.tokens.index(files.invocation[0])
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


@pytest.mark.parametrize("n", [0, 5])
def test_an_interrupt_between_record_and_memory_is_mended(
    model: ag.Model, files: Files, n: int
) -> None:
    session = model.session()
    session.append(TEXT)
    inside.sequence(session).cached.truncate(n)
    session.append("x")
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))
    inside.engine(model).truncate(inside.sequence(session).seq, n)
    session.append("y")
    sound(session)
    assert close_to(inside.last_logits(session), fresh(files, session.tokens))


# Limits ------------------------------------------------------------------------------------------


def test_a_text_longer_than_a_batch_is_read_in_several(files: Files) -> None:
    options = replace(EXACT, n_ctx=512, n_batch=32, n_ubatch=16, n_threads=1)
    tokens = [(7 * i) % 256 for i in range(300)]
    with ag.Model(files.base, options=options) as model:
        session = model.session()
        timings = session.sync(tokens)
        assert timings.evaluated == 300
        assert close_to(inside.last_logits(session), fresh(files, tokens))


def test_a_full_cache_is_an_error_and_changes_nothing(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync(list(range(200)))
        with pytest.raises(ag.CacheFullError, match=r"60 cells needed, 56 of 256 free"):
            session.append(list(range(60)))
        assert session.tokens == list(range(200))
        sound(session)
        with pytest.raises(ag.CacheFullError, match="the KV cache is full"):
            session.generate(max_tokens=100, sampling=GREEDY).read()
        assert 250 <= len(session.tokens) <= 256
        sound(session)
        session.rewind(100)
        session.append([1, 2, 3])
        assert close_to(inside.last_logits(session), fresh(files, [*range(100), 1, 2, 3]))


def test_a_re_read_that_cannot_fit_keeps_what_is_cached(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync([*range(100), *files.invocation, *range(50)], adapter="sure")
        cached = session.cached
        other = model.session()
        other.sync(list(range(90, 0, -1)))
        with pytest.raises(ag.CacheFullError):
            session.append([1] * 30)
        assert session.cached == cached


def test_more_sessions_than_sequences(files: Files) -> None:
    with files.model(n_seq_max=2) as model:
        first, second = model.session(), model.session()
        with pytest.raises(ag.CacheFullError, match="all 2 sequences are in use"):
            model.session()
        second.close()
        third = model.session()
        third.append("x")
        del third  # garbage gives its sequence back, too
        gc.collect()
        model.session().append("y")
        first.append("z")


@pytest.mark.parametrize("tokens", [[-1], [tiny_base.N_VOCAB], [1.5], ["a"], [True], [2**40]])
def test_bad_tokens_are_refused(model: ag.Model, tokens: list[object]) -> None:
    with pytest.raises(ag.InputError, match="token 0 is"):
        model.session().append(tokens)  # type: ignore[arg-type]


def test_numpy_tokens_are_fine(model: ag.Model) -> None:
    session = model.session()
    session.append(np.arange(5))  # type: ignore[arg-type]
    assert session.tokens == [0, 1, 2, 3, 4]


def test_nothing_to_reply_to(model: ag.Model) -> None:
    session = model.session()
    with pytest.raises(ag.InputError, match="the conversation is empty"):
        session.generate()
    session.append("x")
    for bad in (0, -1, True, 1.5):
        with pytest.raises(ag.InputError, match="max_tokens must be"):
            session.generate(max_tokens=bad)  # type: ignore[arg-type]


def test_a_model_without_a_vocabulary_takes_tokens_only(tmp_path: Path) -> None:
    path = tiny_base.write_base(tmp_path / "b.gguf", text=False)
    with ag.Model(path, n_ctx=256) as model:
        session = model.session()
        with pytest.raises(ag.ModelError, match="has no vocabulary"):
            session.append("Hello")
        session.append([1, 2, 3])
        reply = session.generate(max_tokens=4, sampling=GREEDY)
        assert reply.read() == ""
        assert len(reply.tokens) == 4
        with pytest.raises(ag.ModelError, match="has no vocabulary"):
            model.detokenize([1])


# The end -----------------------------------------------------------------------------------------


def test_closing_in_any_order(files: Files) -> None:
    model = files.model()
    session, other = model.session(), model.session()
    session.append(TEXT)
    reply = session.generate(max_tokens=9, sampling=GREEDY, adapter="lora")
    next(reply)
    model.close()
    model.close()
    calls: list[Callable[[], object]] = [
        lambda: next(reply),
        lambda: session.append("x"),
        lambda: session.invoke(ag.Invocation("sure")),
        lambda: session.rewind(0),
        other.generate,
        session.fork,
        model.session,
        lambda: model.tokenize("x"),
        lambda: model.load_adapter("y", files.alora),
        lambda: model.unload_adapter("sure"),
        model.stats,
    ]
    for call in calls:
        with pytest.raises(ag.ClosedError):
            call()
    assert session.closed
    assert model.closed
    reply.close()
    session.close()
    session.close()


def test_a_closed_session_says_so(model: ag.Model) -> None:
    session = model.session()
    session.close()
    with pytest.raises(ag.ClosedError, match="the session was closed"):
        session.append("x")


def test_an_adapter_in_use_cannot_be_unloaded(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    reply = session.generate(max_tokens=9, sampling=GREEDY, adapter="lora")
    next(reply)
    with pytest.raises(ag.AdapterInUseError, match="'lora' cannot be unloaded now"):
        model.unload_adapter("lora")
    reply.read()
    model.unload_adapter("lora")
    assert "lora" not in model.adapters
    with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'lora' is loaded; loaded"):
        session.generate(adapter="lora")
    with pytest.raises(ag.UnknownAdapterError, match=r"; did you mean sure\?$"):
        session.generate(adapter="shure")
    with pytest.raises(ag.AdapterInUseError, match="named 'sure' is loaded already"):
        model.load_adapter("sure", model.adapters["sure"].path)


def test_an_abandoned_generation_gives_its_adapter_back(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    next(session.generate(max_tokens=9, sampling=GREEDY, adapter="lora"))
    gc.collect()
    model.unload_adapter("lora")


def test_timings_without_tokens_have_no_rate() -> None:
    assert ag.Timings().tokens_per_second is None
    timings = ag.Timings(generated=11, first_token=1.0, total=3.0)
    assert math.isclose(timings.tokens_per_second or 0, 5.0)


def test_a_thousand_generations_leak_no_sequences(model: ag.Model) -> None:
    session = model.session()
    session.append(TEXT)
    n, started = len(session.tokens), time.perf_counter()
    for _ in range(200):
        session.generate(max_tokens=1, sampling=GREEDY).read()
        session.rewind(n)
    assert inside.cells(model).used() == n
    assert time.perf_counter() - started < 60
