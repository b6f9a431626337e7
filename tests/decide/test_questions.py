"""What can be asked, as records and as System One's mappings, and what is refused by its field."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.decide import read_questions
from alora_gguf.decide.questions import MAX_DEPTH, MAX_OPTIONS, MAX_QUESTIONS

NOUL = {"type": "noul", "instructions": "Is it urgent?"}
CHOICE = {"type": "choice", "instructions": "Which team?", "criteria": {"A": None, "B": "bugs"}}
SCORE = {"type": "score", "instructions": "How angry?", "criteria": ["calm", "angry"]}


def deep(n: int) -> Any:
    value: Any = "x"
    for _ in range(n):
        value = [value]
    return value


def test_mappings_and_records_say_the_same() -> None:
    found = read_questions({"n": NOUL, "c": CHOICE, "s": SCORE, "i": {"intrinsic": "judge"}})
    assert found == {
        "n": ag.Predicate("Is it urgent?"),
        "c": ag.Choice("Which team?", {"A": None, "B": "bugs"}),
        "s": ag.Score("How angry?", ["calm", "angry"]),
        "i": ag.IntrinsicCall("judge"),
    }
    assert read_questions(found) == found


def test_a_mapping_may_name_an_adapter_its_scale_and_a_temperature() -> None:
    (found,) = read_questions(
        {"n": {**NOUL, "adapter": "judge", "scale": 0.5, "temperature": 2}}
    ).values()
    assert found == ag.Predicate("Is it urgent?", adapter="judge", scale=0.5, temperature=2)
    (call,) = read_questions(
        {"i": {"intrinsic": "judge", "arguments": {"a": "b"}, "scale": 2}}
    ).values()
    assert call == ag.IntrinsicCall("judge", {"a": "b"}, scale=2)


@pytest.mark.parametrize(
    "question",
    [
        {**NOUL, "criteria": None},
        {**NOUL, "criteria": {"true": "today"}},
        {**NOUL, "criteria": {"false": ["later", {"than": "a week"}], "true": None}},
        {"type": "noul", "criteria": {"true": "a threat"}},
        {"type": "choice", "criteria": {"A": {"owns": ["refunds"]}}},
        {**CHOICE, "criteria": {str(i): None for i in range(MAX_OPTIONS)}},
        {"type": "choice", "instructions": ["Route it.", "Pick one."], "criteria": {"": "none"}},
        {"type": "score", "criteria": [{"label": "calm"}, {"label": "angry"}]},
        {**SCORE, "criteria": [str(i) for i in range(10)]},
        {**NOUL, "instructions": deep(MAX_DEPTH)},
    ],
)
def test_what_system_one_takes_is_taken(question: dict[str, Any]) -> None:
    read_questions({"질문 🎯": question})


WRONG: list[tuple[Any, str]] = [
    ({}, "questions is empty, expected 1 to 400 questions"),
    ([], "questions is an array, expected an object of questions by name"),
    ({"": NOUL}, "questions has the name '', expected text that is not empty"),
    ({"q": None}, "questions.q is null, expected a question such as {"),
    ({"q": "is it?"}, 'questions.q is text, expected a question such as {"type": "noul", "instr'),
    ({"q": {}}, "questions.q.type is missing, expected one of noul, choice, score"),
    ({"q": {"type": "box"}}, "questions.q.type is 'box', expected one of noul, choice, score"),
    ({"q": {"type": ["noul"]}}, "questions.q.type is ['noul'], expected one of noul, choice"),
    ({"q": {**NOUL, "instructions": ""}}, "questions.q.instructions is empty, expected what"),
    ({"q": {**NOUL, "instructions": " \n"}}, "questions.q.instructions is empty, expected"),
    ({"q": {**NOUL, "instructions": {}}}, "questions.q.instructions is empty, expected what"),
    ({"q": {**NOUL, "instructions": 7}}, "questions.q.instructions must be a string, a map"),
    ({"q": {"type": "noul"}}, "questions.q.instructions is missing, as are criteria"),
    ({"q": {**NOUL, "criteria": ["yes"]}}, "questions.q.criteria is an array, expected an object"),
    ({"q": {**NOUL, "criteria": {"yes": "x"}}}, "questions.q.criteria has no field 'yes', only"),
    ({"q": {**NOUL, "criteria": {"true": 1}}}, "questions.q.criteria true must be a string, a map"),
    ({"q": {**NOUL, "adaptor": "x"}}, "questions.q has no field 'adaptor'"),
    (
        {"q": {**NOUL, "adapter": 7}},
        "questions.q.adapter must be a string, a mapping or None, got 7",
    ),
    ({"q": {**NOUL, "scale": "big"}}, "questions.q.scale must be a finite number"),
    ({"q": {**NOUL, "temperature": 0}}, "questions.q.temperature must be a finite number in"),
    ({"q": {"type": "choice"}}, "questions.q.criteria is missing, expected what can be answered"),
    ({"q": {**CHOICE, "criteria": {}}}, "questions.q.criteria has no options, expected 1 to 255"),
    (
        {"q": {**CHOICE, "criteria": {str(i): None for i in range(256)}}},
        "questions.q.criteria has 256 options, expected 1 to 255",
    ),
    ({"q": {**CHOICE, "criteria": ["a"]}}, "questions.q.criteria is an array, expected an object"),
    ({"q": {**CHOICE, "criteria": {" ": ""}}}, "questions.q.criteria has an option ' ' that says"),
    (
        {"q": {**CHOICE, "criteria": {"an odd. one": 1}}},
        "questions.q.criteria.an odd. one is a number, expected text",
    ),
    ({"q": {**CHOICE, "criteria": {1: None}}}, "questions.q.criteria has the option 1, expected"),
    ({"q": {**SCORE, "criteria": {"0": "calm"}}}, "questions.q.criteria is an object, expected"),
    ({"q": {**SCORE, "criteria": ["calm"]}}, "questions.q.criteria has 1 level, expected 2 to 10"),
    ({"q": {**SCORE, "criteria": ["x"] * 11}}, "questions.q.criteria has 11 levels, expected 2"),
    (
        {"q": {**SCORE, "criteria": ["calm", None]}},
        "questions.q.criteria[1] is null, expected text",
    ),
    ({"q": {**SCORE, "criteria": ["calm", " "]}}, "questions.q.criteria[1] is empty, expected"),
    ({"q": {"intrinsic": 7}}, "questions.q.intrinsic is a number, expected an adapter's name"),
    ({"q": {"intrinsic": "a", "arguments": []}}, "questions.q.arguments is an array, expected"),
    ({"q": {"intrinsic": "a", "criteria": {}}}, "questions.q has no field 'criteria', only"),
    ({"q": {**NOUL, "instructions": "\ud800"}}, "questions.q.instructions has half of a surrogate"),
    ({"q": {**NOUL, "instructions": {"a": float("nan")}}}, "questions.q.instructions is not what"),
    ({"q": {**NOUL, "instructions": deep(MAX_DEPTH + 1)}}, "questions.q.instructions has more"),
    ({"q": {**NOUL, "instructions": deep(100_000)}}, "questions.q.instructions has more than 100"),
    (
        {str(i): NOUL for i in range(MAX_QUESTIONS + 1)},
        "questions has 401, expected 1 to",
    ),
]


@pytest.mark.parametrize(("questions", "words"), WRONG)
def test_what_is_wrong_is_refused_by_its_field(questions: Any, words: str) -> None:
    with pytest.raises(ag.FieldError) as caught:
        read_questions(questions)
    assert str(caught.value).startswith(words)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path, copy.code) == (str(caught.value), caught.value.path, "field")


def test_records_say_which_field_is_wrong() -> None:
    with pytest.raises(ag.InputError, match=r"^criteria has an option twice"):
        ag.Choice("Which?", ["a", "a"])
    with pytest.raises(ag.InputError, match=r"^Score\(\): levels must be a list"):
        ag.Score("How much?", "abc")
    with pytest.raises(ag.InputError, match=r"^Predicate\(\): adapter must be a string"):
        ag.Predicate("Is it?", adapter=7)  # type: ignore[arg-type]


def test_questions_have_a_hash_and_do_not_change() -> None:
    question = ag.Choice("Which?", ["a", "b"])
    assert hash(question) == hash(ag.Choice("Which?", {"a": None, "b": None}))
    with pytest.raises(TypeError):
        question.options["c"] = None  # type: ignore[index]
