"""What conversations begin with in common: found as far as it is worth while, and the order."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict

from alora_gguf.cli.running.beginnings import MIN_GAIN, Beginning, apart, common, in_order


def some(rng: random.Random) -> list[array[int]]:
    """Conversations of few different tokens, most of which go on from another one."""
    found: list[array[int]] = []
    for _ in range(rng.randint(0, 12)):
        start: list[int] = []
        if found and rng.random() < 0.8:
            other = rng.choice(found)
            start = other[: rng.randint(0, len(other))].tolist()
        found.append(array("i", start + [rng.randint(0, 3) for _ in range(rng.randint(0, 60))]))
    return found


def test_any_two_share_what_they_have_in_common() -> None:
    rng = random.Random(1)
    for _ in range(500):
        conversations = some(rng)
        order = in_order(conversations)
        n = len(conversations)
        assert sorted(order.order) == list(range(n))
        for i in range(n):
            for j in range(i):
                shared = common(conversations[i], conversations[j])
                both = [each.end for each in order.path(i) if each in order.path(j)]
                longest = max(both, default=0)
                assert longest <= shared < longest + MIN_GAIN


def test_who_shares_a_beginning_comes_one_after_another() -> None:
    rng = random.Random(2)
    for _ in range(500):
        conversations = some(rng)
        order = in_order(conversations)
        places = defaultdict[Beginning, list[int]](list)
        for place, number in enumerate(order.order):
            for beginning in order.path(number):
                places[beginning].append(place)
                example = conversations[beginning.example]
                assert example[: beginning.end] == conversations[number][: beginning.end]
                assert beginning.own >= MIN_GAIN
        for found in places.values():
            assert len(found) > 1
            assert found == list(range(found[0], found[0] + len(found)))


def test_the_order_is_the_given_one_where_nothing_speaks_against_it() -> None:
    contexts = [[k] * 40 for k in (7, 3, 9)]
    rows = [array("i", [*contexts[i % 3], i, 100 - i]) for i in range(9)]
    order = in_order(rows)
    assert order.order == (0, 3, 6, 1, 4, 7, 2, 5, 8)
    assert [len(order.path(i)) for i in range(9)] == [1] * 9
    assert order.most_open() == 1
    assert apart(rows).order == tuple(range(9))
    assert apart(rows).most_open() == 0


def test_beginnings_within_beginnings() -> None:
    system = [1] * 30
    rows = [array("i", system + [k] * 20 + [j]) for k in (2, 3) for j in (4, 5)]
    order = in_order([*rows, array("i", [*system, 9])])
    assert [[each.end for each in order.path(i)] for i in range(5)] == [[30, 50]] * 4 + [[30]]
    assert order.path(0)[1] is order.path(1)[1] is not order.path(2)[1]
    assert order.most_open() == 2


def test_a_conversation_after_each_of_its_turns_needs_few_at_a_time() -> None:
    turns = [array("i", range(20 * k)) for k in range(1, 101)]
    assert in_order(turns).most_open() == 2
    assert in_order(turns).order == tuple(range(100))
    backwards = in_order(turns[::-1])
    assert backwards.most_open() == 2
    assert len(backwards.path(0)) == 99


def test_nothing_to_share() -> None:
    assert in_order([]).order == ()
    rows = [array("i", [k] * 50) for k in range(5)]
    assert in_order(rows) == apart(rows)
    twice = in_order([rows[0], rows[0]])
    assert [each.end for each in twice.path(1)] == [50]
