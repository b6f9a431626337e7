"""What a terminal shows: replies as they come, Markdown at their end, badges, nothing too wide."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from alora_gguf.cli.chat import screen as screen_module
from alora_gguf.cli.chat.asking import Failed, Turn
from alora_gguf.cli.chat.screen import Screen
from alora_gguf.cli.chat.tables import adapters, costs, documents
from alora_gguf.cli.render import duration
from rich.cells import cell_len
from rich.console import Console

import alora_gguf as ag

TIMINGS = ag.Timings(reused=812, evaluated=9, generated=3, first_token=0.02, total=0.043)
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def screen(width: int = 80, height: int = 24, *, terminal: bool = True) -> Screen:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, highlight=False,
        color_system="standard" if terminal else None, _environ={"TERM": "xterm"},
    )  # fmt: skip
    return Screen(console=console)


def written(screen: Screen) -> str:
    out = screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(out, str)
    return out


def plain(screen: Screen) -> str:
    return ESCAPE.sub("", written(screen))


def verdict(name: str, value: Any) -> ag.IntrinsicResult:
    return ag.IntrinsicResult(name, "", (), "stop", TIMINGS, None, value)


def until(true: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    for _ in range(1000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("it never was")


def turn(reply: str, reason: str = "stop", **more: Any) -> Turn:
    return Turn("question", reply, reason, TIMINGS, **more)


def say(on: Screen, pieces: Iterable[str], reason: str = "stop") -> str:
    """What a reply writes while it comes."""
    for piece in pieces:
        on.piece(piece)
    during = written(on)
    on.turn(turn("".join(pieces), reason))
    return during


# Replies -----------------------------------------------------------------------------------------


def test_plain_text_is_written_once() -> None:
    on = screen(20)
    during = say(on, ["The opening", " time of the lib", "rary is 9:30."])
    assert during == "The opening time of\nthe library is"
    assert written(on) == "The opening time of\nthe library is\n9:30.\n\n"


MARKDOWN = (
    "# Head\n\nThe type is List<int>, **bold** and [a link](http://example.org).\n\n- one\n- two"
)


def test_markdown_takes_the_place_of_the_text_at_the_end_and_never_before() -> None:
    on = screen(60)
    during = say(on, [*MARKDOWN])
    assert "\x1b" not in during
    lines = during.count("\n") + 1
    assert lines == 7
    _, back, after = written(on).partition(f"\x1b[{lines}A\x1b[J")
    assert back
    shown = ESCAPE.sub("", after)
    assert "The type is List<int>, bold and a link (http://example.org)." in shown
    assert " • one" in shown
    assert "\x1b]8" not in after  # no links that hide where they lead


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("**bold**", True), ("`code`", True), ("```\ncode\n```", True), ("1. one\n2. two", True),
        ("| a | b |\n|---|---|\n| 1 | 2 |", True), ("> quoted", True), ("- one", True),
        ("2 * 3 * 4 is 24", False), ("a - b", False), ("#tag", False), ("a_b_c", False),
        ("It opens at 9:30.\nIt closes at 10.", False),
    ],
)  # fmt: skip
def test_what_is_worth_rendering(text: str, rendered: bool) -> None:
    on = screen()
    say(on, [text])
    assert ("\x1b[J" in written(on)) == rendered


def test_code_is_not_lost() -> None:
    on = screen()
    say(on, ["```python\nif x:\n\tprint('<b>')\n```\n"])
    after = ESCAPE.sub("", written(on).partition("\x1b[J")[2])
    assert "if x:" in after
    assert "print('<b>')" in after


def test_what_is_not_on_the_screen_any_more_is_not_rendered() -> None:
    for on in (screen(60, height=7), screen(terminal=False)):
        say(on, [MARKDOWN])
        assert "\x1b[J" not in written(on)
    on = screen(60)
    on.piece(MARKDOWN)
    on.console.width = 40  # the terminal has wrapped the lines again
    on.turn(turn(MARKDOWN))
    assert "\x1b[J" not in written(on)


def test_a_reply_cannot_steer_the_terminal() -> None:
    on = screen()
    during = say(on, ["\x1b[2J\x07 \x9b1m \u202e **b** "])
    assert during == "\\x1b[2J\\x07 \\x9b1m \\u202e **b**"
    assert "\\x1b[2J\\x07" in written(on).partition("\x1b[J")[2]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("length", "(cut off: /set max_tokens N, or -n N, for longer replies)"),
        ("cancelled", "(stopped; what was said stays)"),
        ("full", "(cut off: the KV cache is full; /ctx N makes room, /rewind takes turns back)"),
    ],
)  # fmt: skip
def test_one_that_did_not_just_end(reason: str, told: str) -> None:
    on = screen(100)
    say(on, ["It opens"], reason)
    assert plain(on) == f"It opens\n{told}\n\n"


def test_one_without_words() -> None:
    on = screen()
    say(on, [])
    assert plain(on) == "(the reply is empty)\n\n"


def test_one_that_failed() -> None:
    on = screen()
    on.piece("It opens")
    on.error("a\x1b is odd; mend it")
    assert plain(on) == "It opens\nError: a\\x1b is odd; mend it\n"
    on.piece("at")
    on.stopped()
    assert plain(on).endswith("at\n(stopped)\n")


# Reading -----------------------------------------------------------------------------------------


def test_how_far_it_is_read_is_shown_and_goes_again() -> None:
    on = screen()
    on.reading(128, 512)
    on.reading(384, 512)
    assert written(on) == "reading 128 of 512 tokens\r\x1b[Kreading 384 of 512 tokens"
    on.reading(512, 512)
    assert written(on).endswith("tokens\r\x1b[K")
    on.reading(128, 512)
    on.piece("Yes ")
    assert written(on).endswith("reading 128 of 512 tokens\r\x1b[KYes")
    for quiet in (screen(), screen(terminal=False)):
        quiet.reading(5, 512 if not quiet.console.is_terminal else 100)
        assert written(quiet) == ""
    narrow = screen(20)
    narrow.reading(128, 512)
    assert written(narrow) == "reading 128 of 512…"


def test_what_takes_long_is_said_and_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen_module, "_PATIENCE", 0.01)
    on = screen()
    with on.waiting("waiting for the reply"):
        until(lambda: written(on) == "waiting for the reply …")
        on.reading(128, 512)  # in its place
        assert written(on).endswith("\r\x1b[Kreading 128 of 512 tokens")
        on.reading(512, 512)
        until(lambda: written(on).endswith("tokens\r\x1b[Kwaiting for the reply …"))
        on.piece("Yes ")
        time.sleep(0.05)
        assert written(on).endswith("…\r\x1b[KYes")  # and never again
    on.reply_over("Yes ")
    with on.waiting("asking jailbreak"):
        until(lambda: written(on).endswith("Yes\nasking jailbreak …"))
    assert written(on).endswith("…\r\x1b[K")
    for shows in (lambda on: on.note("a"), lambda on: on.error("a"), lambda on: on.show("a")):
        on = screen()
        with on.waiting("saving"):
            until(lambda on=on: written(on))
            shows(on)
        assert written(on).startswith("saving …\r\x1b[K")
        assert plain(on).endswith("a\n")


def test_what_takes_a_moment_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    on = screen()
    with on.waiting("saving"):
        on.note("saved")
    assert plain(on) == "saved\n"
    monkeypatch.setattr(screen_module, "_PATIENCE", 0.01)
    pipe = screen(terminal=False)
    with pipe.waiting("saving"):
        time.sleep(0.05)
    assert written(pipe) == ""


def test_a_reply_is_whole_before_it_is_judged() -> None:
    on = screen()
    on.piece("**Yes** it")
    on.reply_over("**Yes** it")
    assert plain(on).split("\n", 1)[1].strip() == "Yes it"
    shown = written(on)
    on.turn(turn("**Yes** it"))
    assert written(on) == f"{shown}\n"


# Verdicts ----------------------------------------------------------------------------------------

VERDICTS = (
    verdict("uncertainty", {"answer": "x", "certainty": 0.87}),
    verdict("jailbreak", {"jailbreak": 0.9}),
    verdict("query_rewrite", {"rewritten_question": "Who?"}),
)


def test_badges_with_their_evidence() -> None:
    on = screen()
    on.good_of = lambda name: "low" if name == "jailbreak" else "high"
    on.turn(turn("", verdicts=VERDICTS))
    assert plain(on).splitlines()[1:] == [
        '  certainty 87% · jailbreak attempt 90% · rewritten question "Who?"',
        "  43 ms, 812 tokens reused, 27 read",
        "",
    ]
    for badge in (
        "\x1b[32mcertainty 87%\x1b[0m",
        "\x1b[31mjailbreak attempt 90%\x1b[0m",
        '\x1b[36mrewritten question "Who?"\x1b[0m',
        "\x1b[2m43 ms, 812 tokens reused, 27 read\x1b[0m",
    ):
        assert badge in written(on)


def test_verdicts_stand_under_their_aliases() -> None:
    on, named = screen(), []
    on.good_of = lambda name: named.append(name) or "low"  # type: ignore[func-returns-value]
    asked = (
        replace(verdict("guardian", {"score": 0.9}), alias="jb"),
        replace(verdict("guardian", {"score": 0.1}), alias="bias"),
        Failed("guardian", ag.AdapterError("is not loaded"), "rude"),
    )
    on.answers(asked)
    assert named == ["guardian", "guardian"]
    assert plain(on).splitlines() == [
        "  rude: is not loaded",
        "  jb: score 90% · bias: score 10% · 43 ms, 812 tokens reused, 18 read",
        '  jb: {"score": 0.9}',
        '  bias: {"score": 0.1}',
        "",
    ]
    assert "\x1b[31mjb: score 90%\x1b[0m" in written(on)
    assert "\x1b[32mbias: score 10%\x1b[0m" in written(on)
    withheld = screen()
    withheld.turn(turn("", withheld=asked[0]))
    assert "Withheld by jb: your message was taken back." in plain(withheld)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0004, "0 ms"), (0.0426, "43 ms"), (9.9994, "9999 ms"), (9.9996, "10.0 s"), (75, "75.0 s")],
)
def test_times_have_a_unit_that_can_be_read(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_answers_are_shown_in_full_below() -> None:
    on = screen()
    on.answers(VERDICTS[:1])
    assert plain(on).splitlines() == [
        "  certainty 87% · 43 ms, 812 tokens reused, 9 read",
        '  uncertainty: {"answer": "x", "certainty": 0.87}',
        "",
    ]


def test_long_answers_are_indented_and_numbers_as_exact_as_anyone_reads_them() -> None:
    on = screen(40)
    value = {"n": 0.123456789, "each": [1.5e-07 / 3, 12], "text": "of several words, a line long"}
    on.answers([verdict("x", value)])
    assert plain(on).splitlines()[-4:] == [
        '  x: {"n": 0.1235, "each": [0.0, 12],',
        '    "text": "of several words, a line',
        '    long"}',
        "",
    ]


def test_what_could_not_be_asked_or_understood() -> None:
    on = screen(100)
    odd = ag.IntrinsicResult("odd\x1b", "", (), "stop", TIMINGS, ag.OutputError("no JSON"), None)
    full = Failed("certainty", ag.CacheFullError("model.gguf: the KV cache is full: ..."))
    on.turn(turn("", verdicts=(odd, Failed("gone", ag.AdapterError("is not loaded")), full)))
    assert plain(on).splitlines()[1:] == [
        "  odd\\x1b: not understood: no JSON",
        "  gone: is not loaded",
        "  certainty: the KV cache has no room to ask it; /ctx N makes room, /rewind takes turns "
        "back",
        "",
    ]


def test_what_was_withheld() -> None:
    on = screen()
    guard = VERDICTS[1]
    on.turn(turn("", "withheld", verdicts=(guard,), withheld=guard))
    assert plain(on).splitlines() == [
        "Withheld by jailbreak: your message was taken back.",
        "  jailbreak attempt 90% · 43 ms, 812 tokens reused, 9 read",
        "",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    on = screen(width)
    on.note("base.gguf with " + "a_long_name_of_an_adapter, " * 4)
    on.note("  1  " + "漢字" * 60)
    on.turn(turn("", verdicts=(*VERDICTS, verdict("x", {"long": "漢" * 80}))))
    on.answers(VERDICTS)
    on.aside("name", "word " * 30 + "w" * 150)
    on.error("word " * 30 + "w" * 150)
    on.show(costs([turn("a"), turn("b")], on.width))
    assert max(cell_len(line) for line in plain(on).split("\n")) <= width
    assert "…" in plain(on)


def test_a_table_of_adapters_has_a_line_for_each(demo: ag.Model) -> None:
    for width, cut in ((100, False), (60, True)):
        on = screen(width)
        on.show(adapters(demo, width))
        head, *rows = plain(on).splitlines()
        assert head.split() == ["adapter", "kind", "rank", "contract", "begins", "at"]
        assert [row.split()[0] for row in rows] == [*demo.adapters]
        assert all(row.rstrip().endswith("…") == cut for row in rows)


def test_documents_are_a_list_whatever_their_length() -> None:
    on = screen(20)
    on.show(documents([ag.Document("of some words, several lines"), ag.Document("b", title="t")]))
    assert [line.rstrip() for line in plain(on).splitlines()] == [
        "  1  of some words,", "     several lines", "  2  t",
    ]  # fmt: skip


def test_a_list_of_costs_where_a_table_has_no_room() -> None:
    for width, shown in (
        (80, ["turn  reused  read  first token  written  tokens/s  watching",
              "   1     812     9        20 ms        3        87         0"]),
        (40, ["turn 1, reused 812, read 9, first token",
              "20 ms, written 3, tokens/s 87, watching", "0"]),
    ):  # fmt: skip
        on = screen(width)
        on.show(costs([turn("a")], on.width))
        assert [line.rstrip() for line in plain(on).splitlines()] == [s.rstrip() for s in shown]
