"""How questions are written, and in which orders their options are asked."""

from __future__ import annotations

import itertools

import pytest

import alora_gguf as ag
from alora_gguf.decide.prompts import MAX_LINES, labels, orders, prompts


def never(_: str) -> bool:
    return False


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_up_to_8_options_have_each_place_once(n: int) -> None:
    found = orders(n)
    assert len(found) == n
    for place in range(n):
        assert sorted(order[place] for order in found) == list(range(n))


@pytest.mark.parametrize("n", [9, 10, 16, 26, 64, 255])
def test_more_options_have_fewer_orders_each_forwards_and_backwards(n: int) -> None:
    found = orders(n)
    assert len(found) >= 2
    assert len(found) * n <= max(MAX_LINES, 2 * n)
    for one, other in zip(found[::2], found[1::2], strict=False):
        assert other == one[::-1]
    if len(found) % 2 == 0:  # a place that counts by its distance cancels
        means = [sum(order.index(i) for order in found) / len(found) for i in range(n)]
        assert means == pytest.approx([(n - 1) / 2] * n)


@pytest.mark.parametrize(("n", "wanted"), [(5, 1), (5, 2), (5, 3), (5, 5), (5, 9), (255, 4)])
def test_a_call_may_say_how_many(n: int, wanted: int) -> None:
    found = orders(n, wanted)
    assert len(found) == len(set(found)) == min(n, wanted)
    assert found[0] == tuple(range(n))
    assert all(sorted(order) == list(range(n)) for order in found)


@pytest.mark.parametrize("n", [1, 26, 27, 255])
def test_no_label_begins_another(n: int) -> None:
    found = labels(n, never)
    assert len(set(found)) == n
    assert not any(a != b and b.startswith(a) for a, b in itertools.permutations(found, 2))


def test_pairs_of_letters_that_are_tokens_come_first() -> None:
    assert labels(27, lambda text: text[0] in "QX")[:2] == ("QA", "QB")
    assert labels(100, lambda text: text[0] in "QX")[:2] == ("AA", "AB")


def test_what_all_orders_share_comes_first() -> None:
    question = ag.Choice("Which team?", {"Sales": "prices", "Billing": None})
    first, second = prompts(question, None, never)
    head = "Which team?\nAnswer with the letter of one option.\n"
    assert first.text == head + "A. Billing\nB. Sales: prices"
    assert second.text == head + "A. Sales: prices\nB. Billing"
    assert (first.labels, first.indices, second.indices) == (("A", "B"), (1, 0), (0, 1))


def test_the_callers_order_and_blanks_do_not_show() -> None:
    one = {"b": "x\n y", "a": None, "c": "z"}
    other = {" c": "z ", "b ": "x  y", "a\n": None}
    wrote = [[p.text for p in prompts(ag.Choice(None, each), None, never)] for each in (one, other)]
    assert wrote[0] == wrote[1]


def test_yes_and_no_are_words_in_both_orders() -> None:
    found = prompts(ag.Predicate("Is it urgent?", true="today"), None, never)
    assert [p.text for p in found] == [
        "Is it urgent?\nYes: today\nAnswer Yes or No.",
        "Is it urgent?\nYes: today\nAnswer No or Yes.",
    ]
    assert [p.labels for p in found] == [("Yes", "No"), ("No", "Yes")]
    assert [p.indices for p in found] == [(0, 1), (1, 0)]
    lettered = prompts(ag.Predicate("Is it?", true="x", false="y"), None, never, lettered=True)
    assert [p.labels for p in lettered] == [("A", "B")] * 2


def test_levels_are_rotated_too() -> None:
    found = prompts(ag.Score("How?", ["low", "mid", "high"]), None, never)
    assert [p.text.splitlines()[2:] for p in found] == [
        ["A. low", "B. mid", "C. high"],
        ["A. mid", "B. high", "C. low"],
        ["A. high", "B. low", "C. mid"],
    ]
    assert found[0].text.startswith("How?\nAnswer with the letter of one level.\n")


def test_questions_without_instructions_ask_something() -> None:
    assert prompts(ag.Choice(None, ["a", "b"]), 1, never)[0].text.startswith("Which of these opt")
    assert prompts(ag.Predicate(true="x"), 1, never)[0].text.startswith("Which of these is the")
    assert prompts(ag.Score(None, ["a", "b"]), 1, never)[0].text.startswith("Which of these lev")
