"""Text broken between words as it comes: the same lines whatever its pieces, none too wide."""

from __future__ import annotations

import pytest
from alora_gguf.cli.flow import Flow
from alora_gguf.cli.render import visible, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab \n\t   é"),
        st.sampled_from("漢字。한👨👍\u200d\ufe0f\u0301\U0001f3fd\U0001f1e9❤\u3000\u00a0"),
        st.characters(),
    ),
    max_size=80,
)


def flowed(pieces: list[str], width: int) -> tuple[str, int]:
    flow = Flow(width)
    out = "".join([*map(flow.add, pieces), flow.end()])
    return out, flow.lines


@settings(deadline=None, max_examples=400)
@given(TEXTS.map(visible), st.integers(2, 40), st.lists(st.integers(0, 80), max_size=6))
def test_any_text_in_any_pieces(text: str, width: int, cuts: list[int]) -> None:
    out, lines = flowed([text], width)
    ends = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert flowed(pieces, width) == (out, lines)
    assert flowed(list(text), width) == (out, lines)
    assert out.endswith("\n")
    assert out.count("\n") == lines
    assert max(map(cell_len, out.split("\n"))) <= width
    assert "".join(out.split()) == "".join(text.split())
    if text.count("\n"):
        assert lines > text.count("\n")


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "three"]),
        ("one two three", 7, ["one two", "three"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("a bcdefg", 4, ["a", "bcde", "fg"]),
        ("  indented", 20, ["  indented"]),
        ("\tx\n\n y", 20, ["    x", "", " y"]),
        ("ab\tx", 20, ["ab  x"]),
        ("漢字漢字", 5, ["漢字", "漢字"]),
        ("a 漢字", 4, ["a 漢", "字"]),
        ("", 10, [""]),
    ],
)
def test_where_lines_break(text: str, width: int, lines: list[str]) -> None:
    assert flowed([text], width)[0].split("\n")[:-1] == lines


def test_a_word_waits_until_it_is_whole_and_a_wide_character_does_not() -> None:
    flow = Flow(20)
    assert flow.add("one tw") == "one"
    assert flow.add("o ") == " two"
    assert flow.add("漢字") == " 漢字"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("line\r\nline", "line\nline"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("👨\u200d👩 ❤\ufe0f 漢\u3000字 a\u00a0b", "👨\u200d👩 ❤\ufe0f 漢\u3000字 a\u00a0b"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_halves_of_characters_do_not_reach_the_model() -> None:
    text = b"caf\xe9 ok".decode("utf-8", "surrogateescape")
    assert whole(text).encode() == "caf� ok".encode()
    assert whole("café 漢 👍") == "café 漢 👍"
