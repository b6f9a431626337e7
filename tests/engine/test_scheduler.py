"""Callers of several threads go on sharing batches after the first; a lone one waits for nobody."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.engine.scheduler import Barrier, BatchWindow, Scheduler
from tests.support import inside
from tests.support.batches import slow_batches
from tests.support.files import FOREVER, Files

GREEDY = ag.Sampling(temperature=0.0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many calls each batch was."""
    found: list[int] = []
    compose = Scheduler._compose

    def spy(self: Scheduler) -> Any:
        work = compose(self)
        if work.pieces:
            found.append(len(work.requests))
        return work

    monkeypatch.setattr(Scheduler, "_compose", spy)
    return found


def reply(session: ag.Session, n: int) -> str:
    return session.generate(max_tokens=n, sampling=GREEDY).read()


def at_once(*calls: Any) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOREVER)


@pytest.mark.usefixtures("patient")
def test_who_was_served_together_stays_together(files: Files, batches: list[int]) -> None:
    """To each one's last token, and nobody waits for those who are done."""
    with files.model() as model:
        sessions = [model.session() for _ in range(3)]
        for i, session in enumerate(sessions):
            session.append([i, i + 1, i + 2])
        inside.engine(model).scheduler.leave()  # this thread waits for them
        batches.clear()
        started = time.monotonic()
        barrier = inside.engine(model).scheduler.barrier(3, ag.CancelToken())
        at_once(*(lambda s=s, n=n: reply(s, n) for s, n in zip(sessions, (16, 8, 4), strict=True)))
        barrier.open()
        assert batches == [*[3] * 4, *[2] * 4, *[1] * 8]
        assert time.monotonic() - started < FOREVER / 2


@pytest.mark.usefixtures("patient")
def test_who_comes_later_joins_them(files: Files, batches: list[int]) -> None:
    """Though the other one is computing when it comes, which put them out of step for good."""
    with files.model() as model, model.session() as first, model.session() as second:
        first.append([1, 2, 3])
        second.append([4, 5, 6])
        inside.engine(model).scheduler.leave()
        batches.clear()
        begun = threading.Event()

        def talk_on() -> None:
            for i, _ in enumerate(first.generate(max_tokens=600, sampling=GREEDY)):
                if i == 10:
                    begun.set()

        def join_in() -> None:
            assert begun.wait(FOREVER)
            reply(second, 20)

        with slow_batches(0.005):
            at_once(talk_on, join_in)
        assert batches.count(2) == 20
        assert batches.count(1) == 580


@pytest.mark.usefixtures("patient")
def test_a_lone_caller_waits_for_nobody(files: Files, batches: list[int]) -> None:
    with files.model() as model, model.session() as first, model.session() as second:
        started = time.monotonic()
        at_once(lambda: reply(first, 4) if first.append([1]) else None)
        at_once(lambda: reply(second, 4) if second.append([2]) else None)
        first.invoke(ag.Invocation("sure", [5], max_tokens=4))
        reply(second, 4)
        assert time.monotonic() - started < FOREVER / 2
    assert set(batches) == {1}


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_window_is_as_long_as_the_last_batch_took_and_some_milliseconds_at_most() -> None:
    clock = Clock()
    window = BatchWindow(clock)
    assert window.wait_for([]) == 0
    window.served([1, 2], 0.01)
    assert window.wait_for([1]) == pytest.approx(0.01)
    assert window.wait_for([1, 2, 3]) == 0
    window.served([1, 2], 10)
    assert window.wait_for([2]) == pytest.approx(0.02)
    window.leaves(1)
    assert window.wait_for([2]) == 0
    window.served([1, 2], 0.01)
    clock.now += 0.011
    assert window.wait_for([1]) == 0


def test_a_barrier_opens_when_all_wait_or_have_left_or_patience_ends() -> None:
    clock, cancel = Clock(), ag.CancelToken()

    def barrier() -> Barrier:
        return Barrier(threading.Condition(), 3, cancel, clock)

    each = barrier()
    assert each.wait_for(2) == pytest.approx(0.5)
    assert each.wait_for(3) == 0
    assert each.wait_for(1) == 0  # it stays open
    each = barrier()
    each.leave()
    assert each.wait_for(2) == 0
    each = barrier()
    clock.now += 0.6
    assert each.wait_for(0) == 0
    each = barrier()
    each.open()
    assert each.wait_for(0) == 0
    each = barrier()
    cancel.cancel()
    assert each.wait_for(0) == 0
