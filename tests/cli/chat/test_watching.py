"""What /watch takes, and which verdicts a guard lets pass."""

from __future__ import annotations

import re
from typing import Any

import pytest
from alora_gguf.cli.chat.asking import Watched, in_words, parse_all, parse_watched

from alora_gguf import InputError
from alora_gguf.intrinsics import Contract

KNOWN = {
    "jailbreak": Contract(source="", judges="question", good="low"),
    "answerability": Contract(source="", judges="question", good="high"),
    "uncertainty": Contract(source="", judges="answer", good="high"),
    "topic": Contract(source=""),  # does not say
    # names that a guess would take for the contrary
    "guardrail_passed": Contract(source="", judges="question", good="high"),
    "risk_free": Contract(source="", judges="question", good="high"),
    "certain_harm": Contract(source="", judges="question", good="low"),
}


@pytest.mark.parametrize(
    ("text", "watched", "shown"),
    [
        ("answerability", Watched("answerability", "question"), "answerability"),
        ("uncertainty", Watched("uncertainty", "answer"), "uncertainty"),
        ("topic", Watched("topic", "answer"), "topic"),
        ("topic@question", Watched("topic", "question"), "topic"),
        ("answerability@answer", Watched("answerability", "answer"), "answerability"),
        ("jailbreak!", Watched("jailbreak", "question", "!", good="low"), "jailbreak!"),
        ("guardrail_passed!", Watched("guardrail_passed", "question", "!", good="high"),
         "guardrail_passed!"),
        ("uncertainty@question!", Watched("uncertainty", "question", "!", good="high"),
         "uncertainty!"),
        ("jailbreak<0.25", Watched("jailbreak", "question", "<", 0.25), "jailbreak<0.25"),
        ("topic>.5", Watched("topic", "question", ">", 0.5), "topic>0.5"),
        ("topic@question>5e-1", Watched("topic", "question", ">", 0.5), "topic>0.5"),
    ],
)  # fmt: skip
def test_forms(text: str, watched: Watched, shown: str) -> None:
    found = parse_watched(text, KNOWN)
    assert found == watched
    assert str(found) == shown
    assert found.is_guard == bool(watched.sign)


def test_in_words() -> None:
    texts = ["uncertainty", "jailbreak!", "topic>.5", "topic@answer", "answerability"]
    assert in_words(parse_all(texts, KNOWN)) == (
        "watching jailbreak! topic>0.5 answerability at each question, uncertainty topic at each "
        "answer"
    )
    assert in_words(parse_all(["topic"], KNOWN)) == "watching topic at each answer"
    assert in_words([]) == "watching nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "'nope': expected NAME, NAME@question, NAME@answer or a guard such as NAME! or "
         "NAME<0.5, with NAME one of the intrinsics that are loaded: jailbreak, answerability, "),
        ("", "'': expected NAME, "),
        ("jailbreak@here", "'jailbreak@here': expected NAME, "),
        ("jailbreak!!", "'jailbreak!!': expected NAME, "),
        ("jailbreak<", "'jailbreak<': expected a number behind <, found ''"),
        ("jailbreak<0,5", "'jailbreak<0,5': expected a number behind <, found '0,5'"),
        ("jailbreak<nan", "'jailbreak<nan': expected a number behind <, found 'nan'"),
        ("jailbreak>inf", "'jailbreak>inf': expected a number behind >, found 'inf'"),
        ("topic!", "'topic!': its contract does not say which verdicts are good; write topic<0.5 "
         "if low numbers are, topic>0.5 if high ones are, or add to the response_format of its "
         'io.yaml "x-alora": {"judges": "question", "good": "low"} (or "high")'),
        ("uncertainty!", "'uncertainty!': a guard is asked about the question, before the "
         "reply is shown, and this one judges the answer; ask it afterwards: uncertainty@answer"),
        ("uncertainty>0.5", "'uncertainty>0.5': a guard is asked about the question, "),
        ("jailbreak@answer<0.5", "'jailbreak@answer<0.5': a guard is asked about the question, "),
    ],
)  # fmt: skip
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^" + re.escape(message)):
        parse_watched(text, KNOWN)


def test_one_can_be_asked_of_both_but_not_twice_of_one() -> None:
    both = parse_all(["answerability", "answerability@answer"], KNOWN)
    assert [each.place for each in both] == ["question", "answer"]
    message = "'jailbreak<0.5': 'jailbreak' is asked about the question already; name it once"
    with pytest.raises(InputError, match=rf"^{message}$"):
        parse_all(["jailbreak", "jailbreak<0.5"], KNOWN)


@pytest.mark.parametrize(
    ("guard", "value", "passes"),
    [
        ("jailbreak<0.5", {"jailbreak": 0.49}, True),
        ("jailbreak<0.5", {"jailbreak": 0.5}, False),
        ("jailbreak<0.5", {"jailbreak": "no"}, True),
        ("jailbreak<0.5", {"jailbreak": "yes"}, False),
        ("jailbreak<0.5", {"jailbreak": "who knows"}, False),
        ("jailbreak<0.5", {"jailbreak": None}, False),
        ("jailbreak<0.5", {}, False),
        ("jailbreak<0.5", {"jailbreak": float("nan")}, False),
        ("jailbreak>0.5", {"jailbreak": 0.51}, True),
        ("jailbreak>0.5", {"jailbreak": 0.5}, False),
        ("jailbreak!", {"jailbreak": 0.1}, True),
        ("jailbreak!", {"jailbreak": 0.9}, False),
        ("jailbreak!", {"jailbreak": False}, True),
        ("jailbreak!", {"answer": "harmless"}, False),
        ("jailbreak!", None, False),
        ("jailbreak!", {"jailbreak": float("nan")}, False),
        ("guardrail_passed!", {"guardrail_passed": 0.99}, True),
        ("guardrail_passed!", {"guardrail_passed": 0.02}, False),
        ("risk_free!", {"risk_free": "yes"}, True),
        ("risk_free!", {"risk": 0.1}, False),
        ("certain_harm!", {"certain_harm": 0.9}, False),
        ("uncertainty@question!", {"answer": "x", "certainty": 0.9}, True),
    ],
)
def test_what_a_guard_lets_pass(guard: str, value: Any, passes: bool) -> None:
    assert parse_watched(guard, KNOWN).passes(value) is passes
