"""The rules one by one, and replies that do not fit them."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_gguf.errors import AloraError, InputError, OutputError
from alora_gguf.intrinsics import Contract, Outcome, rewrite, transform
from alora_gguf.intrinsics.contract import final_channel
from alora_gguf.intrinsics.reply import Reply, check_spelling
from alora_gguf.messages import Document, Message
from alora_gguf.options import TokenLogprob, TopLogprob

TALK = [Message("user", "One. Two."), Message("assistant", "Three. Four. Five.")]
DOCS = [Document("Six. Seven.", doc_id="a"), Document("Eight.", doc_id="b")]


def token(text: str, logprob: float = -0.1, **top: float) -> TokenLogprob:
    tops = (TopLogprob(0, text, logprob), *(TopLogprob(1, t, lp) for t, lp in top.items()))
    return TokenLogprob(0, text, logprob, tops)


def run(rules: str, text: str, tokens: list[TokenLogprob] | None = None, more: str = "") -> Outcome:
    """What a contract with these rules makes of a reply."""
    lines = "".join(f"  - {rule}\n" for rule in rules.splitlines() if rule)
    contract = Contract.parse(
        f"model: ~\nresponse_format: ~\n{more}transformations:\n{lines}", "io.yaml"
    )
    return transform(contract, text, tokens, rewrite(contract, TALK, DOCS))


def value(rules: str, text: str, more: str = "") -> Any:
    return run(rules, text, None, more).value


def test_rules_change_only_what_their_path_matches() -> None:
    nest = "{{type: nest, input_path: {}, field_name: n}}"
    text = '{"a": [1, {"b": 2}], "b": null}'
    assert value(nest.format("[]"), text) == {"n": {"a": [1, {"b": 2}], "b": None}}
    assert value(nest.format("[a, 0]"), text)["a"] == [{"n": 1}, {"b": 2}]
    assert value(nest.format("[a, ~, b]"), text)["a"] == [1, {"b": {"n": 2}}]
    assert value(nest.format("[~]"), text) == {"a": {"n": [1, {"b": 2}]}, "b": {"n": None}}
    for path in ("[c]", "[a, 2]", "[a, b]", "[b, ~]", "[0]", "[a, 0, ~, ~]"):
        assert value(nest.format(path), text) == {"a": [1, {"b": 2}], "b": None}


def test_project() -> None:
    rule = "{type: project, input_path: [], retained_fields: {b: x, c: y, a: z}}"
    assert value(rule, '{"a": 1, "b": [2]}') == {"x": [2], "y": None, "z": 1}
    assert value(rule, '[{"a": 1}, {}]') == [{"x": None, "y": None, "z": n} for n in (1, None)]
    assert list(value(rule, '{"a": 1}')) == ["x", "y", "z"]


def test_explode() -> None:
    rule = "{type: explode, input_path: [], target_field: b}"
    found = value(rule, '[{"a": 1, "b": [2, [3]], "c": {}}, {"b": []}]')
    assert found == [{"a": 1, "b": 2, "c": {}}, {"a": 1, "b": [3], "c": {}}]
    assert list(found[0]) == ["a", "b", "c"]


def test_drop_duplicates() -> None:
    rule = "{type: drop_duplicates, input_path: [], target_fields: [a, b]}"
    text = '[{"a": 1, "b": {"x": [1]}, "n": 1}, {"a": true, "b": 0}, {"b": {"x": [1]}, "a": 1.0}]'
    assert value(rule, text) == [{"a": 1, "b": {"x": [1]}}, {"a": True, "b": 0}]


def test_merge_spans() -> None:
    rule = (
        "{type: merge_spans, input_path: [], group_fields: [g], begin_field: b, end_field: e, "
        "text_field: t}"
    )
    text = (
        '[{"g": "y", "b": 3, "e": 5, "t": "lo"}, {"g": null, "b": 0, "e": 3, "t": "abc"},'
        ' {"g": "y", "b": 0, "e": 3, "t": "hel"}, {"b": 3, "e": 4, "t": "d"},'
        ' {"g": "y", "b": 6, "e": 7, "t": "!"}, {"g": 3, "b": 4, "e": 5, "t": "?"}]'
    )
    assert value(rule, text) == [
        {"g": None, "b": 0, "e": 4, "t": "abcd"},
        {"g": 3, "b": 4, "e": 5, "t": "?"},
        {"g": "y", "b": 0, "e": 5, "t": "hello"},
        {"g": "y", "b": 6, "e": 7, "t": "!"},
    ]
    assert value(rule, "[]") == []


DECODE = (
    "{type: decode_sentences, input_path: [~, s], source: [all_but_last_message, documents], "
    "output_names: {text: t, message_index: m, document_id: d}}"
)
BOUNDARIES = "sentence_boundaries: {documents: c, all_but_last_message: h, last_message: r}\n"


def test_decoding_goes_by_the_numbers_that_were_shown() -> None:
    found = value(DECODE, '[{"s": 3}, {"s": 0}, {"s": 2}, {}]', BOUNDARIES)
    assert found == [
        {"s": 3, "t": "One. ", "d": None, "m": 0},
        {"s": 0, "t": "Six. ", "d": "a", "m": None},
        {"s": 2, "t": "Eight.", "d": "b", "m": None},
        {},
    ]


@pytest.mark.parametrize("how", ["string", "json", "roles"])
def test_decoding_of_documents_in_messages(how: str) -> None:
    more = f"{BOUNDARIES}docs_as_message: {how}\n"
    assert value(DECODE, '[{"s": 4}, {"s": 1}]', more) == [
        {"s": 4, "t": "Two.", "d": None, "m": 0},
        {"s": 1, "t": "Seven.", "d": "a", "m": None},
    ]


NEST = "{type: nest, input_path: [], field_name: n}"
EXPLODE = "{type: explode, input_path: [], target_field: a}"
DROP = "{type: drop_duplicates, input_path: [], target_fields: [a]}"
PROJECT = "{type: project, input_path: [], retained_fields: [a]}"
MERGE = "{type: merge_spans, input_path: [], group_fields: [g], begin_field: b, end_field: e}"
MERGE_TEXT = MERGE.replace("end_field: e", "end_field: e, text_field: t")
WRONG = [
    (NEST, "[1", "io.yaml: the reply ends in the middle of its JSON"),
    (NEST, "yes", "io.yaml: the reply is not JSON: at character 0"),
    (EXPLODE, "{}", "rule explode: the root is an object, expected an array of objects"),
    (EXPLODE, "[1]", "rule explode: [0] is 1, expected an object"),
    (EXPLODE, '[{"b": 1}]', "rule explode: [0] has no field 'a' but 'b'"),
    (EXPLODE, '[{"a": null}]', "rule explode: [0].a is null, expected an array"),
    (DROP, '"x"', "rule drop_duplicates: the root is 'x', expected an array of objects"),
    (DROP, '[{"a": 1}, {}]', "rule drop_duplicates: [1] has no field 'a' but none"),
    (PROJECT, "3", "rule project: the root is 3, expected an object or an array of objects"),
    (PROJECT, "[[]]", "rule project: [0] is an array, expected an object"),
    (MERGE, "[{}]", "rule merge_spans: [0].b is null, expected an integer"),
    (MERGE, '[{"b": 1, "e": true}]', "[0].e is true, expected an integer"),
    (MERGE, '[{"b": 1.0, "e": 2}]', "[0].b is 1.0, expected an integer"),
    (MERGE, '[{"b": 1, "e": 2, "g": []}]', "[0].g is an array, expected a single value"),
    (MERGE, '[{"b": 1, "e": 2, "t": ""}]', "[0] has the field 't', which has no part in it"),
    (MERGE, '[{"b": 1, "e": 2}, {"b": 1, "e": 3}]', "two spans of the root begin at 1 in the same"),
    (MERGE_TEXT, '[{"b": 1, "e": 2}]', "[0].t is null, expected a text"),
    (DECODE, '[{"s": 5}]', "[0].s is 5, expected the number of a sentence of all_but_last_message"),
    (DECODE, '[{"s": -1}]', "[0].s is -1, expected the number of a sentence"),
    (DECODE, '[{"s": true}]', "[0].s is true, expected the number of a sentence"),
    (DECODE, '[{"s": "1"}]', "[0].s is '1', expected the number of a sentence"),
    (DECODE, '[{"s": [1]}]', "[0].s is an array, expected the number of a sentence"),
]


@pytest.mark.parametrize(("rule", "text", "message"), WRONG, ids=range(len(WRONG)))
def test_replies_that_do_not_fit(rule: str, text: str, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        value(rule, text, BOUNDARIES)
    assert message in str(caught.value)
    assert str(caught.value).startswith("io.yaml: the reply")


def test_a_wildcard_for_fields_in_a_list() -> None:
    rule = DECODE.replace("[~, s]", "[~]")
    with pytest.raises(OutputError, match="the root is an array, expected an object; correct inpu"):
        value(rule, "[1]", BOUNDARIES)
    assert value(rule, "[]", BOUNDARIES) == []
    assert value(rule, "7", BOUNDARIES) == 7
    assert value(rule, '{"x": 2}', BOUNDARIES) == {"x": 2, "t": "Eight.", "d": "b", "m": None}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["x", "y"]) | st.just(0.5),
    lambda v: (
        st.lists(v, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "e", "g", "s", "t", "r"]), v, max_size=5)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON, st.lists(st.sampled_from([NEST, EXPLODE, DROP, PROJECT, MERGE, MERGE_TEXT, DECODE])))
@pytest.mark.slow
def test_no_reply_raises_anything_else(reply: Any, rules: list[str]) -> None:
    try:
        value("\n".join(rules or [NEST]), json.dumps(reply), BOUNDARIES)
    except OutputError as error:
        assert str(error).startswith("io.yaml: the reply: rule ")  # noqa: PT017 # or none is raised


# ---- likelihood ----------------------------------------------------------------------------------

YES = (
    "{type: likelihood, input_path: [a], categories_to_values: {'yes': 1, 'no': 0, ~: 5, true: 7}}"
)


def test_likelihood_weighs_and_names_its_tokens() -> None:
    tokens = [token('{"a": "'), token("yes", math.log(0.6), n=math.log(0.2)), token('"}')]
    outcome = run(YES, '{"a": "yes"}', tokens)
    assert outcome.value == {"a": pytest.approx(0.75, abs=1e-12)}
    assert outcome.used == (tokens[1],)


def test_likelihood_of_null_and_true() -> None:
    third = math.log(1 / 3)
    tokens = [token('{"a":'), token("null", third, **{"tr": third, '"n': third}), token("}")]
    assert run(YES, '{"a":null}', tokens).value == {"a": pytest.approx((5 + 7 + 0) / 3)}
    tokens[1] = token("null", third, no=third, yes=third)
    assert run(YES, '{"a":null}', tokens).value == {"a": 5.0}


def test_probabilities_that_are_tiny_still_weigh() -> None:
    tokens = [token('{"a": "'), token("yes", -2000.0, no=-2000.0 + math.log(3)), token('"}')]
    assert run(YES, '{"a": "yes"}', tokens).value == {"a": pytest.approx(0.25)}


def test_a_token_with_the_whole_value_has_alternatives_too() -> None:
    tokens = [token('{"a":'), token(' "no"', -0.1, **{' "yes"': -0.1, '"yes"': 0.0}), token("}")]
    assert run(YES, '{"a": "no"}', tokens).value == {"a": pytest.approx(0.5)}


def test_parts_of_characters_are_passed_over() -> None:
    rule = "{type: likelihood, input_path: [a], categories_to_values: {é: 1, e: 0}}"
    tokens = [token('{"a":"'), token("", -0.5), token("é", -0.5, e=-0.5), token('"}')]
    outcome = run(rule, '{"a":"é"}', tokens)
    assert outcome.value == {"a": pytest.approx(0.5)}
    assert outcome.used == (tokens[2],)


REPLY = '{"a": "maybe"}'
PARTS = [token('{"a": "'), token("maybe"), token('"}')]


@pytest.mark.parametrize(
    ("tokens", "text", "error", "message"),
    [
        (None, REPLY, InputError, "needs the reply's tokens with their 10 likeliest"),
        (PARTS[:2], REPLY, InputError, "differ from the reply from character 12 on: '' against '"),
        (
            [token('{"a": "x"}')],
            REPLY,
            InputError,
            "from character 7 on: 'x\"}' against 'maybe\"}'",
        ),
        (PARTS, REPLY, OutputError, "rule likelihood: a is 'maybe', expected one of 'yes', 'no', "),
        ([token(REPLY[:6]), token(REPLY[6:13]), token("}")], REPLY, OutputError, "expected one of"),
        ([token('{"a": ["yes"]}')], '{"a": ["yes"]}', OutputError, "a is an array, not a single"),
        (
            [token('{"a": "'), token("no", math.nan), token('"}')],
            '{"a": "no"}',
            OutputError,
            "a is 'no', exp",
        ),
        (
            [token('{"a": "'), token("no", -math.inf), token('"}')],
            '{"a": "no"}',
            OutputError,
            "or one",
        ),
    ],
)
def test_likelihoods_that_cannot_be_told(
    tokens: list[TokenLogprob] | None, text: str, error: type[AloraError], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(YES, text, tokens)
    assert message in str(caught.value)


def test_likelihood_after_a_rule_that_changes_the_value() -> None:
    tokens = [token('{"a": "'), token("no"), token('"}')]
    nest = "{type: nest, input_path: [a], field_name: a}"
    with pytest.raises(OutputError, match="put likelihood before the rules that move or change"):
        run(f"{nest}\n{YES}", '{"a": "no"}', tokens)
    with pytest.raises(OutputError, match=r"a is 0\.0, not a single value of the reply as it was"):
        run(f"{YES}\n{YES}", '{"a": "no"}', tokens)
    moved = "{type: project, input_path: [], retained_fields: {b: a}}"
    two = [token('{"a": "'), token("no"), token('", "b": "'), token("no"), token('"}')]
    with pytest.raises(OutputError, match="put likelihood before"):
        run(f"{moved}\n{YES}", '{"a": "no", "b": "no"}', two)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), st.data())
def test_each_character_has_its_token(text: str, data: st.DataObject) -> None:
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    parts = [text[a:b] for a, b in itertools.pairwise(cuts)]
    parts[1:1] = [""]
    tokens = [token(part) for part in parts]
    check_spelling(tokens, text, "x")
    reply = Reply("x", text, None, {}, tokens, {})
    for offset in range(len(text)):
        at, begin = reply.token_at(offset)
        found = tokens[at]
        assert found.text
        assert begin <= offset < begin + len(found.text)
        assert text[begin : begin + len(found.text)] == found.text


# ---- Harmony's channels --------------------------------------------------------------------------


def channel(*texts: str) -> str | None:
    found = final_channel([token(text) for text in texts])
    return None if found is None else "".join(t.text for t in found)


def test_final_channel() -> None:
    head = ("<|channel|>", "final", "<|message|>")
    assert channel(*head, "a", "b", "<|return|>", "c") == "ab"
    assert channel("<|channel|>", " ", " final", "\n", "<|message|>", "a") == "a"
    assert channel(*head, "a", "<|end|>", *head, "b") == "b"
    assert channel("<|channel|>", "analysis", "<|message|>", "a") is None
    assert channel("<|", "channel", "|>", "final", "<|message|>", "a") is None
    assert channel("a", "<|channel|>") is None
    assert channel("<|channel|>", "final") is None
    assert channel(*head) is None
    assert channel(*head, "<|end|>") is None
    assert channel() is None


@pytest.mark.slow
def test_the_workaround_goes_by_the_tokens() -> None:
    tokens = [token(t) for t in ("<|channel|>", "final", "<|message|>", "[1]", "<|end|>")]
    more = "logprobs_workaround: true\n"
    assert run(NEST, "garbage", tokens, more).value == {"n": [1]}
    assert run(NEST, "[2]", None, more).value == {"n": [2]}
    assert run(NEST, "[3]", [token("[3]")], more).value == {"n": [3]}
    with pytest.raises(OutputError, match="is not JSON"):
        run(NEST, "garbage", tokens)
