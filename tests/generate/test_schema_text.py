"""What schemas fix of their texts, held against what the compiled constraint admits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf.demo import INTRINSICS, base_path, io_yaml_path
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import SchemaError
from alora_gguf.generate.constraint import Constraint, Matcher
from alora_gguf.generate.plan import fixed
from alora_gguf.generate.schema import never_ends
from tests.support import inside

Schema = dict[str, Any]
YES_NO: Schema = {"type": "string", "enum": ["yes", "no"]}


def closed(**properties: Any) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


FINITE: list[tuple[Schema, tuple[str, ...]]] = [
    ({"const": "x"}, ('"x"',)),
    ({"const": {"b": [1, None], "a": True}}, ('{"b": [1, null], "a": true}',)),
    ({"enum": ["a", 1, True, None, 0.5]}, ('"a"', "1", "true", "null", "0.5")),
    ({"enum": [1, True, 1]}, ("1", "true")),
    ({"type": "string", "enum": ["a", 1]}, ('"a"',)),
    ({"type": ["integer", "null"], "enum": [None, 1, True, "a"]}, ("null", "1")),
    ({"enum": ["größer", "😀", 'a"b\\\n/', "not sure"]},
     ('"größer"', '"😀"', '"a\\"b\\\\\\n/"', '"not sure"')),
    ({"type": "boolean", "title": "T", "description": "D"}, ("true", "false")),
    ({"type": "null"}, ("null",)),
    ({"type": ["null", "boolean"]}, ("null", "true", "false")),
    ({"type": "integer", "minimum": -1, "maximum": 1.5}, ("-1", "0", "1")),
    ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4.5}, ("3", "4")),
    ({"anyOf": [{"const": 1}, {"type": "null"}, {"const": 1}]}, ("1", "null")),
    ({"oneOf": [{"const": "a"}, {"const": "b"}]}, ('"a"', '"b"')),
    (closed(), ("{}",)),
    (closed(answer=YES_NO), ('{"answer": "yes"}', '{"answer": "no"}')),
    (closed(b=YES_NO, a={"const": 0}), ('{"b": "yes", "a": 0}', '{"b": "no", "a": 0}')),
    (closed(ä=closed(x={"type": "boolean"})), ('{"ä": {"x": true}}', '{"ä": {"x": false}}')),
    ({**closed(k={"$ref": "#/$defs/a~1b"}), "$defs": {"a/b": YES_NO}},
     ('{"k": "yes"}', '{"k": "no"}')),
    ({**closed(k={"allOf": [{"$ref": "#/definitions/v"}], "title": "K"}),
      "definitions": {"v": {"const": 7}}}, ('{"k": 7}',)),
    ({"type": "integer", "minimum": 0, "maximum": 3, "multipleOf": 2}, ("0", "2")),
    ({"const": 1.0}, ("1",)),
    ({"enum": [1e30, 2]}, ("1000000000000000000000000000000", "2")),
    ({"const": 2**60}, (str(2**60),)),
    ({"type": "integer", "enum": [1.0]}, ("1",)),
    ({"type": "string", "enum": ["ab"], "maxLength": 3}, ('"ab"',)),
    ({"anyOf": [{"const": 1}], "type": "integer"}, ("1",)),
    ({"anyOf": [{"const": 1}, {"const": 2}], "allOf": [{"const": 1}]}, ("1",)),
    ({"const": 1, "enum": [1, 2]}, ("1",)),
    ({**closed(a=YES_NO), "required": []}, ('{"a": "yes"}', '{"a": "no"}', "{}")),
    ({**closed(a=YES_NO), "minProperties": 1}, ('{"a": "yes"}', '{"a": "no"}')),
]  # fmt: skip

OPEN: list[Schema] = [
    {},
    {"type": "string"},
    {"type": "integer"},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "minimum": 0, "maximum": 64},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"enum": list(range(65))},
    {"const": "\x7f"},
    {"const": "\ud800"},
    {"anyOf": [{"const": 1}, {"type": "string"}]},
    {"type": "array", "items": {"const": 1}},
    closed(a=YES_NO, b={"type": "string"}),
    {**closed(a=YES_NO), "additionalProperties": True},
    {"type": "object", "properties": {"a": YES_NO}, "required": ["a"]},
    {"properties": {"a": YES_NO}, "required": ["a"], "additionalProperties": False},
    closed(**{f"k{i}": {"type": "boolean"} for i in range(7)}),
    {"$ref": "https://example.com"},
    {"$ref": "#/$defs/none"},
    {"$ref": "#"},
]

OPENINGS: list[tuple[Schema, str]] = [
    ({}, ""),
    ({"type": "string"}, '"'),
    ({"type": "number"}, ""),
    ({"type": "array"}, "["),
    ({"type": "array", "items": {"type": "string"}, "minItems": 1}, '["'),
    ({"type": "array", "items": closed(r={"type": "integer"}), "minItems": 2}, '[{"r": '),
    ({"type": "array", "prefixItems": [{"const": 1}], "minItems": 1}, "[1"),
    ({"type": "object"}, "{"),
    (closed(answer={"type": "string"}, answerable=YES_NO), '{"answer": "'),
    (closed(score={"type": "number"}), '{"score": '),
    (closed(version={"const": 1}, text={"type": "string"}), '{"version": 1, "text": "'),
    ({**closed(v={"const": 1}), "additionalProperties": True}, '{"v": 1'),
    (closed(a=closed(b={"type": "array"})), '{"a": {"b": ['),
    (closed(answer=YES_NO), '{"answer": "'),
    (closed(answer={"enum": ["maybe", "mayn't"]}), '{"answer": "may'),
    (closed(answer={"const": "x"}), '{"answer": "x"}'),
    ({**closed(ab={"const": 1}, ac={"type": "null"}), "required": ["ac"]}, '{"a'),
    ({**closed(a={"const": 1}, b={"type": "null"}), "required": ["a"]}, '{"a": 1'),
    ({**closed(a={"const": 1}), "required": []}, "{"),
    ({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"]},
     '{"a": 1, "b": '),
    ({"anyOf": [closed(error={"type": "string"}), closed(errors={"type": "array"})]}, '{"error'),
    ({"anyOf": [{"type": "array"}, closed(a={"type": "string"})]}, ""),
    ({"type": ["array", "null"]}, ""),
    ({"$ref": "#/$defs/a", "$defs": {"a": closed(x={"type": "string"})}}, '{"x": "'),
    ({"anyOf": [closed(a={"type": "string"})], "type": "object"}, '{"a": "'),
    ({"const": 1.0}, "1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def vocab() -> Iterator[Vocabulary]:
    with ag.Model(base_path(), n_ctx=256, n_threads=1) as model:
        yield inside.vocab(model)


def follow(matcher: Matcher, text: str, vocab: Vocabulary) -> bool:
    """Whether a text is admitted, as the model's tokens for it."""
    for token in vocab.tokenize(text, add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return True


def random_reply(matcher: Matcher, vocab: Vocabulary, seed: int) -> str:
    """A reply by noise, and more and more by what closes strings and brackets."""
    rng = np.random.default_rng(seed)
    closing = np.zeros(vocab.n_tokens, np.float32)
    for token in range(vocab.n_tokens):
        if vocab.is_end(token) or vocab.piece(token) in (b'"', b"]", b"}"):
            closing[token] = 2.0 if vocab.is_end(token) else 1.0
    text = b""
    for step in range(400):
        noise = rng.standard_normal(vocab.n_tokens).astype(np.float32)
        token = int(np.argmax(matcher.mask(noise + closing * max(0.0, 0.5 * step - 2))))
        matcher.accept(token)
        if vocab.is_end(token):
            return text.decode()
        text += vocab.piece(token)
    raise AssertionError(f"did not end: {text!r}")


def language(schema: Schema, vocab: Vocabulary, limit: int = 4000) -> set[str]:
    """Every admitted text without whitespace between tokens of JSON, byte by byte."""
    pieces = [(vocab.piece(t), t) for t in range(vocab.n_tokens)]
    single = [(piece, token) for piece, token in pieces if len(piece) == 1]
    found, todo = set(), [(Constraint.compile(schema, vocab).start(), b"", False)]
    while todo:
        matcher, text, inside = todo.pop()
        if matcher.can_end:
            found.add(text.decode())
        for piece, token in single:
            if (inside or not piece.isspace()) and matcher.allows(token):
                limit -= 1
                assert limit > 0, "the language is not small"
                copy = matcher.copy()
                copy.accept(token)
                escaped = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
                todo.append((copy, text + piece, inside ^ (piece == b'"' and not escaped)))
    return found


def canonical(text: str) -> str:
    return json.dumps(json.loads(text), ensure_ascii=False)


@pytest.mark.parametrize(("schema", "expected"), FINITE)
def test_answers_are_all_there_is(
    schema: Schema, expected: tuple[str, ...], vocab: Vocabulary
) -> None:
    texts, opening = fixed(schema)
    assert sorted(texts or ()) == sorted(expected)
    for text in expected:
        assert canonical(text) == text
        matcher = Constraint.compile(schema, vocab).start()
        assert follow(matcher, text, vocab), text
        assert matcher.must_end, text
    assert set(map(canonical, language(schema, vocab))) == set(expected)
    assert all(text.startswith(opening) for text in expected)


@pytest.mark.parametrize("schema", OPEN)
def test_what_is_not_known_to_be_finite(schema: Schema) -> None:
    assert fixed(schema).answers is None


def test_the_limit() -> None:
    six, seven = (closed(**{f"k{i}": {"type": "boolean"} for i in range(n)}) for n in (6, 7))
    assert len(fixed(six).answers or ()) == 64
    assert fixed(seven) == (None, '{"k0": ')
    for nothing in ({"enum": []}, {"type": "integer", "minimum": 2, "maximum": 1}):
        assert fixed(nothing) == (None, "")


@pytest.mark.parametrize(("schema", "expected"), OPENINGS)
def test_openings(schema: Schema, expected: str, vocab: Vocabulary) -> None:
    assert fixed(schema).opening == expected
    assert follow(Constraint.compile(schema, vocab).start(), expected, vocab)


@pytest.mark.parametrize("name", INTRINSICS)
def test_openings_of_the_demo(name: str, vocab: Vocabulary) -> None:
    import yaml

    schema = json.loads(yaml.safe_load(io_yaml_path(name).read_text())["response_format"])
    first = next(iter(schema["properties"]))
    opening = fixed(schema).opening
    assert opening == f'{{"{first}": "'
    assert follow(Constraint.compile(schema, vocab).start(), opening, vocab)


NAMES = st.sampled_from(["a", "ab", "abc", "b", "ä"])
LEAVES = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, YES_NO,
     {"const": 1}, {"enum": ["aa", "ab"]}, {"const": "a"}, {"type": ["boolean", "null"]},
     {"type": "integer", "minimum": 8, "maximum": 11}, {}, True, {"$ref": "#/$defs/d"}]
)  # fmt: skip


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required, more: {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": more,
        },
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(NAMES, unique=True, max_size=2),
        st.sampled_from([False, False, True, {"type": "null"}]),
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: _objects(inner)
    | st.builds(lambda *options: {"anyOf": [*options]}, inner, inner)
    | st.builds(lambda n, x: {"type": "array", "items": x, "minItems": n, "maxItems": 2},
                st.integers(0, 2), inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(drawn=SCHEMAS, inner=LEAVES, seed=st.integers(0, 2**32 - 1))
@pytest.mark.slow
def test_random_replies_begin_as_said(drawn: Any, inner: Any, seed: int, vocab: Vocabulary) -> None:
    """For any schema: a random reply's text is among the answers, and begins with the opening."""
    assume(isinstance(drawn, dict) and inner != {"$ref": "#/$defs/d"})
    schema = {**drawn, "$defs": {"d": inner}}
    try:
        constraint = Constraint.compile(schema, vocab)
    except SchemaError as error:
        assert "nsatisfiable" in str(error)  # noqa: PT017
        return
    texts, start = fixed(schema)
    assert follow(constraint.start(), start, vocab)
    reply = random_reply(constraint.start(), vocab, seed)
    assert canonical(reply).startswith(start)
    for text in texts or ():
        assert text.startswith(start)
        assert follow(constraint.start(), text, vocab)
    assert texts is None or canonical(reply) in texts


LOOP = {"$ref": "#/$defs/n"}


@pytest.mark.parametrize(
    ("schema", "endless"),
    [
        (closed(a={"$ref": "#"}), True),
        ({**closed(a={"$ref": "#"}), "required": []}, False),
        ({"type": "array", "items": {"$ref": "#"}}, False),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 2}, True),
        ({"$defs": {"n": {"anyOf": [closed(n=LOOP), {"type": "null"}]}}, **LOOP}, False),
        ({"$defs": {"n": {"anyOf": [closed(n=LOOP), closed(m=LOOP)]}}, **LOOP}, True),
        ({"$defs": {"n": {"allOf": [LOOP]}}, **LOOP}, True),
        ({"$defs": {"n": closed(m={"$ref": "#/$defs/m"}), "m": closed(n=LOOP)}, **LOOP}, True),
        ({"$defs": {"n": closed(m={"$ref": "#/$defs/m"}), "m": {"const": 1}}, **LOOP}, False),
        ({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
         False),
        ({"$ref": "https://example.com"}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_schemas_that_contain_themselves(schema: Schema, endless: bool) -> None:
    assert never_ends(schema) == endless


def test_references_do_not_make_it_slow() -> None:
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    schema = {"$defs": {**defs, "d30": {"const": 1}}, "$ref": "#/$defs/d0"}
    assert fixed(schema) == (("1",), "1")
    assert not never_ends(schema)
