"""What /watch takes, and which verdicts a guard lets pass."""

from __future__ import annotations

import re
from typing import Any

import pytest
from alora_gguf.cli.chat.asking import Watched, in_words, no_longer, parse_all

from alora_gguf import InputError, IntrinsicCall
from alora_gguf.intrinsics import Contract
from tests.support.chatting import watching

KNOWN = {
    "jailbreak": Contract(source="", judges="question", good="low"),
    "answerability": Contract(source="", judges="question", good="high"),
    "uncertainty": Contract(source="", judges="answer", good="high"),
    "topic": Contract(source=""),  # does not say
    "query_rewrite": Contract(
        source="", judges="question", good="high",
        response_format={"type": "object", "properties": {"question": {"type": "string"}}},
    ),
    "severity": Contract(
        source="", judges="question", good="low",
        response_format={"type": "integer", "minimum": 1, "maximum": 5},
    ),
    "guardian-core": Contract(
        source="g.gguf", judges="question", good="low", instruction="{criteria} {last_message}"
    ),
    "requirement-check": Contract(source="r.gguf", judges="answer", instruction="{a} {b}"),
    # names that a guess would take for the contrary
    "guardrail_passed": Contract(source="", judges="question", good="high"),
    "risk_free": Contract(source="", judges="question", good="high"),
    "certain_harm": Contract(source="", judges="question", good="low"),
}  # fmt: skip


JAILBREAK = Watched(
    IntrinsicCall("guardian-core", {"criteria": "jailbreak"}), "question", "!", good="low"
)


@pytest.mark.parametrize(
    ("text", "watched", "shown"),
    [
        ("answerability", watching("answerability", "question"), "answerability"),
        ("uncertainty", watching("uncertainty", "answer"), "uncertainty"),
        ("topic", watching("topic", "answer"), "topic"),
        ("topic@question", watching("topic", "question"), "topic"),
        ("answerability@answer", watching("answerability", "answer"), "answerability"),
        ("jailbreak!", watching("jailbreak", "question", "!", good="low"), "jailbreak!"),
        ("guardrail_passed!", watching("guardrail_passed", "question", "!", good="high"),
         "guardrail_passed!"),
        ("uncertainty@question!", watching("uncertainty", "question", "!", good="high"),
         "uncertainty!"),
        ("jailbreak<0.25", watching("jailbreak", "question", "<", 0.25), "jailbreak<0.25"),
        ("topic>.5", watching("topic", "question", ">", 0.5), "topic>0.5"),
        ("guardian-core(criteria=jailbreak)!", JAILBREAK, "guardian-core(criteria=jailbreak)!"),
        ("guardian-core(jailbreak)!", JAILBREAK, "guardian-core(criteria=jailbreak)!"),
        ("topic@question>5e-1", watching("topic", "question", ">", 0.5), "topic>0.5"),
    ],
)  # fmt: skip
def test_forms(text: str, watched: Watched, shown: str) -> None:
    (found,) = parse_all(text, KNOWN)
    assert found == watched
    assert str(found) == shown
    assert parse_all(found.spec, KNOWN) == [found]
    assert found.is_guard == bool(watched.sign)


def test_in_words() -> None:
    text = "uncertainty jailbreak!, topic>.5,topic@answer  answerability"
    assert in_words(parse_all(text, KNOWN)) == (
        "watching jailbreak! topic>0.5 answerability at each question, uncertainty topic at each "
        "answer"
    )
    assert in_words(parse_all("topic", KNOWN)) == "watching topic at each answer"
    assert in_words([]) == "watching nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "'nope': expected NAME, NAME@question, NAME@answer or a guard such as NAME! or "
         "NAME<0.5, with NAME one of the intrinsics that are loaded: jailbreak, answerability, "),
        ("jailbreak(", "'jailbreak(': expected ) at the end"),
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
        parse_all(text, KNOWN)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("jailbreak!", "", ["no longer guarded by jailbreak"]),
        ("jailbreak!", "jailbreak", ["no longer guarded by jailbreak"]),
        ("jailbreak!", "jailbreak<0.9", []),
        ("jailbreak", "jailbreak!", []),
        ("jailbreak! topic", "topic jailbreak!", []),
        ("uncertainty topic", "uncertainty@question", ["no longer watched: uncertainty topic"]),
        ("topic@question<0.5 jb=guardian-core(criteria=x)! uncertainty", "answerability",
         ["no longer guarded by topic jb=guardian-core(criteria=x)",
          "no longer watched: uncertainty"]),
    ],
)  # fmt: skip
def test_what_is_lost_is_said(before: str, now: str, told: list[str]) -> None:
    found = parse_all(now, KNOWN) if now else []
    assert list(no_longer(parse_all(before, KNOWN), found)) == told


@pytest.mark.parametrize("guard", ["query_rewrite<0.5", "query_rewrite!", "query_rewrite>0"])
def test_what_answers_with_a_text_is_no_guard(guard: str) -> None:
    message = f"'{guard}': a guard goes by a number, and none comes of query_rewrite: by the respon"
    with pytest.raises(InputError, match=re.escape(message)):
        parse_all(guard, KNOWN)
    assert parse_all("query_rewrite", KNOWN)


@pytest.mark.parametrize(
    ("guard", "passes"),
    [
        ("severity<6", "every"), ("severity>0", "every"),
        ("severity<1", "no"), ("severity>5", "no"),
        ("severity<5", None), ("severity<1.1", None), ("severity>1", None), ("severity>4.9", None),
    ],
)  # fmt: skip
def test_a_bound_that_decides_nothing_is_refused(guard: str, passes: str | None) -> None:
    if passes is None:
        assert parse_all(guard, KNOWN)[0].is_guard
        return
    message = f"'{guard}': its numbers are from 1 to 5, by its contract, so that {passes} reply w"
    with pytest.raises(InputError, match=re.escape(message)):
        parse_all(guard, KNOWN)


def test_a_name_that_is_nearly_right_is_told() -> None:
    with pytest.raises(InputError, match=r"; did you mean answerability\?$"):
        parse_all("answerabilty", KNOWN)
    with pytest.raises(InputError, match=r"certain_harm$"):
        parse_all("jailbreak!!", KNOWN)


def test_two_verdicts_are_never_told_by_one_name() -> None:
    for text, problem in [
        ("j=jailbreak! j=uncertainty", "'j=uncertainty': 'j' is j=jailbreak already; choose ano"),
        ("j=jailbreak j=answerability", "'j=answerability': 'j' is j=jailbreak already; choose "),
        ("guardian-core(a) guardian-core(b)@answer", "'guardian-core(b)@answer': 'guardian-core' "
         "is asked about the question already; name it once, or with other arguments as ALIAS="),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=rf"^{re.escape(problem)}"):
            parse_all(text, KNOWN)
    assert len(parse_all("j=jailbreak! j=jailbreak@answer", KNOWN)) == 2


def test_one_can_be_asked_of_both_but_not_twice_of_one() -> None:
    both = parse_all("answerability answerability@answer", KNOWN)
    assert [each.place for each in both] == ["question", "answer"]
    message = "'jailbreak<0.5': 'jailbreak' is asked about the question already; name it once, or "
    with pytest.raises(InputError, match=rf"^{message}"):
        parse_all("jailbreak jailbreak<0.5", KNOWN)


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
    (found,) = parse_all(guard, KNOWN)
    assert found.passes(value) is passes


def test_one_intrinsic_is_watched_with_several_arguments_under_aliases() -> None:
    text = (
        'jb=guardian-core(criteria=jailbreak)!, bias=guardian-core(criteria="social bias (any)")'
        "@answer rude=guardian-core(The user's tone is rude, or worse)@question>0.9"
    )
    found = parse_all(text, KNOWN)
    assert [(each.call.label, each.call.name, dict(each.call.arguments)) for each in found] == [
        ("jb", "guardian-core", {"criteria": "jailbreak"}),
        ("bias", "guardian-core", {"criteria": "social bias (any)"}),
        ("rude", "guardian-core", {"criteria": "The user's tone is rude, or worse"}),
    ]
    assert [(each.place, each.sign, each.bound) for each in found] == [
        ("question", "!", 0.0), ("answer", "", 0.0), ("question", ">", 0.9),
    ]  # fmt: skip
    assert parse_all(" ".join(each.spec for each in found), KNOWN) == found
    assert in_words(found) == (
        "watching jb=guardian-core(criteria=jailbreak)! rude=guardian-core(criteria="
        '"The user\'s tone is rude, or worse")>0.9 at each question, bias=guardian-core('
        'criteria="social bias (any)") at each answer'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guardian-core!", "'guardian-core!': needs criteria; write guardian-core(criteria=…)"),
        ("requirement-check(a=x)",
         "'requirement-check(a=x)': needs b; write requirement-check(a=…, b=…)"),
        ("requirement-check(polite)",
         "requirement-check takes a=… and b=…, found 'polite'"),
        ("jailbreak(x)!", "jailbreak takes no arguments, found 'x'"),
        ("guardian-core(criterja=jailbreak)!", "g.gguf: unknown argument criterja (did you mean "
         "criteria?); the instruction takes criteria; put a text that begins like that in quo"),
        ("jailbreak(x=1)", "unknown argument x; the instruction takes none"),
        ("guardian-core(criteria=a) guardian-core(criteria=b)", "'guardian-core(criteria=b)': "
         "'guardian-core' is asked about the question already; name it once, or with other "
         "arguments as ALIAS=guardian-core(…)"),
        ("topic=guardian-core(criteria=a)", "'topic=guardian-core(criteria=a)': 'topic' is another "
         "intrinsic; choose another alias"),
        ("guardian-core(criteria=jailbreak", "'guardian-core(criteria=jailbreak': "
         "expected ) at the end"),
        ("guardian-core(criteria=jailbreak)@answer!",
         "'guardian-core(criteria=jailbreak)@answer!': a guard is asked about the question, before "
         "the reply is shown, and this one judges the answer; ask it afterwards: "
         "guardian-core(criteria=jailbreak)@answer"),
        ("guardian-core(criteria=jailbreak)nope", "'guardian-core(criteria=jailbreak)nope': "
         "expected NAME, "),
    ],
)  # fmt: skip
def test_refused_arguments(text: str, message: str) -> None:
    source = "" if message.startswith("unknown") else "^"
    with pytest.raises(InputError, match=source + re.escape(message)):
        parse_all(text, KNOWN)
