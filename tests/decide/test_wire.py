"""System One's and OpenAI's formats: what clients send is understood, what they read is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.decide import (
    choice_confidence,
    openai_request,
    openai_response,
    score_confidence,
    systemone_error,
    systemone_request,
    systemone_response,
)
from alora_gguf.decide.answers import choice_answer, score_answer

TIMINGS = ag.Timings(reused=90, evaluated=30, total=0.25, reuse_note="because")
USAGE = ag.Usage(read=130, reused=90, kept=10, written=5)


def decision(**answers: Any) -> ag.Decision:
    return ag.Decision(answers, USAGE, TIMINGS)


NOUL = ag.PredicateAnswer(0.9, timings=TIMINGS)
FAILED = ag.FailedAnswer(ag.OutputError("no JSON"), timings=TIMINGS)

# System One ---------------------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "model": "jev-latest",
    "state": {"subject": "Charged twice", "customer": {"plan": "pro", "tickets": 3}},
    "questions": {
        "refund": {"type": "noul", "instructions": "Money back?", "criteria": {"true": "refund"}},
        "team": {"type": "choice", "instructions": "Which?", "criteria": {"환불": None, "B": "x"}},
        "anger": {"type": "score", "instructions": "How?", "criteria": ["Calm", {"label": "Mad"}]},
    },
    "x_trace_id": "unknown fields are passed over",
    "assets": None,
}


def test_a_system_one_request_is_read() -> None:
    asked = systemone_request(BODY)
    assert (asked.model, asked.state) == ("jev-latest", BODY["state"])
    assert asked.questions == {
        "refund": ag.Predicate("Money back?", true="refund"),
        "team": ag.Choice("Which?", {"환불": None, "B": "x"}),
        "anger": ag.Score("How?", ["Calm", {"label": "Mad"}]),
    }
    assert systemone_request({k: v for k, v in BODY.items() if k != "model"}).model is None


@pytest.mark.parametrize(
    ("change", "loc", "kind"),
    [
        ({"state": None}, ["state"], "missing"),
        ({"state": 7}, ["state"], "value_error"),
        ({"questions": None}, ["questions"], "missing"),
        ({"questions": {}}, ["questions"], "value_error"),
        ({"questions": {"a.b": {"instructions": "?"}}}, ["questions", "a.b", "type"], "missing"),
        ({"model": 7}, ["model"], "value_error"),
        ({"assets": {"a": {"type": "image"}}}, ["assets"], "value_error"),
        (
            {"questions": {"q": {"type": "score", "instructions": "?", "criteria": ["a", None]}}},
            ["questions", "q", "criteria", 1],
            "value_error",
        ),
    ],
)
def test_a_wrong_system_one_request_names_the_field(
    change: dict[str, Any], loc: list[str], kind: str
) -> None:
    with pytest.raises(ag.FieldError) as caught:
        systemone_request({**BODY, **change})
    (detail,) = systemone_error(caught.value)["detail"]
    assert (detail["loc"], detail["type"]) == (["body", *loc], kind)
    assert str(caught.value) == detail["msg"]


def test_no_object_is_no_request() -> None:
    for body in (None, [], "x", 7):
        with pytest.raises(ag.FieldError, match="expected an object with state and questions"):
            systemone_request(body)
        with pytest.raises(ag.FieldError, match="expected an object with input and questions"):
            openai_request(body)


def test_other_errors_say_their_code() -> None:
    assert systemone_error(ag.CacheFullError("no room")) == {
        "detail": {"error_type": "cache_full", "message": "no room"}
    }


def test_a_system_one_answer_has_what_its_clients_read() -> None:
    body = systemone_response(
        decision(
            refund=NOUL,
            team=choice_answer(["환불", "B"], [0.25, 0.75], TIMINGS),
            anger=score_answer(["Calm", {"label": "Mad"}], [0.4, 0.6], TIMINGS),
            broken=FAILED,
        ),
        "base",
    )
    assert json.loads(json.dumps(body)) == body
    answers = {
        name: {k: v for k, v in answer.items() if not k.startswith("x_")}
        for name, answer in body["answers"].items()
    }
    assert answers == {
        "refund": {"type": "noul", "noul": 0.9},
        "team": {
            "type": "choice",
            "choice": "B",
            "probabilities": {"환불": 0.25, "B": 0.75},
            "confidence": choice_confidence([0.25, 0.75]),
        },
        "anger": {
            "type": "score",
            "score": 0.6,
            "legend": {"0": "Calm", "1": {"label": "Mad"}},
            "probabilities": {"0": 0.4, "1": 0.6},
            "confidence": score_confidence([0.4, 0.6]),
        },
        "broken": {"type": "error"},
    }
    assert body["usage"] == {"input_tokens": 220, "output_tokens": 5}
    assert body["model"] == "base"
    assert {name for name in body if not name.startswith("x_")} == {"model", "answers", "usage"}
    assert body["answers"]["refund"]["x_timings"]["reuse_note"] == "because"
    assert body["answers"]["broken"]["x_error"] == {"code": "output", "message": "no JSON"}


# OpenAI -------------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {
    "model": "base:judge",
    "input": "It is broken.",
    "questions": [
        {"type": "predicate", "instructions": "Is it a complaint?", "name": "complaint"},
        {
            "type": "choice",
            "instructions": [
                {"type": "input_text", "text": "Which"},
                {"type": "input_text", "text": "one?"},
            ],
            "choices": [{"value": "true", "description": "the word"}, {"value": True}],
        },
        {
            "type": "score",
            "instructions": "How bad?",
            "levels": [{"label": "fine"}, {"label": "bad", "description": "unusable"}],
            "adapter": "judge",
        },
    ],
    "prompt_cache_key": "k",
}  # fmt: skip


def test_an_openai_request_is_read() -> None:
    asked = openai_request(ASKED)
    assert asked.state == [{"role": "user", "content": "It is broken."}]
    assert asked.questions == {
        "0": ag.Predicate("Is it a complaint?"),
        "1": ag.Choice("Which\none?", {"true": "the word", True: None}),
        "2": ag.Score("How bad?", ["fine", "bad: unusable"], adapter="judge"),
    }
    assert (asked.model, asked.names) == ("base:judge", ("complaint", None, None))


def test_a_conversation_with_tools_is_an_input() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Weather?"}],
            "type": "message",
        },
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"at": "home"}'},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"role": "user", "content": [{"type": "input_json", "data": {"wind": 3}}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It rains."}]},
    ]
    assert openai_request({**ASKED, "input": items}).state == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": json.dumps({"name": "weather", "arguments": '{"at": "home"}'}),
        },
        {"role": "user", "content": 'Result of weather: rain\n\n{"wind": 3}'},
        {"role": "assistant", "content": "It rains."},
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": None}, "input is missing"),
        ({"input": " "}, "input is empty, expected what the questions are about"),
        ({"input": []}, "input: expected text, or an array of messages"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role is 'tool', expected user"),
        ({"input": [{"role": "user"}]}, "input[0].content is missing"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type is not supported: the model reads text alone",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id is 'c', which no call before it has",
        ),
        ({"questions": []}, "questions: expected an array of 1 to 400 questions"),
        ({"questions": [7]}, "questions[0] is a number, expected a question such as"),
        ({"questions": [{"type": "noul"}]}, "questions[0].type is 'noul', expected predicate"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions is missing"),
        (
            {"questions": [{"type": "predicate", "instructions": ""}]},
            "questions[0].instructions is empty",
        ),
        (
            {"questions": [{"type": "choice", "instructions": "?", "choices": [{"value": "a"}]}]},
            "questions[0].choices: expected an array of 2 to 255 choices",
        ),
        (
            {
                "questions": [
                    {"type": "choice", "instructions": "?", "choices": [{"value": "a"}] * 2}
                ]
            },
            "questions[0].choices[1].value is there twice",
        ),
        (
            {"questions": [{"type": "score", "instructions": "?", "levels": [{"label": "a"}]}]},
            "questions[0].levels has 1 level, expected 2 to 10",
        ),
        (
            {"questions": [{"type": "score", "instructions": "?", "levels": [{}, {}]}]},
            "questions[0].levels[0].label is missing",
        ),
        (
            {"questions": [{"type": "predicate", "instructions": "?", "criteria": {}}]},
            "questions[0] has no field 'criteria'",
        ),
        (
            {"questions": [{"type": "intrinsic"}]},
            "questions[0].intrinsic is missing",
        ),
    ],
)
def test_a_wrong_openai_request_names_the_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ag.FieldError) as caught:
        openai_request({**ASKED, **change})
    assert str(caught.value).startswith(words)


def test_an_openai_answer_has_what_its_client_reads() -> None:
    more = {"type": "intrinsic", "intrinsic": "judge", "name": "asked"}
    asked = openai_request({**ASKED, "questions": [*ASKED["questions"], more]})
    body = openai_response(
        asked,
        decision(**{
            "0": NOUL,
            "1": choice_answer(["true", True], [0.25, 0.75], TIMINGS),
            "2": score_answer(["fine", "bad: unusable"], [0.5, 0.5], TIMINGS),
            "3": FAILED,
        }),
        "base",
    )  # fmt: skip
    assert json.loads(json.dumps(body)) == body
    assert body["answers"] == [
        {"type": "predicate", "name": "complaint", "probability": 0.9},
        {
            "type": "choice",
            "name": None,
            "choice": True,
            "confidence": 0.5,
            "probabilities": [
                {"value": "true", "probability": 0.25},
                {"value": True, "probability": 0.75},
            ],
        },
        {
            "type": "score",
            "name": None,
            "score": 0.5,
            "confidence": 0.0,
            "probabilities": [
                {"value": 0, "label": "fine", "probability": 0.5},
                {"value": 1, "label": "bad", "probability": 0.5},
            ],
        },
        {
            "type": "refusal",
            "name": "asked",
            "error": {"code": "output", "message": "no JSON"},
        },
    ]
    assert body["usage"] == {
        "input_tokens": 220,
        "input_tokens_details": {"cached_tokens": 90, "cache_write_tokens": 10},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 225,
    }
