"""Verdicts in a word or two, whatever JSON an intrinsic answers with."""

from __future__ import annotations

import math
from typing import Any

import pytest
from alora_gguf.cli.verdicts import Badge, Good, badges_of, is_good, number_in, numbers_of

from alora_gguf.intrinsics import Contract
from alora_gguf.intrinsics.rules import DecodeSentences, Likelihood, Nest, Project, Rule
from tests.intrinsics.corpus_cases import CORPUS


@pytest.mark.parametrize(
    ("value", "badges"),
    [
        ({"answer": "At 9:30.", "answerable": 0.94}, [Badge("answerable 94%", True)]),
        ({"answer": "No", "answerable": 0.94}, [Badge("answerable 94%", True)]),
        ({"answer": "No", "sure": "yes"}, [Badge("answer no", False), Badge("sure yes")]),
        ({"answerable": 0.06}, [Badge("not answerable 94%", False)]),
        ({"answerability": 0.99}, [Badge("answerable 99%", True)]),
        ({"answerability": 0.01}, [Badge("not answerable 99%", False)]),
        ({"answer": "At 9:30.", "certainty": 0.87}, [Badge("certainty 87%", True)]),
        ({"certainty": 0.13}, [Badge("certainty 13%", False)]),
        ({"faithful": 0.02}, [Badge("not faithful 98%", False)]),
        ({"faithful": True}, [Badge("faithful", True)]),
        ({"jailbreak": 1.2e-06}, [Badge("no jailbreak attempt 100%", False)]),
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
        ({"found": {"a": 1}}, [Badge("found a 1", True)]),
        ({"found": {"a": {"b": 0.2}}}, [Badge("found b 20%", False)]),
        ({"found": {"a": 1, "b": 2}}, [Badge("found a 1", True), Badge("found b 2")]),
        ({"found": {"a": 1}, "b": {"c": 2}}, [Badge("found: 1 field"), Badge("b: 1 field")]),
        ({"found": {}}, [Badge("found: 0 fields")]),
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
        ({"answer": "No.", "answerable": 0.9}, 0.9), ({"answer": "no", "answerable": 0.9}, 0.9),
        ({"answer": "yes", "ok": False}, 0.0), ({"answer": "no", "ok": "yes"}, 0.0),
        ({"guardian": {"score": 0.75}}, 0.75),
        ({"x": {"y": {"why": "so", "z": 0.5}}}, 0.5), ({"x": {"y": 0.5}, "z": {}}, None),
        ([1.0], None), ({"list": [1.0], "x": False}, 0.0),
    ],
)  # fmt: skip
def test_the_number_that_a_guard_looks_at(value: Any, number: float | None) -> None:
    assert number_in(value) == number


PROBABILITY = Likelihood(("score",), (("yes", 1.0), ("no", 0.0)))
OBJECT: dict[str, Any] = {"type": "object", "properties": {
    "why": {"type": "string"}, "score": {"type": "string", "enum": ["yes", "no"]}}}  # fmt: skip
TEXT = {"type": "object", "properties": {"question": {"type": "string"}}}
ANY = (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("schema", "rules", "numbers"),
    [
        (None, (), ANY),
        ({}, (), ANY),
        (TEXT, (), None),
        (TEXT, (Nest((), "all"),), None),
        (OBJECT, (), (0, 1)),
        (OBJECT, (PROBABILITY,), (0, 1)),
        (OBJECT, (PROBABILITY, Nest((), "guardian")), (0, 1)),
        (OBJECT, (PROBABILITY, Project((), (("score", "risk"),))), (0, 1)),
        (OBJECT, (PROBABILITY, Project((), (("why", "why"),))), None),
        (OBJECT, (Likelihood(("score",), (("yes", 100), ("no", 5))),), (5, 100)),
        (OBJECT, (Likelihood((None,), (("yes", 9), ("no", 2))),), (2, 9)),
        ({"type": "string", "enum": ["a", "b"]}, (), None),
        ({"type": "string", "enum": ["a", "b"]}, (Likelihood((), (("a", 1), ("b", 3))),), (1, 3)),
        ({"const": 5}, (), (5, 5)),
        ({"enum": [1, 4, "x", None]}, (), (1, 4)),
        ({"type": "boolean"}, (), (0, 1)),
        ({"type": "integer", "minimum": 0, "maximum": 9}, (), (0, 9)),
        ({"type": "number", "minimum": 0}, (), (0, math.inf)),
        ({"type": "string", "pattern": "yes|no"}, (), ANY),
        ({"type": ["string", "number"]}, (), ANY),
        ({"anyOf": [{"type": "string"}]}, (), ANY),
        ({"type": "object"}, (), ANY),
        ({"type": "object", "properties": {"x": True}}, (), ANY),
        ({"type": "array", "items": {"type": "integer"}}, (), None),
        ({"type": "object", "properties": {"n": {"type": "integer"}}},
         (DecodeSentences(("n",), ("documents",), (("begin", "at"),)),), ANY),
    ],
)  # fmt: skip
def test_which_numbers_a_contract_s_verdicts_can_be(
    schema: Any, rules: tuple[Rule, ...], numbers: tuple[float, float] | None
) -> None:
    contract = Contract(source="", response_format=schema, transformations=rules)
    assert numbers_of(contract) == numbers


def test_a_schema_is_followed_no_further_than_need_be() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(8):
        schema = {"type": "object", "properties": {"x": schema}}
    assert numbers_of(Contract(source="", response_format=schema)) == ANY


def test_free_text_is_no_number() -> None:
    assert numbers_of(Contract.parse("name: x\n")) is None


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("answerability", (0, 1)), ("certainty_integer", (0.05, 0.95)), ("guardian", (0, 1)),
        ("context_relevance", (0, 1)), ("requirement_check", (0, 1)),
        ("uncertainty", (0.05, 0.95)), ("factuality_detection", (0, 1)),
        ("query_rewrite", None), ("query_clarification", None), ("citations", None),
    ],
)  # fmt: skip
def test_published_forms_of_contracts(name: str, numbers: tuple[float, float] | None) -> None:
    found = Contract.read(CORPUS / f"{name}.yaml")
    assert numbers_of(found) == numbers


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
