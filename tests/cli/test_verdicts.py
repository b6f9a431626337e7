"""Verdicts in a word or two, whatever JSON an intrinsic answers with."""

from __future__ import annotations

import math
from typing import Any

import pytest
from alora_gguf.cli.verdicts import Badge, Good, badges_of, is_good, number_in


@pytest.mark.parametrize(
    ("value", "badges"),
    [
        ({"answer": "At 9:30.", "answerable": 0.94}, [Badge("answerable 94%", True)]),
        ({"answerable": 0.06}, [Badge("not answerable 94%", False)]),
        ({"answer": "At 9:30.", "certainty": 0.87}, [Badge("certainty 87%", True)]),
        ({"certainty": 0.13}, [Badge("certainty 13%", False)]),
        ({"faithful": 0.02}, [Badge("not faithful 98%", False)]),
        ({"faithful": True}, [Badge("faithful", True)]),
        ({"jailbreak": 1.2e-06}, [Badge("harmless 100%", False)]),
        ({"jailbreak": " Yes\n"}, [Badge("jailbreak attempt", True)]),
        ({"harmless": 0.75}, [Badge("harmless 75%", True)]),
        ({"guardian": False}, [Badge("guardian no", False)]),
        ({"mood": 0.5, "risk": 0.25}, [Badge("mood 50%", True), Badge("risk 25%")]),  # the first
        ({"count": 12.5}, [Badge("count 12.5", True)]),
        ({"count": -1}, [Badge("count -1", False)]),
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
        ("yes", [Badge("some name yes", True)]),
        (0.25, [Badge("some name 25%", False)]),
        (None, [Badge("some name: none")]),
    ],
)
def test_badges(value: Any, badges: list[Badge]) -> None:
    """High is good, says the contract; where it says nothing, nothing is good or bad."""
    assert badges_of("some_name", value, "high") == badges
    assert badges_of("some_name", value) == [Badge(badge.text) for badge in badges]


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
    ("value", "good", "is_one"),
    [
        (0.99, "high", True), (0.02, "high", False), (0.99, "low", False), (0.02, "low", True),
        (0.5, "high", True), (0.5, "low", False), ("yes", "low", False), (True, "high", True),
        ({"answer": "x", "guardrail_passed": 0.99}, "high", True), (0.99, None, None),
        (math.nan, "low", None), ("who knows", "high", None), (None, "low", None),
        ({}, "low", None),
    ],
)  # fmt: skip
def test_which_end_is_good_is_the_contract_s_to_say(
    value: Any, good: Good | None, is_one: bool | None
) -> None:
    assert is_good(value, good) is is_one


@pytest.mark.parametrize("name", ["guardrail_passed", "toxicity_free", "jailbreak", "certainty"])
def test_no_name_makes_a_verdict_good_or_bad(name: str) -> None:
    for value in (0.01, 0.99):
        assert [badge.good for badge in badges_of(name, {name: value})] == [None]
