"""Cells of other conversations, open and over; calls that wait, share batches and are cancelled."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.engine.scheduler import Scheduler
from tests.support import inside
from tests.support.batches import slow_batches
from tests.support.files import EXACT, Files

GREEDY = ag.Sampling(temperature=0.0)
LONG = [(7 * i) % 250 for i in range(120)]


def logits_of(files: Files, tokens: list[int], **use: object) -> np.ndarray:  # type: ignore[type-arg]
    with files.model() as model, model.session() as session:
        session.sync(tokens, **use)  # type: ignore[arg-type]
        return inside.last_logits(session)


def close_to(one: np.ndarray, other: np.ndarray) -> bool:  # type: ignore[type-arg]
    return float(np.abs(one - other).max() / np.abs(other).max()) < 1e-4


def test_a_new_conversation_shares_an_open_ones_cells(files: Files) -> None:
    with files.model() as model:
        first = model.session()
        first.sync(LONG)
        used = inside.cells(model).used()
        second = model.session()
        timings = second.sync([*LONG[:100], 3, 4, 5])
        assert (timings.reused, timings.evaluated) == (100, 3)
        assert "shared" in timings.reuse_note
        assert inside.cells(model).used() == used + 3
        assert close_to(inside.last_logits(second), logits_of(files, [*LONG[:100], 3, 4, 5]))
        first.close()
        second.sync([*LONG[:100], 3, 4, 5, 6])
        assert close_to(inside.last_logits(second), logits_of(files, [*LONG[:100], 3, 4, 5, 6]))


def test_who_is_in_use_by_now_is_passed_over(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.model() as model:
        longest, other, new = model.session(), model.session(), model.session()
        longest.sync(LONG)
        other.sync(LONG[:100])
        borrowed = inside.sequence(longest).borrow
        answers = iter([borrowed(), contextlib.nullcontext(False)])
        monkeypatch.setattr(inside.sequence(longest), "borrow", lambda: next(answers))
        assert new.sync([*LONG, 3, 4]).reused == 100


def test_a_borrower_waits_for_another_one(files: Files) -> None:
    with files.model() as model:
        sequence, found = inside.sequence(model.session()), list[bool]()

        def borrow() -> None:
            with sequence.borrow() as there:
                found.append(there)

        for _ in range(20):
            thread = threading.Thread(target=borrow)
            with sequence.borrow():
                thread.start()
                time.sleep(0)
            thread.join()
        assert found == 20 * [True]


def test_adapted_cells_are_shared_by_provenance_alone(files: Files) -> None:
    tokens = [*LONG, *files.invocation, *LONG[:40]]
    with files.model(options=replace(EXACT, n_pooled=4)) as model:
        with model.session() as first:
            first.sync(tokens, adapter="sure")
        plain, other, same = model.session(), model.session(), model.session()
        assert plain.sync(tokens).reused == len(LONG)
        assert other.sync(tokens, adapter="sure", scale=0.5).reused == len(LONG)
        assert same.sync(tokens, adapter="sure").reused == len(tokens)
        same.append([1], adapter="sure")
        assert close_to(inside.last_logits(plain), logits_of(files, tokens))
        assert close_to(inside.last_logits(same), logits_of(files, [*tokens, 1], adapter="sure"))


def test_closed_ones_give_way_the_oldest_first_and_open_ones_never(files: Files) -> None:
    options = replace(EXACT, n_pooled=3)
    with files.model(n_ctx=512, options=options) as model:
        for k in range(3):
            with model.session() as session:
                session.sync([k, *LONG])
        assert len(inside.prefix_cache(model).entries) == 3
        kept = model.session()
        kept.sync([0, *LONG, 9])  # the oldest is used again
        assert kept.append([1]).evaluated == 1
        big = model.session()
        big.sync([200, *LONG, *LONG])  # needs the room
        firsts = [entry.cached.tokens[0] for entry in inside.prefix_cache(model).entries]
        assert 1 not in firsts  # the least recently used went
        assert kept.cached == len(LONG) + 3
        with pytest.raises(ag.CacheFullError):
            big.append([201] * 300)
        assert inside.prefix_cache(model).entries  # no use in evicting them for it
        assert kept.cached == len(LONG) + 3
        assert close_to(inside.last_logits(kept), logits_of(files, [0, *LONG, 9, 1]))


def test_what_finds_no_room_waits_for_what_is_about_to_end(files: Files) -> None:
    """Each of the calls fits alone, and not two together."""
    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync(LONG)
        others = [session.fork() for _ in range(6)]
        asked = ag.Invocation("sure", [1, 2, 3], max_tokens=100)
        alone = session.invoke(asked).tokens
        with ThreadPoolExecutor(6) as pool:
            verdicts = list(pool.map(lambda each: each.invoke(asked).tokens, others))
        assert verdicts == [alone] * 6


def test_threads_share_batches(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Scheduler._compose

    def spy(self: Scheduler) -> object:
        work = real(self)
        sizes.append(len(work.requests))
        return work

    with files.model() as model:
        sessions = [model.session() for _ in range(4)]
        for k, session in enumerate(sessions):
            session.sync([k, *LONG[: 20 + k]])
        monkeypatch.setattr(Scheduler, "_compose", spy)
        gate = threading.Barrier(4)

        def work(session: ag.Session) -> list[int]:
            gate.wait()
            reply = session.generate(max_tokens=40, sampling=GREEDY)
            reply.read()
            return reply.tokens

        with slow_batches(), ThreadPoolExecutor(4) as pool:
            together = list(pool.map(work, sessions))
        assert max(sizes) > 1
        for k, tokens in enumerate(together):
            with files.model() as fresh, fresh.session() as session:
                session.sync([k, *LONG[: 20 + k]])
                reply = session.generate(max_tokens=40, sampling=GREEDY)
                reply.read()
                assert reply.tokens == tokens


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.06])
def test_a_cancelled_read_leaves_the_conversation_as_it_was(files: Files, delay: float) -> None:
    with files.model(n_ctx=4096) as model:
        session = model.session()
        session.sync(LONG)
        state = session.state()
        token = ag.CancelToken()
        timer = threading.Timer(delay, token.cancel)
        timer.start()
        try:
            session.append([5] * 3500, cancel=token)
        except ag.CancelledError:
            assert session.tokens == LONG
            assert session.state() == state
        timer.join()
        session.sync([*LONG, 1])
        assert close_to(inside.last_logits(session), logits_of(files, [*LONG, 1]))


def test_a_cancelled_reply_ends_where_it_is(files: Files) -> None:
    with files.model() as model:
        session = model.session()
        session.sync(LONG)
        token = ag.CancelToken()
        reply = session.generate(max_tokens=500, sampling=GREEDY, cancel=token)
        for i, _ in enumerate(reply):
            if i == 3:
                token.cancel()
        assert reply.finish_reason == "cancelled"
        assert session.tokens == [*LONG, *reply.tokens]
        with pytest.raises(ag.CancelledError):
            session.invoke(ag.Invocation("sure"), cancel=token)
        assert session.invoke(ag.Invocation("sure")).tokens


def test_progress_is_told_on_the_callers_thread(files: Files) -> None:
    seen: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.get_ident())

    with files.model(options=replace(EXACT, n_batch=32, n_ubatch=32)) as model:
        model.session().append(LONG, progress=progress)
    assert seen == [(32, 120), (64, 120), (96, 120), (120, 120)]
    assert threads == {threading.get_ident()}


def test_loading_tells_its_progress_and_can_be_cancelled(files: Files) -> None:
    seen: list[float] = []
    with ag.Model(files.base, n_ctx=256, progress=seen.append):
        assert seen[-1] == 1.0
    token = ag.CancelToken()
    token.cancel()
    with pytest.raises(ag.CancelledError):
        ag.Model(files.base, n_ctx=256, cancel=token)


def test_an_adapter_in_use_elsewhere_cannot_be_unloaded(files: Files) -> None:
    with files.model() as model:
        session = model.session()
        session.sync(LONG)

        def unload(_index: int, _piece: str) -> None:
            with pytest.raises(ag.AdapterInUseError):
                model.unload_adapter("sure")

        session.invoke(ag.Invocation("sure", max_tokens=20), on_text=unload)
        model.unload_adapter("sure")


@pytest.mark.slow
def test_python_goes_on_while_a_batch_is_computed(files: Files) -> None:
    """The interpreter's lock is free meanwhile: another thread keeps counting."""
    with files.model(n_ctx=4096) as model:
        session = model.session()
        counted, begun, stop = [0], threading.Event(), threading.Event()

        def count() -> None:
            while not stop.is_set():
                counted[0] += 1
                begun.set()
                time.sleep(0)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            assert begun.wait(60)
            before = counted[0]
            session.append([3] * 3000)
            assert counted[0] - before > 100
        finally:
            stop.set()
            thread.join()


def test_the_open_one_that_has_most_in_common_is_shared() -> None:
    with ag.Model(demo.base_path(), n_ctx=512, n_threads=1) as model:
        start = model.tokenize("The river workshop is on 8 May. " * 6)
        ends = [model.tokenize(f" It begins at {n}." * 3) for n in (7, 8, 9)]
        sessions = [model.session() for _ in range(4)]
        for session, end in zip(sessions, ends, strict=False):
            session.sync([*start, *end])
        for end in ends:
            timings = sessions[3].sync([*start, *end, *start[:2]])
            assert timings.reused >= len(start) + len(end) - 1
            sessions[3].close()
            sessions[3] = model.session()
