"""Calls of tools as constraints: free text up to their marker, whatever tokens spell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.generate.calls import HERMES, CallForm, CallMatcher, CallRules
from tests.support import inside

SCHEMAS: dict[str, Any] = {
    "get": {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "get_all": {"type": "object", "properties": {}, "additionalProperties": False},
}
RULES = CallRules(
    HERMES, SCHEMAS, must=False, many=True, thinking=("<think>", "</think>"), begun=False
)
ONE = '<tool_call>\n{"name": "get", "arguments": {"n": 3}}\n</tool_call>'
ALL = '<tool_call>\n{"name": "get_all", "arguments": {}}\n</tool_call>'
NEVER = CallForm("<t>>", ("name", "arguments"), (":",), "", ";", "compact", "<t>")


def allowed(matcher: CallMatcher, model: ag.Model) -> np.ndarray[Any, Any]:
    found = matcher.mask(np.zeros(model.n_vocab, np.float32))
    return np.isfinite(found)


def goes(
    model: ag.Model, rules: CallRules, text: str, *, byte_by_byte: bool = False
) -> CallMatcher:
    """The state after a text, each token of which is allowed."""
    matcher = rules.start(inside.vocab(model))
    parts = list(text) if byte_by_byte else [text]
    for token in [token for part in parts for token in model.tokenize(part)]:
        assert allowed(matcher, model)[token], model.detokenize([token])
        matcher.accept(token)
    return matcher


@pytest.mark.parametrize("byte_by_byte", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        ONE,
        ALL,
        f"{ONE}\n{ALL}",
        f"So <t <tool_call \n{ONE}",
        f"<think>{ONE} <tool_call>x</think>{ALL}",
    ],
)
def test_calls_of_their_schemas_are_let_through(
    model: ag.Model, text: str, byte_by_byte: bool
) -> None:
    matcher = goes(model, RULES, text, byte_by_byte=byte_by_byte)
    assert allowed(matcher, model)[model.end_tokens[0]]
    assert not matcher.must_end  # another call may follow
    assert goes(model, replace(RULES, many=False), ONE).must_end


@pytest.mark.parametrize(
    ("before", "wrong"),
    [
        ("<tool_call>\n", "x"),
        ('<tool_call>\n{"name": "get", "arguments": {', "}"),
        ('<tool_call>\n{"name": "get', "_ay"),
        ('<tool_call>\n{"name": "get_all", "arguments": {', '"'),
        (f"<think></think>{ONE}\n", "S"),
        ("<tool_call", ">>"),  # one token, with which the marker ends and what follows is wrong
    ],
)
def test_others_are_not(model: ag.Model, before: str, wrong: str) -> None:
    matcher = goes(model, RULES, before)
    for token in model.tokenize(wrong):
        if not allowed(matcher, model)[token]:
            return
        matcher.accept(token)
    pytest.fail(f"{wrong!r} is let through")


def test_a_token_may_go_on_behind_the_marker(model: ag.Model) -> None:
    rules = replace(RULES, form=NEVER)
    both = model.tokenize(">>")
    assert len(both) == 1
    matcher = goes(model, rules, "a <t>>")
    assert allowed(matcher, model).sum() < 10  # it is within a call now
    goes(model, rules, 'a <t>>get:{"n":3};')
    goes(model, rules, '<think><t>> </think>a <t>>get:{"n":3};')


def test_what_is_spelled_only_in_part_is_free_text(model: ag.Model) -> None:
    for text in ("<tool_call", "<<tool_cal", "a<tool_call ><tool_", "<think><tool_call>"):
        matcher = goes(model, RULES, text)
        assert allowed(matcher, model)[model.end_tokens[0]]
        assert not matcher.must_end
        assert matcher.forced() == b""


def test_a_marker_that_is_only_a_bracket_counts_at_the_beginning(model: ag.Model) -> None:
    opening = '{"name": "'
    between = ('", "x": ',)
    form = replace(HERMES, opening=opening, between=between, joint="", closing="}")
    rules = replace(RULES, form=replace(form, trigger=opening, only_first=True))
    assert goes(model, rules, '\n{"name": "get", "x": {"n": 3}}').must_end
    for text in ('So {"name": "', '{"nam": "a"}', '{ "name": "'):
        matcher = goes(model, rules, text + "anything }")
        assert allowed(matcher, model).all()
    matcher = goes(model, rules, "<think>a</think>\n" + '{"name": "')
    assert allowed(matcher, model).sum() < 5


def test_who_must_call_does_so_at_once_or_behind_its_thinking(model: ag.Model) -> None:
    must = replace(RULES, must=True)
    assert not allowed(goes(model, must, ""), model)[model.tokenize("S")[0]]
    assert goes(model, must, ONE).forced() == b""
    thinks = replace(must, begun=True, many=False)
    matcher = goes(model, thinks, f"{ONE} so")
    assert not allowed(matcher, model)[model.end_tokens[0]]
    assert goes(model, thinks, f"so </think>\n\n{ONE}").must_end
    assert goes(model, thinks, f"so </think>{ONE}").must_end


def test_copies_are_independent(model: ag.Model) -> None:
    matcher = goes(model, RULES, '<tool_call>\n{"name": "get')
    copy = matcher.copy()
    for token in model.tokenize("_all"):
        copy.accept(token)
    assert allowed(matcher, model)[model.tokenize('"')[0]]
    assert copy.forced().startswith(b'", "arguments": {}')
