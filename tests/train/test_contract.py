"""Contracts that are made of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.intrinsics.decision import Categories
from alora_gguf.train.contract import check_words, fitted, made_contract
from alora_gguf.train.data import Example


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


@pytest.mark.parametrize("field", [None, "topic"])
def test_words_that_may_be_typos(field: str | None, caplog: pytest.LogCaptureFixture) -> None:
    def check(*words: str) -> None:
        answers = [word if field is None else {field: word, "n": i} for i, word in enumerate(words)]
        examples = [Example((), answer, line=i + 1) for i, answer in enumerate(answers)]
        check_words(Path("x.jsonl"), examples)

    usual, what = ["request", "remark"] * 20, "the answer" if field is None else "'topic'"
    said = f"x.jsonl: line 41 has {what} 'Request', and line 1 has 'request'; write them alike, or"
    with pytest.raises(ag.FileFormatError, match=said):
        check(*usual, "Request")
    with pytest.raises(ag.FileFormatError, match=f"line 1 has {what} 'remark ', and line 3 has"):
        check("remark ", *usual)
    assert not caplog.records
    check(*usual, "remrak", "remrak")
    said = f"x.jsonl: line 41 has {what} 'remrak', which 2 of 42 lines have; correct it if it is a"
    assert [each.getMessage() for each in caplog.records] == [f"{said} typo"]
    caplog.clear()
    check(*usual, *["rumour"] * 3)
    check("A text", "a text")  # which is no category
    assert not caplog.records


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
