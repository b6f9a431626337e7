"""Who is let in when cells and sequences run short, without llama.cpp."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

import alora_gguf as ag
from alora_gguf.engine.cells import CellAllocator
from alora_gguf.engine.prefix_cache import PrefixCache
from alora_gguf.engine.scheduler import AdmissionQueue
from alora_gguf.engine.tokens import BASE, CachedTokens
from tests.support.bare_context import BareContext
from tests.support.files import FOREVER

ELSEWHERE = -1  # a thread that gives something back soon


class House:
    """A context of 100 cells, its cache and its queue."""

    def __init__(self, n_pooled: int = 4) -> None:
        self.context = BareContext(CellAllocator(8, 100))
        self.cells = self.context.cells
        self.cache = PrefixCache(cast("Any", self.context), n_pooled)
        self.queue = AdmissionQueue(cast("Any", self.context), self.cache)

    def taker(self, seq: int, n: int) -> Callable[[], bool]:
        """Takes `n` cells for `seq` if they are free."""

        def fits() -> bool:
            if n > self.cells.free():
                return False
            self.cells.extend(seq, n)
            return True

        return fits

    def admit(self, seq: int, n: int, cancel: ag.CancelToken | None = None) -> None:
        self.queue.admit(self.taker(seq, n), lambda: self.queue.no_cells(n), cancel, n=n)

    def keep(self, first: int, n: int) -> int:
        """An entry of the prefix cache with so many cells."""
        seq, cached = self.context.sequence(n), CachedTokens()
        cached.extend([first] * n, ((0, BASE),))
        self.cache.give(seq, cached)
        return seq

    def wait_until_in_line(self, n: int) -> None:
        for _ in range(int(FOREVER * 1000)):
            with self.context.condition:
                if len(self.queue._line) == n:
                    return
            threading.Event().wait(0.001)
        raise AssertionError("nobody waits")


def test_what_fits_is_let_in_at_once() -> None:
    house = House()
    seq = house.context.sequence(0)
    house.admit(seq, 100)
    assert house.cells.free() == 0


def test_entries_of_the_prefix_cache_are_evicted_the_oldest_first_and_no_more_than_needed() -> None:
    house = House()
    old, new = house.keep(1, 30), house.keep(2, 30)
    seq = house.context.sequence(0)
    house.admit(seq, 60)
    assert house.context.dropped == [old]
    assert [entry.seq for entry in house.cache.entries] == [new]


def test_what_can_never_fit_evicts_nothing() -> None:
    house = House()
    house.keep(1, 30)
    seq = house.context.sequence(30)
    with pytest.raises(ag.CacheFullError, match="5000 cells needed, 70 of 100 free"):
        house.admit(seq, 5000)
    with pytest.raises(ag.CacheFullError, match="71 cells needed, 70 of 100 free"):
        house.admit(seq, 71)  # with the 30 that stay, one too many
    assert not house.context.dropped
    house.queue.require(100, freed=30)
    house.admit(seq, 70)
    assert len(house.context.dropped) == 1


def test_nothing_is_evicted_while_it_would_not_be_enough() -> None:
    """Another thread holds something, and may close a conversation before it is done."""
    house = House()
    kept, open_one = house.keep(1, 20), house.context.sequence(40)
    held = house.context.sequence(10)
    house.cells.promise(held, 0, holder=ELSEWHERE)
    waiting = threading.Thread(target=house.admit, args=(house.context.sequence(0), 80))
    waiting.start()
    house.wait_until_in_line(1)
    assert not house.context.dropped
    house.context.drop(open_one)
    waiting.join(FOREVER)
    assert not waiting.is_alive()
    assert house.context.dropped == [open_one, kept]


def test_nobody_waits_for_what_nobody_gives_back() -> None:
    house = House(n_pooled=0)
    seq = house.context.sequence(60)
    with pytest.raises(ag.CacheFullError):
        house.admit(seq, 50)
    me = house.context.sequence(0)
    house.cells.promise(me, 30, holder=threading.get_ident())
    with pytest.raises(ag.CacheFullError):
        house.admit(seq, 20)  # this thread itself holds the cells


def test_those_who_wait_are_let_in_in_order_of_arrival() -> None:
    house = House()
    held = house.context.sequence(90)
    house.cells.promise(held, 0, holder=ELSEWHERE)
    order, threads = list[int](), list[threading.Thread]()

    def come(n: int, seq: int) -> None:
        house.admit(seq, n)
        order.append(n)

    for n in (60, 20, 5):  # the last would fit before its turn
        threads.append(threading.Thread(target=come, args=(n, house.context.sequence(0))))
        threads[-1].start()
        house.wait_until_in_line(len(threads))
    assert not order
    house.context.drop(held)
    for thread in threads:
        thread.join(FOREVER)
    assert sorted(order) == [5, 20, 60]
    assert house.cells.free() == 15


def test_who_gives_up_makes_way() -> None:
    house, cancel = House(), ag.CancelToken()
    held = house.context.sequence(90)
    house.cells.promise(held, 0, holder=ELSEWHERE)
    found: list[object] = []

    def come(n: int, cancel: ag.CancelToken | None) -> None:
        try:
            house.admit(house.context.sequence(0), n, cancel)
            found.append(n)
        except ag.CancelledError as error:
            found.append(type(error))

    first = threading.Thread(target=come, args=(60, cancel))
    first.start()
    house.wait_until_in_line(1)
    second = threading.Thread(target=come, args=(5, None))
    second.start()
    house.wait_until_in_line(2)
    cancel.cancel()
    first.join(FOREVER)
    second.join(FOREVER)
    assert found == [ag.CancelledError, 5]


def test_a_thread_that_holds_something_goes_before_the_line() -> None:
    house = House()
    held = house.context.sequence(90)
    house.cells.promise(held, 0, holder=ELSEWHERE)
    waiting = threading.Thread(target=house.admit, args=(house.context.sequence(0), 60))
    waiting.start()
    house.wait_until_in_line(1)
    mine = house.context.sequence(0)
    house.cells.promise(mine, 5, holder=threading.get_ident())
    house.admit(mine, 5)  # or the two would wait for one another
    house.context.drop(held)
    waiting.join(FOREVER)
    assert not waiting.is_alive()


def admitted(house: House, seq: int, n: int) -> threading.Thread:
    """A thread that wants `n` cells for `seq`."""
    thread = threading.Thread(target=house.admit, args=(seq, n), daemon=True)
    thread.start()
    return thread


def test_who_is_next_while_it_looks_at_the_line_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at the line and its sleep it lets go of the condition: who left the line
    then does not wake it any more.
    """
    house = House()
    elsewhere = house.context.sequence(50)
    house.cells.promise(elsewhere, 0, holder=ELSEWHERE)
    token = ag.CancelToken()

    def give_up() -> None:
        with pytest.raises(ag.CancelledError):
            house.admit(house.context.sequence(0), 80, token)

    ahead = threading.Thread(target=give_up)
    ahead.start()
    house.wait_until_in_line(1)
    wait = AdmissionQueue._wait

    def late(self: AdmissionQueue, *where: Any) -> None:
        if not token.cancelled:
            # as if it had not had the condition until now
            state = house.context.condition._release_save()  # type: ignore[attr-defined]
            token.cancel()
            ahead.join(FOREVER)
            house.context.condition._acquire_restore(state)  # type: ignore[attr-defined]
        wait(self, *where)

    monkeypatch.setattr(AdmissionQueue, "_wait", late)
    behind = admitted(house, house.context.sequence(0), 10)  # for which there has always been room
    behind.join(FOREVER)
    assert not behind.is_alive()
    assert house.cells.free() == 40


def test_what_nobody_gave_back_is_collected_while_others_wait() -> None:
    """Garbage collection may abandon a sequence at any moment, and tells nobody."""
    house = House()
    lost = house.context.sequence(70)
    elsewhere = house.context.sequence(0)
    house.cells.promise(elsewhere, 0, holder=ELSEWHERE)
    waiting = admitted(house, house.context.sequence(0), 60)
    house.wait_until_in_line(1)
    house.context.abandon(lost)
    waiting.join(FOREVER)
    assert not waiting.is_alive()
    assert house.context.dropped == [lost]
