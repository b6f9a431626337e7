"""JSON with offsets: what Python's json reads, each value where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_gguf.errors import OutputError
from alora_gguf.intrinsics.reply import Path, parse

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=30)


def paths(value: Any, here: Path = ()) -> Iterator[Path]:
    yield here
    if isinstance(value, (dict, list)):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*here, step))


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types: 1, 1.0 and True differ, as 0.0 and -0.0 do."""
    return repr(a) == repr(b)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2, "\t"]), st.sampled_from(["", " \n"]))
def test_each_place_holds_its_value(value: Any, ascii_only: bool, indent: Any, space: str) -> None:
    text = space + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + space
    found, places = parse(text, "x")
    assert same(found, json.loads(text))
    assert set(places) == set(paths(value))
    for path, (begin, end) in places.items():
        part = found
        for step in path:
            part = part[step]  # type: ignore[index, call-overload]
        assert same(json.loads(text[begin:end]), part)


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
    assert same(parse(text, "x")[0], expected)


def test_places() -> None:
    _, places = parse('{"a": [{"b": 1}, "x"], "a b": null}', "x")
    assert places["a", 0, "b"] == (13, 14)
    assert places["a b",] == (30, 34)
    assert places[()] == (0, 35)


def test_of_keys_that_occur_twice_the_last_counts() -> None:
    value, places = parse('{"a": {"b": 1}, "c": 0, "a": 2}', "x")
    assert value == {"a": 2, "c": 0}
    assert list(value) == ["a", "c"]
    assert places == {(): (0, 31), ("a",): (29, 30), ("c",): (21, 22)}
    _, places = parse('{"a": {"b": {"c": 1}}, "a": {"b": [2]}}', "x")
    assert set(places) == {(), ("a",), ("a", "b"), ("a", "b", 0)}


CUT = "ends in the middle of its JSON, after"
WRONG = [
    ("", f"{CUT} 0 characters"),
    ("nul", f"{CUT} 3 characters"),
    ("[1, -", f"{CUT} 5 characters"),
    ("[1.5e", f"{CUT} 5 characters"),
    ('["a\\u12', f"{CUT} 7 characters"),
    ('{"a" 1}', "at character 5: Expecting ':' delimiter, found '1}'"),
    ('{"a": 1,}', ", found '"),
    ("{a: 1}", "at character 1: Expecting property name enclosed in double quotes, found 'a: 1}'"),
    ("[1,]", ", found '"),
    ("[1 2]", "at character 3: Expecting ',' delimiter, found '2]'"),
    ("[01]", "at character 2: Expecting ',' delimiter, found '1]'"),
    ('"a\nb"', "at character 2: Invalid control character, found '\\nb\"'"),
    ('"\\x"', "at character 1: Invalid \\escape"),
    ("NaN", "at character 0: NaN is too large a number, or none in JSON"),
    ("-Infinity", "at character 0: -Infinity is too large a number, or none in JSON"),
    ("1e999", "at character 0: 1e999 is too large a number"),
    ("9" * 5000, "at character 0: 99999999999999999999 is too large a number"),
    ('"a" "b"', "at character 4: Extra data, found '\"b\"'"),
    ("yes", "at character 0: Expecting value, found 'yes'"),
    ("[" * 5000 + "]" * 5000, "more than 100 arrays and objects in each other"),
    ("[" * 101 + "]" * 101, "more than 100 arrays and objects in each other"),
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
