"""Contracts that are made of answers."""

from __future__ import annotations

from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.intrinsics.decision import Categories
from alora_gguf.train.contract import fitted, made_contract


def made(answers: list[Any]) -> ag.Contract:
    return ag.Contract.parse(made_contract("x", answers))


@pytest.mark.parametrize(
    ("answers", "yes"),
    [
        (["yes", "no"], "yes"),
        (["no", "yes"], "yes"),
        (["unanswerable", "answerable"], "answerable"),
        (["incorrect", "correct"], "correct"),
        (["true", "false"], "true"),
        (["a", "b"], "a"),
        (["spam", "not spam"], "spam"),
    ],
)
def test_two_words_are_a_decision(answers: list[str], yes: str) -> None:
    contract = made(answers * 10)
    found = Categories.of(contract)
    assert found.yes is not None
    assert found.names[found.yes] == yes
    assert contract.response_format is not None
    assert contract.response_format["x-alora"] == {"form": "json.dumps"}
    assert fitted("no", contract.response_format) == {"x": "no"}


def test_numbers_are_expected_values() -> None:
    contract = made(["1", "2", "3"] * 10)
    assert dict(contract.transformations[0].categories_to_values) == {"1": 1, "2": 2, "3": 3}  # type: ignore[attr-defined]
    assert made([1, 2, 5] * 10).response_format["properties"]["x"]["enum"] == [1, 2, 5]  # type: ignore[index]


def test_several_words_are_choices() -> None:
    contract = made(["red", "green", "blue"] * 4)
    assert contract.choices == ("blue", "green", "red")
    assert fitted("red", contract.response_format) == "red"


def test_texts_that_differ_are_text() -> None:
    assert made([f"text {i}" for i in range(40)]).response_format is None
    assert made(["yes", "no"]).response_format is None  # seen once each


def test_long_texts_are_no_categories() -> None:
    assert made(["yes " * 51, "no"] * 10).response_format is None
    assert made(["yes " * 50, "no"] * 10).response_format is not None


def test_objects_have_their_fields() -> None:
    answers = [{"why": f"so {i}", "n": i, "good": "yes" if i < 3 else "no"} for i in range(30)]
    contract = made(answers)
    schema: Any = contract.response_format
    kinds = {name: each["type"] for name, each in schema["properties"].items()}
    assert kinds == {"why": "string", "n": "integer", "good": "string"}
    assert list(kinds) == list(answers[0])  # in the order that replies have
    assert Categories.of(contract).place == ("good",)


def test_of_two_decisions_none_is_the_answer() -> None:
    contract = made([{"sure": i % 2 == 0, "good": "yes" if i < 3 else "no"} for i in range(30)])
    assert not contract.transformations


def test_true_and_false_are_a_decision() -> None:
    found = Categories.of(made([True, False] * 10))
    assert found.yes is not None
    assert found.names[found.yes] is True


@pytest.mark.parametrize(
    "answers",
    [
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}],
        [{"a": 1}, {"a": "x"}],
        [{"a": {}}, {"a": {}}],
        ["yes", 3, "no", 4],
    ],
)
def test_answers_of_several_kinds_are_refused(answers: list[Any]) -> None:
    with pytest.raises(ag.InputError, match="contract"):
        made_contract("x", answers)
