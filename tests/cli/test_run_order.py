"""Which conversations come after one another, what is read for several of them, and the cells."""

from __future__ import annotations

import random
from typing import cast

from alora_gguf.cli.running.conversations import Conversation, Entry
from alora_gguf.cli.running.work import MIN_SHARED, Order, Task

from alora_gguf.chat.tokenizer import ChatSize


def task(*tokens: int, more: int = 10) -> Task:
    n = len(tokens)
    return Task(cast("Entry", None), cast("Conversation", None), ChatSize(tokens, n + 5, n + more))


def some(rng: random.Random) -> list[Task]:
    """Conversations of few different tokens, most of which go on from another one."""
    found: list[tuple[int, ...]] = []
    for _ in range(rng.randint(1, 12)):
        start: tuple[int, ...] = ()
        if found and rng.random() < 0.8:
            other = rng.choice(found)
            start = other[: rng.randint(0, len(other))]
        found.append((*start, *(rng.randint(0, 3) for _ in range(rng.randint(0, 60)))))
    return [task(*tokens) for tokens in found]


def test_what_any_two_share_was_read_before_the_second_of_them() -> None:
    rng = random.Random(1)
    for _ in range(300):
        given = some(rng)
        order = Order(given)
        assert sorted(map(id, order.tasks)) == sorted(map(id, given))
        read: list[tuple[int, ...]] = []
        for place, each in enumerate(order.tasks):
            ends = order.beginnings[place]
            assert ends == sorted(set(ends))
            read += [each.size.tokens[:end] for end in ends]
            for other in order.tasks[:place]:
                shared = min(other.size.shared(each.size), len(other.size.tokens) - 1)
                held = max((len(r) for r in read if each.size.tokens[: len(r)] == r), default=0)
                assert shared < held + MIN_SHARED


def test_what_is_read_apart_is_shared_by_two_and_worth_it() -> None:
    rng = random.Random(2)
    for _ in range(300):
        order = Order(some(rng))
        seen = set[tuple[int, ...]]()
        for place, each in enumerate(order.tasks):
            for end in order.beginnings[place]:
                beginning = each.size.tokens[:end]
                held = max((len(s) for s in seen if beginning[: len(s)] == s), default=0)
                assert end >= held + MIN_SHARED
                assert beginning not in seen  # once
                assert sum(t.size.tokens[:end] == beginning for t in order.tasks) > 1
                seen.add(beginning)


def test_groups_stay_in_the_order_they_were_given_in() -> None:
    contexts = [[k] * 40 for k in (7, 3, 9)]
    order = Order([task(*contexts[i % 3], i) for i in range(9)])
    assert [each.size.tokens[-1] for each in order.tasks] == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert order.beginnings == 3 * [[40], [], []]
    alone = Order([task(5, 1), task(5, 2), task(4)])
    assert [each.size.tokens for each in alone.tasks] == [(5, 1), (5, 2), (4,)]


def test_beginnings_within_beginnings() -> None:
    system = [1] * 20
    rows = [[*system, k, *[k] * 30, i] for k in (2, 3) for i in range(3)]
    order = Order([task(*row) for row in rows])
    assert order.beginnings == [[20, 51], [], [], [51], [], []]


def test_cells_for_as_many_as_are_worked_on() -> None:
    tasks = [task(*[1] * 100, i, more=50) for i in range(4)]
    order = Order(tasks)
    assert order.cells(1) == 256
    assert order.cells(4) == 512  # the beginning once: 151 + 3 x 51
    longest = Order([*tasks, task(*range(5000))])
    assert longest.cells(4) == 5120  # what the longest needs, which is above what is enough
