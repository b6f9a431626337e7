"""Verdicts in a word or two, whatever JSON an intrinsic answers with."""

from __future__ import annotations

import math
from typing import Any

import pytest
from alora_gguf.cli.chat.badges import (
    Badge,
    badges_of,
    high_is_good,
    judges_answer,
    judges_question,
    number_in,
)


@pytest.mark.parametrize(
    ("value", "badges"),
    [
        ({"answer": "At 9:30.", "answerable": 0.94}, [Badge("answerable 94%", True)]),
        ({"answerable": 0.06}, [Badge("not answerable 94%", False)]),
        ({"answer": "At 9:30.", "certainty": 0.87}, [Badge("certainty 87%", True)]),
        ({"certainty": 0.13}, [Badge("certainty 13%", False)]),
        ({"faithful": 0.02}, [Badge("not faithful 98%", False)]),
        ({"jailbreak": 1.2e-06}, [Badge("harmless 100%", True)]),
        ({"jailbreak": 0.75}, [Badge("jailbreak attempt 75%", False)]),
        ({"jailbreak": True}, [Badge("jailbreak attempt", False)]),
        ({"jailbreak": "no"}, [Badge("harmless", True)]),
        ({"jailbreak": " Yes\n"}, [Badge("jailbreak attempt", False)]),
        ({"harm_score": 0.75}, [Badge("harm score 75%", False)]),
        ({"harmless": 0.75}, [Badge("harmless 75%", None)]),  # neither is certain
        ({"unanswerable": 0.75}, [Badge("unanswerable 75%", None)]),
        ({"guardian": False}, [Badge("guardian no", True)]),
        ({"mood": 0.5}, [Badge("mood 50%", None)]),
        ({"mood": 0.5, "risk": 0.25}, [Badge("mood 50%"), Badge("risk 25%", True)]),
        ({"count": 1}, [Badge("count 1")]),
        ({"count": 12.5}, [Badge("count 12.5")]),
        ({"count": -1}, [Badge("count -1")]),
        ({"x": math.nan}, [Badge("x nan")]),
        ({"question": " Who\nruns  it? "}, [Badge('question "Who runs it?"')]),
        ({"question": "w" * 61}, [Badge(f'question "{"w" * 59}…"')]),
        ({"question": " "}, [Badge("question is empty")]),
        ({"citations": [1]}, [Badge("citations: 1 item")]),
        ({"citations": []}, [Badge("citations: 0 items")]),
        ({"found": None}, [Badge("found: none")]),
        ({"found": {"a": 1}}, [Badge("found: 1 field")]),
        ({"found": {"a": 1, "b": 2}}, [Badge("found: 2 fields")]),
        ({}, [Badge("some name: 0 fields")]),
        ([1, 2], [Badge("some name: 2 items")]),
        ("text", [Badge('some name "text"')]),
        ("yes", [Badge("some name yes")]),
        (0.25, [Badge("some name 25%")]),
        (None, [Badge("some name: none")]),
    ],
)
def test_badges(value: Any, badges: list[Badge]) -> None:
    assert badges_of("some_name", value) == badges


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.5, 0.5), (3, 3.0), (True, 1.0), ("yes", 1.0), ("No", 0.0), ("maybe", None), (None, None),
        ({"answer": "x", "certainty": 0.25, "other": 1.0}, 0.25), ({"answer": "x"}, None),
        ({"inner": {"certainty": 1.0}}, None), ([1.0], None), ({"list": [1.0], "x": False}, 0.0),
    ],
)  # fmt: skip
def test_the_number_that_a_guard_looks_at(value: Any, number: float | None) -> None:
    assert number_in(value) == number


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("certainty", True), ("answerability_likelihood", True), ("Faithful", True),
        ("requirements_satisfied", True), ("jailbreak", False), ("hallucination", False),
        ("guardian", False), ("toxicity", False), ("uncertainty", None), ("harmless", None),
        ("unsafe", None), ("not_grounded", None), ("inaccurate", None), ("mood", None),
    ],
)  # fmt: skip
def test_which_side_is_good(field: str, good: bool | None) -> None:
    assert high_is_good(field) is good


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("jailbreak", True, False), ("answerability", True, False), ("query_rewrite", True, False),
        ("guardian", True, False), ("uncertainty", False, True), ("hallucination", False, True),
        ("citations", False, True), ("topic", False, False),
    ],
)  # fmt: skip
def test_what_is_judged(name: str, question: bool, answer: bool) -> None:
    assert (judges_question(name), judges_answer(name)) == (question, answer)
