"""Constraints: what they admit is JSON that matches, what they refuse is refused with a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf.demo import base_path
from alora_gguf.engine import native as _native
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import DecodeError, InputError, ModelError, SchemaError
from alora_gguf.generate.constraint import MAX_SCHEMA, Constraint, Matcher, check_schema
from tests.support import inside, tiny_base, vocabularies

Schema = dict[str, Any]


def closed(**properties: Schema) -> Schema:
    """An object of exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


YES_NO: Schema = {"type": "string", "enum": ["yes", "no"]}
TEXT: Schema = {"type": "string"}
SCHEMAS: dict[str, Schema] = {
    "answerability": closed(answer=TEXT, answerable=YES_NO),
    "certainty": closed(certainty={"type": "integer", "minimum": 0, "maximum": 9}),
    "citations": {
        "type": "array",
        "items": closed(
            r={"type": "integer", "minimum": 0, "maximum": 120},
            c={"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        ),
    },
    "relevance": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "nested": closed(
        outer=closed(inner=closed(flag={"type": "boolean"}, nothing={"type": "null"})),
        kind={"const": "fixed"},
    ),
    "alternatives": {"anyOf": [closed(error=TEXT), closed(value={"type": "number"}), {"const": 0}]},
    "strings": closed(
        short={"type": "string", "maxLength": 5, "minLength": 1},
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 8},
    ),
    "numbers": closed(
        p={"type": "number", "minimum": 0, "maximum": 1}, n={"type": "number", "minimum": -2.5}
    ),
    "optional": {
        "type": "object",
        "properties": {"a": TEXT, "b": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "references": {
        "$defs": {"level": {"enum": ["low", "high"]}},
        **closed(levels={"type": "array", "items": {"$ref": "#/$defs/level"}, "maxItems": 3}),
    },
    "letters beyond ASCII": closed(größe={"enum": ["klein", "größer", "😀"]}),
}


def matches(value: Any, schema: Any, root: Schema) -> bool:
    """Whether a value matches: a checker of what SCHEMAS use, and of no more."""
    if "$ref" in schema:
        return matches(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return any(matches(value, option, root) for option in schema["anyOf"])
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    return bool(KINDS[schema.get("type", "any")](value, schema, root))


def _is_number(value: Any, schema: Schema, root: Schema) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    low, high = schema.get("minimum", -1e999), schema.get("maximum", 1e999)
    return number and low <= value <= high


def _is_text(value: Any, schema: Schema, root: Schema) -> bool:
    return (
        isinstance(value, str)
        and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1e9)
        and bool(re.search(schema.get("pattern", ""), value))
    )


def _is_list(value: Any, schema: Schema, root: Schema) -> bool:
    return (
        isinstance(value, list)
        and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1e9)
        and all(matches(item, schema["items"], root) for item in value)
    )


def _is_object(value: Any, schema: Schema, root: Schema) -> bool:
    names = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(names)
        and list(value) == [name for name in names if name in value]  # the schema's order
        and all(matches(value[name], names[name], root) for name in value)
    )


KINDS: dict[str, Any] = {
    "any": lambda value, schema, root: True,
    "null": lambda value, schema, root: value is None,
    "boolean": lambda value, schema, root: isinstance(value, bool),
    "integer": lambda value, *rest: isinstance(value, int) and _is_number(value, *rest),
    "number": _is_number,
    "string": _is_text,
    "array": _is_list,
    "object": _is_object,
}


@pytest.fixture(scope="module")
def vocab() -> Iterator[Vocabulary]:
    with ag.Model(base_path(), n_ctx=256, n_threads=1) as model:
        yield inside.vocab(model)


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """Opens a vocabulary from a GGUF without the model's weights."""
    llama = _native.load().llama
    models = []

    def opened(path: Path) -> Vocabulary:
        params = llama.llama_model_default_params()
        params.vocab_only = True
        models.append(llama.llama_model_load_from_file(str(path).encode(), params))
        assert models[-1]
        return Vocabulary(_native.load(), models[-1], path.name)

    yield opened
    for model in models:
        llama.llama_model_free(model)


def byte_tokens(vocab: Vocabulary) -> dict[int, int]:
    """The token of each byte."""
    pieces = ((vocab.piece(t), t) for t in range(vocab.n_tokens))
    return {piece[0]: token for piece, token in pieces if len(piece) == 1}


def feed(matcher: Matcher, text: str | bytes, vocab: Vocabulary) -> int:
    """Feeds byte by byte and returns how many bytes were accepted."""
    data, tokens = text.encode() if isinstance(text, str) else text, byte_tokens(vocab)
    for n, byte in enumerate(data):
        if not matcher.allows(tokens[byte]):
            with pytest.raises(DecodeError, match=f"token {tokens[byte]} is not allowed"):
                matcher.accept(tokens[byte])
            return n
        matcher.accept(tokens[byte])
    return len(data)


def admits(schema: Schema, text: str | bytes, vocab: Vocabulary) -> bool:
    matcher = Constraint.compile(schema, vocab).start()
    n = len(text.encode() if isinstance(text, str) else text)
    return feed(matcher, text, vocab) == n and matcher.can_end


def ends(vocab: Vocabulary) -> list[int]:
    return [t for t in range(vocab.n_tokens) if vocab.is_end(t)]


def walk(matcher: Matcher, vocab: Vocabulary, seed: int, patience: int = 20) -> str:
    """A random reply: noise decides, and more and more what closes strings and brackets."""
    rng = np.random.default_rng(seed)
    closing = np.zeros(vocab.n_tokens, np.float32)
    tokens = byte_tokens(vocab)
    closing[[tokens[b] for b in b'"]}']], closing[ends(vocab)] = 1.0, 2.0
    text = b""
    for step in range(600):
        noise = rng.standard_normal(vocab.n_tokens).astype(np.float32)
        row = matcher.mask(noise + closing * max(0.0, 0.5 * (step - patience)))
        if step % 8 == 0:
            check_step(matcher, row, vocab, rng)
        token = int(np.argmax(row))
        matcher.accept(token)
        if vocab.is_end(token):
            return text.decode()
        text += vocab.piece(token)
    raise AssertionError(f"did not end: {text!r}")


def check_step(matcher: Matcher, row: Any, vocab: Vocabulary, rng: np.random.Generator) -> None:
    """mask(), allows(), accept(), can_end and must_end agree, and asking changes nothing."""
    allowed = np.isfinite(row)
    fresh = matcher.copy()
    fresh._allowed = None  # so that it asks llguidance about each single token
    some = [*rng.integers(0, vocab.n_tokens, 30), *rng.permutation(np.nonzero(allowed)[0])[:10]]
    assert all(fresh.allows(int(t)) == allowed[t] for t in some)
    for token in [int(t) for t in some if not allowed[t]][:2]:
        with pytest.raises(DecodeError):
            matcher.accept(token)
    assert {bool(allowed[t]) for t in ends(vocab)} == {matcher.can_end}
    assert matcher.must_end == (matcher.can_end and allowed.sum() == len(ends(vocab)))
    special = [t for t in range(vocab.n_tokens) if not vocab.piece(t) and not vocab.is_end(t)]
    assert not allowed[special].any()


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), patience=st.integers(0, 60))
def test_random_replies_are_json_that_matches(
    name: str, seed: int, patience: int, vocab: Vocabulary
) -> None:
    matcher = Constraint.compile(SCHEMAS[name], vocab).start()
    value = json.loads(walk(matcher, vocab, seed, patience))
    assert matches(value, SCHEMAS[name], SCHEMAS[name]), value


def test_the_checker_can_fail() -> None:
    wrong = [{"answer": "x"}, {"answerable": "yes", "answer": "x"}, {"answer": 1}, 3]
    assert not any(matches(w, SCHEMAS["answerability"], {}) for w in wrong)
    assert not matches({"certainty": 10}, SCHEMAS["certainty"], {})
    assert not matches([1], SCHEMAS["relevance"], {})


@settings(max_examples=40, deadline=None)
@given(value=st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
), indent=st.sampled_from([None, 1, 2, 4]), ascii_only=st.booleans())  # fmt: skip
@pytest.mark.slow
def test_what_json_dumps_writes_is_admitted(
    value: Any, indent: int | None, ascii_only: bool, vocab: Vocabulary
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("\x7f", "\\u007f")
    deepest = max(len(line) - len(line.lstrip(" ")) for line in text.split("\n"))
    if deepest <= 16:
        assert admits({}, text, vocab)


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ('{"a":"x","b":1}', True),
        ('{"a": "x", "b": 1}', True),
        ('{ "a" : "x" , "b" : 1 }', True),
        ('{  "a":  "x",  "b":  1}', True),
        ('{\n  "a": "x",\n  "b": 1\n}', True),
        ('{\r\n\t"a": "x",\r\n\t"b": 1\r\n}', True),
        ('{\n                "a": "x", "b": 1}', True),
        ('{   "a":"x","b":1}', False),
        ('{\n\n"a":"x","b":1}', False),
        ('{ \n"a":"x","b":1}', False),
        ('{\n                 "a":"x","b":1}', False),
        (' {"a":"x","b":1}', False),
        ('{"a":"x","b":1} ', False),
        ('{"a":"x","b":1}\n', False),
        ('{"b":1,"a":"x"}', False),  # the schema's order
        ('{"a":"x"}', False),
        ('{"a":"x","b":1,"c":0}', False),
        ('{"a":"x","b":01}', False),
        ('{"a":"x","b":1.0}', False),
    ],
)
def test_whitespace_is_free_within_bounds(text: str, admitted: bool, vocab: Vocabulary) -> None:
    assert admits(closed(a=TEXT, b={"type": "integer"}), text, vocab) == admitted


@pytest.mark.parametrize(
    ("inside", "admitted"),
    [
        ("", True),
        ("   \\n\\t\\\" \\\\ /", True),
        ("é ü 日本 😀 \u2028", True),
        ("\\u00e9 \\ud83d\\ude00", True),
        ("\\u007f", True),
        ("\\ud83d", False),
        ("\\x41", False),
        ("\n", False),
        ("\t", False),
        (b"\xc3", False),
        (b"\xa9", False),
        (b"\xc0\x80", False),
        (b"\xed\xa0\x80", False),
        (b"\xff", False),
    ],
)  # fmt: skip
def test_strings_are_json_strings(inside: str | bytes, admitted: bool, vocab: Vocabulary) -> None:
    data = inside.encode() if isinstance(inside, str) else inside
    assert admits(TEXT, b'"' + data + b'"', vocab) == admitted


def test_a_character_may_be_split_over_tokens(vocab: Vocabulary) -> None:
    tokens = byte_tokens(vocab)
    matcher = Constraint.compile({"type": "string", "maxLength": 1}, vocab).start()
    assert feed(matcher, b'"\xf0\x9f', vocab) == 3
    row = matcher.mask(np.zeros(vocab.n_tokens, np.float32))
    pieces = {vocab.piece(int(t)) for t in np.nonzero(np.isfinite(row))[0]}
    assert pieces
    assert all(0x80 <= piece[0] < 0xC0 for piece in pieces)
    assert feed(matcher, b"\x98\x80", vocab) == 2
    assert not matcher.allows(tokens[ord("a")])  # one character, not one byte
    assert feed(matcher, '"', vocab) == 1
    assert matcher.must_end


def test_any_spelling_of_a_text_is_allowed(vocab: Vocabulary) -> None:
    """The model spells: text that is forced is not forced token by token."""
    constraint = Constraint.compile(closed(answer=YES_NO), vocab)
    whole = vocab.tokenize('{"answer": "yes"}', add_special=False, parse_special=False)
    for tokens in (whole, [byte_tokens(vocab)[b] for b in b'{"answer": "yes"}']):
        matcher = constraint.start()
        for token in tokens:
            assert np.isfinite(matcher.mask(np.zeros(vocab.n_tokens, np.float32))[token])
            matcher.accept(token)
        assert matcher.must_end
    matcher = constraint.start()
    feed(matcher, '{"answer": "', vocab)
    row = matcher.mask(np.zeros(vocab.n_tokens, np.float32))
    pieces = {vocab.piece(int(t)) for t in np.nonzero(np.isfinite(row))[0]}
    assert {b"y", b"n"} <= pieces
    assert all(b'yes"}'.startswith(p) or b'no"}'.startswith(p) for p in pieces)


def test_the_end(vocab: Vocabulary) -> None:
    end = ends(vocab)[0]
    matcher = Constraint.compile({"type": "integer"}, vocab).start()
    assert not matcher.can_end
    assert not matcher.allows(end)
    with pytest.raises(DecodeError, match=f"token {end} is not allowed here by the schema"):
        matcher.accept(end)
    feed(matcher, "12", vocab)
    assert (matcher.can_end, matcher.must_end) == (True, False)
    other = matcher.copy()
    matcher.accept(end)
    assert (matcher.can_end, matcher.must_end) == (True, True)
    assert not matcher.allows(end)
    with pytest.raises(DecodeError, match="not allowed after the end of the reply"):
        matcher.accept(end)
    with pytest.raises(DecodeError, match="the reply has ended"):
        matcher.mask(np.zeros(vocab.n_tokens, np.float32))
    assert not matcher.copy().allows(end)
    assert feed(other, "3", vocab) == 1  # the copy has gone its own way
    assert not other.allows(-1)
    assert not other.allows(vocab.n_tokens)


def test_a_mask_leaves_the_logits_alone(vocab: Vocabulary) -> None:
    logits = np.arange(vocab.n_tokens, dtype=np.float32)
    row = Constraint.compile(TEXT, vocab).start().mask(logits)
    assert (logits == np.arange(vocab.n_tokens)).all()
    assert row.dtype == np.float32
    assert (row[np.isfinite(row)] == logits[np.isfinite(row)]).all()
    with pytest.raises(InputError, match=r"expected shape \(2560,\), got \(3,\)"):
        Constraint.compile(TEXT, vocab).start().mask(logits[:3])


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("{", "the JSON Schema is not JSON: Expecting"),
        ("[1]", "the JSON Schema is a list, expected an object"),
        ("true", "the JSON Schema is a bool, expected an object"),
        ('{"const": NaN}', "not JSON: Out of range"),
        ({"const": {1, 2}}, "not JSON: Object of type set"),
        ("[" * 100_000, "not JSON: maximum recursion"),
        ({"title": "x" * MAX_SCHEMA}, f"expected at most {MAX_SCHEMA}"),
        (" " * MAX_SCHEMA + "{}", f"expected at most {MAX_SCHEMA}"),
        ({"const": "\ud800"}, "cannot be used: unexpected end of hex escape"),
        ({"type": "foo"}, "cannot be used: Invalid type: foo"),
        ({"properties": 3}, "properties must be an object"),
        ({"type": "string", "minLength": -1}, "'minLength', got -1"),
        ({"type": "string", "pattern": "a("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "isbn"}, "Unknown format: isbn"),
        ({"not": TEXT}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        (closed(a={"if": {}, "then": {}}), 'Unimplemented keys: ["if", "then"]'),
        ({"oneOf": [TEXT, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"$ref": "https://example.com/a"}, "https://example.com/a"),
        ({"$ref": "#/$defs/a"}, "Pointer '/$defs/a' does not exist"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"type": "\x1b[2J\n"}, r"Invalid type: \x1b[2J"),  # a terminal would obey it
        ({"$ref": "#/$defs/\u202e"}, r"'#/$defs/\u202e'"),
        ({"type": "integer", "minimum": 4, "maximum": 3}, "Unsatisfiable schema: minimum (4)"),
        (closed(a=False), "required property 'a' is unsatisfiable"),  # type: ignore[arg-type]
        (closed(a={"$ref": "#"}), "it requires itself within itself"),
        ({"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
    ],
)
def test_schemas_are_refused_with_the_reason(
    schema: Schema | str, text: str, vocab: Vocabulary
) -> None:
    with pytest.raises(SchemaError, match=re.escape(text)) as caught:
        Constraint.compile(schema, vocab)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    with pytest.raises(SchemaError) as without_a_vocabulary:
        check_schema(schema)
    assert str(without_a_vocabulary.value) == str(caught.value)


NODES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([True, False, 1, -1, 0.5, "x", None, [], {}, "#", "string", "object"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "required", "items", "minItems", "enum", "const", "anyOf",
             "allOf", "oneOf", "$ref", "maxLength", "pattern", "additionalProperties", "minimum",
             "prefixItems", "$defs", "patternProperties", "format", "multipleOf", "maxItems"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(["type", "anyOf", "items", "required", "minItems",
       "properties", "$ref", "enum", "prefixItems", "allOf"]), NODES, max_size=4))  # fmt: skip
@pytest.mark.slow
def test_nonsense_is_compiled_or_refused(schema: Schema, vocab: Vocabulary) -> None:
    try:
        matcher = Constraint.compile(schema, vocab).start()
    except SchemaError:
        return
    assert np.isfinite(matcher.mask(np.zeros(vocab.n_tokens, np.float32))).any()


@pytest.mark.parametrize("depth", [20, 60, 120, 2000])
def test_deep_schemas_are_compiled_or_refused(depth: int, vocab: Vocabulary) -> None:
    text = '{"type":"array","items":' * depth + "{}" + "}" * depth
    try:
        matcher = Constraint.compile(text, vocab).start()
    except SchemaError as error:
        assert depth >= 120
        assert "recursion" in str(error)  # noqa: PT017
    else:
        assert feed(matcher, "[" * depth + "]" * depth, vocab) == 2 * depth


def test_compiled_schemas_are_kept_with_the_vocabulary(vocab: Vocabulary, load: Any) -> None:
    schema = SCHEMAS["answerability"]
    first = Constraint.compile(schema, vocab)
    assert Constraint.compile(json.dumps(schema, indent=2), vocab) is first
    assert json.loads(first.schema) == schema
    flipped = {**schema, "properties": dict(reversed(schema["properties"].items()))}
    assert Constraint.compile(flipped, vocab) is not first  # the order matters
    for n in range(40):
        Constraint.compile({"const": n}, vocab)
    assert Constraint.compile(schema, vocab) is not first
    assert Constraint.compile(schema, load(base_path())) is not Constraint.compile(schema, vocab)


def test_models_without_vocabulary_or_end(tmp_path: Path, load: Any) -> None:
    silent = load(tiny_base.write_base(tmp_path / "silent.gguf", text=False))
    with pytest.raises(ModelError, match="has no vocabulary"):
        Constraint.compile(TEXT, silent)
    poor = vocabularies.Vocabulary("gpt2", ["a", '"'], [1, 1], ["t h"], [])
    with pytest.raises(ModelError, match="no token that ends a reply"):
        Constraint.compile(TEXT, load(vocabularies.write_gguf(tmp_path / "endless.gguf", poor)))


def test_special_tokens_and_several_ends(tmp_path: Path, load: Any) -> None:
    """Control, unused and tag-like tokens are not text, whatever they spell."""
    full = vocabularies.byte_level()
    extra = {"<|im_end|>": 3, "<|endoftext|>": 3, "yes": 3, "<yes>": 4, "no": 4, "maybe": 5}
    opened = load(
        vocabularies.write_gguf(
            tmp_path / "special.gguf",
            vocabularies.Vocabulary(
                "gpt2", full.tokens + list(extra), full.types + list(extra.values()),
                full.merges, [],
            ),
            {"tokenizer.ggml.eos_token_id": len(full.tokens) + 1},
        )
    )  # fmt: skip
    ids = {name: len(full.tokens) + i for i, name in enumerate(extra)}
    assert {ids["<|im_end|>"], ids["<|endoftext|>"]} <= set(ends(opened))
    for schema, before in (({"enum": ["yes", "no", "<yes>", "maybe"]}, '"'), (TEXT, '"a')):
        matcher = Constraint.compile(schema, opened).start()
        feed(matcher, before, opened)
        row = matcher.mask(np.zeros(opened.n_tokens, np.float32))
        for name in extra:  # only user-defined text such as "no" may stand in a string
            assert np.isfinite(row[ids[name]]) == (name == "no"), name
            assert matcher.allows(ids[name]) == (name == "no"), name
    walk(Constraint.compile(SCHEMAS["nested"], opened).start(), opened, 3)


def test_a_sentence_piece_vocabulary(tmp_path: Path, load: Any) -> None:
    path = vocabularies.write_gguf(
        tmp_path / "spm.gguf",
        vocabularies.sentence_piece(),
        {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0},
    )
    opened = load(path)
    for seed, name in enumerate(SCHEMAS):
        matcher = Constraint.compile(SCHEMAS[name], opened).start()
        assert matches(json.loads(walk(matcher, opened, seed)), SCHEMAS[name], SCHEMAS[name])


def test_a_vocabulary_that_cannot_spell(tmp_path: Path, load: Any) -> None:
    poor = vocabularies.Vocabulary(
        "gpt2", ["a", '"', "<|end|>"], [1, 1, vocabularies.CONTROL], ["t h"], []
    )
    opened = load(
        vocabularies.write_gguf(tmp_path / "poor.gguf", poor, {"tokenizer.ggml.eos_token_id": 2})
    )
    logits = np.zeros(3, np.float32)
    assert np.isfinite(Constraint.compile(TEXT, opened).start().mask(logits)).tolist()[1]
    matcher = Constraint.compile(closed(a=TEXT), opened).start()
    with pytest.raises(DecodeError, match="no token with which the reply could go on"):
        matcher.mask(logits)
    assert not matcher.can_end
    assert not matcher.must_end


def test_threads_share_a_constraint(vocab: Vocabulary) -> None:
    def replies(first: int) -> list[str]:
        texts = []
        for seed in range(first, first + 6):
            constraint = Constraint.compile(SCHEMAS["citations"], vocab)
            texts.append(walk(constraint.start(), vocab, seed))
        return texts

    alone = [replies(0), replies(100)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(replies, [0, 100])) == alone


def test_threads_compile_together(load: Any) -> None:
    fresh = load(base_path())
    with ThreadPoolExecutor(4) as pool:
        compiled = list(pool.map(lambda _: Constraint.compile(TEXT, fresh), range(8)))
    assert len(set(map(id, compiled))) == 1
