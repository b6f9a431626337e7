"""How calls of intrinsics are written: all of the grammar, and what is written is read again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from alora_gguf.cli.calls import NOT_IN_NAMES, Written, read_arguments, read_calls, usage, written
from hypothesis import given
from hypothesis import strategies as st

from alora_gguf import Contract, InputError, IntrinsicCall

ONE = Contract(source="one.gguf", instruction="{kind} {last_message}")
TWO = Contract(source="two.gguf", instruction="{kind} {text}")
NONE = Contract(source="none.gguf")


# a line behind /NAME, or between parentheses with the same meaning
ARGUMENTS: list[tuple[str, Any]] = [
    ("", None),
    ("  ", None),
    ("kind=x", {"kind": "x"}),
    (" kind = x ", {"kind": "x"}),
    ("kind=a question", {"kind": "a question"}),
    ("kind=a question, text=b", {"kind": "a question", "text": "b"}),
    ("kind=a question text=b c", {"kind": "a question", "text": "b c"}),
    ("kind=a,text=b,", {"kind": "a", "text": "b"}),
    ("kind=", {"kind": ""}),
    ('kind=""', {"kind": ""}),
    ("kind=,text=b", {"kind": "", "text": "b"}),
    ("kind=1 + x=2", {"kind": "1 +", "x": "2"}),  # and x is refused by name
    ("kind=a==b", {"kind": "a==b"}),
    ("kind=x=1", {"kind": "x=1"}),
    ("kind=don't", {"kind": "don't"}),
    ('kind="a, b (c) = \'d\' \\"e\\" \\\\ \\n"', {"kind": "a, b (c) = 'd' \"e\" \\ \\n"}),
    ("kind='a, b (c) = \"d\"' text=x", {"kind": 'a, b (c) = "d"', "text": "x"}),
    ('kind="a"text="b"', {"kind": "a", "text": "b"}),
    ("kind='{\"a\": [1, 2]}'", {"kind": '{"a": [1, 2]}'}),
    ('{"kind": "a question"}', {"kind": "a question"}),
    (' {"kind": "a\\n\\u00fc, (b)", "text": ""} ', {"kind": "a\nü, (b)", "text": ""}),
    ("{}", {}),
    ("a question", "a question"),
    ("don't, ever", "don't, ever"),
    ('say "no"', 'say "no"'),
    ("https://x.org?kind=x", "https://x.org?kind=x"),
    ("is kind=x", "is kind=x"),
    ("kind == x", "kind == x"),
    ("-kind=x", "-kind=x"),
    ('"kind=x"', "kind=x"),
    ("'{x}'", "{x}"),
    ('"a) b"', "a) b"),
]


@pytest.mark.parametrize(("text", "found"), ARGUMENTS)
def test_arguments(text: str, found: Any) -> None:
    assert read_arguments(text) == found
    (call,) = read_calls(f"isq({text})!")
    assert (call.name, call.arguments, call.rest, call.alias) == ("isq", found, "!", None)
    assert call.text == f"isq({text})!"


def test_only_behind_a_name_a_text_may_have_parentheses() -> None:
    assert read_arguments("a (b)") == "a (b)"
    with pytest.raises(InputError, match=r"^'a \(b': put a text that has a parenthesis in quo"):
        read_calls("isq(a (b))")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind="x', "'\"x': expected another \" where the text ends"),
        ("'tis", "''tis': expected another ' where the text ends"),
        ("kind='x\\'", "''x\\'': expected another ' where the text ends"),
        ('"x" and y', "'and y': expected nothing more, or NAME=VALUE; put a text that begins "),
        ('kind="x" y', "'y': expected nothing more, or NAME=VALUE"),
        ("kind=x, y", "'y': expected nothing more, or NAME=VALUE"),
        ("kind=f(x)", "'f(x)': put a value that has ( in quotes"),
        ("kind=x)", "'x)': put a value that has ) in quotes"),
        ('kind=a "b"', "'a \"b\"': put a value that has \" in quotes"),
        ('kind={"a": 1}', "'{\"a\": 1}': put a value that has \" in quotes"),
        ("kind=x kind=y", "'kind=x kind=y': the argument kind occurs twice"),
        ('{"kind": "x", "kind": "y"}', "the argument kind occurs twice"),
        ('{"kind": 1}', "'{\"kind\": 1}': the argument kind must be a text in quotes"),
        ('{"kind": ["x"]}', "the argument kind must be a text in quotes"),
        ('{"kind": {"x": "y"}}', "the argument kind must be a text in quotes"),
        ("{kind}", "'{kind}': is not JSON: Expecting property name enclosed in double quotes "
         "(character 2); put a text that begins with { in quotes"),
        ('{"kind": "x"} y', "'y': expected nothing more"),
        ('{"kind": "x"', "is not JSON: "),
        ('{"kind": ' + "[" * 100_000, "is nested too deeply"),
        ('{"kind": "\\ud800"}', "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_refused_arguments(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Written("isq", "isq", arguments=read_arguments(text)).call(ONE)
    assert len(str(caught.value)) < 300
    if text == "kind=x)":  # the first one ends the arguments, and the second is no guard
        assert read_calls(f"isq({text})")[0].rest == ")"
        return
    with pytest.raises(InputError):
        [each.call(ONE) for each in read_calls(f"isq({text})")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" , ", []),
        ("a", [("a", None, None, "")]),
        ("a b,c ,d", [(name, None, None, "") for name in "abcd"]),
        ("a! b<0.5 c@answer", [("a", None, None, "!"), ("b", None, None, "<0.5"),
                               ("c", None, None, "@answer")]),
        ("x=a(kind=y, z)", None),
        ("x=a(kind=y) b()", [("a", "x", {"kind": "y"}, ""), ("b", None, None, "")]),
        ('a("x) y, z")<0.5,b', [("a", None, "x) y, z", "<0.5"), ("b", None, None, "")]),
        ("a<0,5", [("a", None, None, "<0,5")]),
        ("a<0,b", [("a", None, None, "<0"), ("b", None, None, "")]),
        ("größe=prüfung(x)", [("prüfung", "größe", "x", "")]),
        # no names: for the caller to refuse
        ("=a", [("", None, None, "=a")]),
        ("x=y=a", [("y", "x", None, "=a")]),
        ("(x)", [("", None, None, "(x)")]),
        ("a )", [("a", None, None, ""), ("", None, None, ")")]),
    ],
)  # fmt: skip
def test_calls(text: str, found: Any) -> None:
    if found is None:
        with pytest.raises(InputError, match=r"expected \) behind"):
            read_calls(text)
        return
    calls = read_calls(text)
    assert [(each.name, each.alias, each.arguments, each.rest) for each in calls] == found


@pytest.mark.parametrize(
    ("arguments", "contract", "found"),
    [
        (None, NONE, {}),
        ("x", ONE, {"kind": "x"}),
        ({"kind": "x"}, ONE, {"kind": "x"}),
        ({"kind": "x", "text": "y"}, TWO, {"kind": "x", "text": "y"}),
        (None, ONE, "'isq': needs kind; write isq(kind=…)"),
        (None, TWO, "'isq': needs kind and text; write isq(kind=…, text=…)"),
        ({"text": "y"}, TWO, "'isq': needs kind; write isq(kind=…, text=…)"),
        ("x", NONE, "isq takes no arguments, found 'x'"),
        ("x", TWO, "isq takes kind=… and text=…, found 'x'"),
        ({"knd": "x"}, ONE, "one.gguf: unknown argument knd (did you mean kind?); the instruction "
         "takes kind; put a text that begins like that in quotes"),
        ({"kind": "x", "last_message": "y"}, ONE, "one.gguf: unknown argument last_message; "),
        ({"x": "y"}, NONE, "none.gguf: unknown argument x; the instruction takes none"),
        ({"txt": "x"}, TWO, "two.gguf: unknown argument txt (did you mean text?); the instruction "
         "takes kind, text"),
    ],
)  # fmt: skip
def test_what_a_contract_takes(arguments: Any, contract: Contract, found: Any) -> None:
    asked = Written("isq", "isq", "it", arguments)
    if isinstance(found, str):
        with pytest.raises(InputError, match=rf"^{re.escape(found)}"):
            asked.call(contract)
    else:
        assert asked.call(contract) == IntrinsicCall("isq", found, alias="it")


def test_usage() -> None:
    assert [usage("isq", each) for each in (NONE, ONE, TWO)] == [
        "isq", "isq(kind=…)", "isq(kind=…, text=…)",
    ]  # fmt: skip


def _refusal(read: Callable[[str], object], text: str) -> str:
    """Why a text is refused; "" if it is not."""
    try:
        read(text)
    except InputError as error:
        return str(error)
    return ""


def test_long_texts_take_no_longer_than_they_are() -> None:
    start = time.process_time()
    for text in (
        " " * 200_000, "a " * 100_000, "kind=" + "a " * 100_000, "kind=" + " " * 200_000,
        '"' + "\\" * 200_000, '{"kind": "' + "\\\\" * 100_000, "a=" * 100_000,
    ):  # fmt: skip
        for read in (read_arguments, read_calls):
            assert len(_refusal(read, text)) < 300
    assert time.process_time() - start < 5


_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: NOT_IN_NAMES.search(name) is None
)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_CALLS = st.builds(
    IntrinsicCall,
    _NAMES,
    st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), _TEXTS),
    alias=st.none() | _NAMES,
)


@given(st.lists(_CALLS, max_size=4), st.sampled_from([" ", ",", ", "]))
def test_what_is_written_is_read_again(calls: list[IntrinsicCall], between: str) -> None:
    found = read_calls(between.join(map(written, calls)))
    assert [(each.name, each.alias, each.arguments or {}) for each in found] == [
        (each.name, each.alias, dict(each.arguments)) for each in calls
    ]
    for each in calls:
        behind = written(each).removeprefix(f"{each.alias}=").removeprefix(each.name)[1:-1]
        assert (read_arguments(behind) or {}) == dict(each.arguments)
        assert read_arguments(json.dumps(dict(each.arguments))) == dict(each.arguments)


@given(_TEXTS)
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_arguments, read_calls):
        _refusal(read, text)
