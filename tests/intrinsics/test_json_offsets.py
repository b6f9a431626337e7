"""JSON with offsets: what Python's json reads, each value where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_gguf.errors import OutputError
from alora_gguf.intrinsics.reply import Node, parse

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=30)


def nodes(node: Node) -> list[Node]:
    inner = node.children or []
    inner = list(inner.values()) if isinstance(inner, dict) else inner
    return [node, *(n for child in inner for n in nodes(child))]


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types: 1, 1.0 and True differ, as 0.0 and -0.0 do."""
    return repr(a) == repr(b)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2, "\t"]), st.sampled_from(["", " \n"]))
def test_each_place_holds_its_value(value: Any, ascii_only: bool, indent: Any, space: str) -> None:
    text = space + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + space
    root = parse(text, "x")
    assert same(root.value, json.loads(text))
    for node in nodes(root):
        assert same(json.loads(text[node.begin : node.end]), node.value)
    leaves = root.leaves()
    assert all(leaf.children is None for leaf in leaves if leaf is not root)
    assert [leaf.begin for leaf in leaves] == sorted(leaf.begin for leaf in leaves)


@settings(deadline=None)
@given(VALUES, st.data())
@pytest.mark.slow
def test_a_text_that_is_cut_off_is_said_to_be(value: Any, data: st.DataObject) -> None:
    text = json.dumps([value])
    end = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(OutputError, match="ends in the middle of its JSON"):
        parse(text[:end], "the reply")


@settings(deadline=None)
@given(st.text(alphabet='{}[]",:\\ntrufalse0123.eE+- u'))
def test_it_agrees_with_json(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        with pytest.raises(OutputError):
            parse(text, "x")
        return
    if "inf" in repr(expected):
        with pytest.raises(OutputError, match="too large"):
            parse(text, "x")
        return
    assert same(parse(text, "x").value, expected)


def test_finding() -> None:
    root = parse('{"a": [{"b": 1}, "x"], "a b": null}', "x")
    found = root.find(["a", 0, "b"])
    assert found is not None
    assert (found.value, found.begin, found.end) == (1, 13, 14)
    assert root.find([]) is root
    for path in (["b"], ["a", 2], ["a", -1], ["a", "0"], ["a", 1, 0], [0], ["a", 0, "b", "c"]):
        assert root.find(path) is None


def test_of_keys_that_occur_twice_the_last_counts() -> None:
    root = parse('{"a": {"b": 1}, "c": 0, "a": 2}', "x")
    assert root.value == {"a": 2, "c": 0}
    assert list(root.value) == ["a", "c"]
    assert root.find(["a", "b"]) is None


WRONG = [
    ("", "ends in the middle of its JSON: expected a value after 0 characters"),
    ("nul", "expected null after 3 characters"),
    ("[1, -", "expected the rest of a number"),
    ("[1.5e", "expected the rest of a number"),
    ('["a\\u12', "expected the rest of a string"),
    ('{"a" 1}', "at character 5: expected ':', found '1}'"),
    ('{"a": 1,}', "at character 8: expected a key in double quotes, found '}'"),
    ("{a: 1}", "at character 1: expected a key in double quotes or '}', found 'a: 1}'"),
    ("[1,]", "at character 3: expected a value, found ']'"),
    ("[1 2]", "at character 3: expected ',' or ']', found '2]'"),
    ("[01]", "at character 2: expected ',' or ']', found '1]'"),
    ('"a\nb"', "at character 2: a string cannot hold '\\nb\"' as it is"),
    ('"\\x"', "at character 1: a string cannot hold"),
    ("NaN", "at character 0: expected a value, found 'NaN'"),
    ("-Infinity", "at character 0: expected a value"),
    ("1e999", "at character 0: the number 1e999… is too large"),
    ("9" * 5000, "at character 0: the number 99999999999999999999… is too large"),
    ('"a" "b"', "at character 4: expected the end, found"),
    ("yes", "at character 0: expected a value, found 'yes'"),
    ("[" * 5000, "more than 100 arrays and objects in each other"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_json(text: str, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        parse(text, "io.yaml: the reply")
    assert message in str(caught.value)
    assert str(caught.value).startswith("io.yaml: the reply ")


def test_the_limit_of_tokens_is_named() -> None:
    with pytest.raises(OutputError, match="cut off at its limit of 15 tokens: raise max_completi"):
        parse('{"score": "ye', "the reply", 15)
