"""`alora-gguf demo` as a user runs it, and what its screen makes of what a model may say."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.demo_compare import Comparison, Side
from alora_gguf.cli.demo_screen import Reading, Screen
from alora_gguf.cli.verdicts import Badge

from alora_gguf import Chat, IntrinsicResult, Model, OutputError, Session, Timings, cli, demo
from alora_gguf.demo import DOCUMENTS, TURNS, Turn
from examples.demo_model import chat

ESCAPE = "\x1b["


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str, out: io.StringIO | None = None) -> str:
    """What it prints to stdout."""
    out = out or io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.run(["demo", "--threads", "1", *arguments]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(run("--json"))  # one object and nothing else
    return parsed


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    """What the session held when the comparison began; filled by `text`."""
    return []


@pytest.fixture(scope="module")
def text(conversations: list[str]) -> str:
    from alora_gguf.cli import demo_compare

    compare = demo_compare.compare

    def remember(chat: Chat, *arguments: Any) -> Comparison:
        conversations.append(chat.session.text)
        return compare(chat, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_compare, "compare", remember)
        return run()


def squeezed(text: str) -> str:
    """Without what line breaks and columns put between words."""
    return "".join(text.split())


# As JSON ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_transcript_is_the_script_with_answers(results: dict[str, Any]) -> None:
    assert set(results) == {
        "n_parameters", "nbytes", "threads", "documents", "transcript", "comparison",
        "base_untouched",
    }  # fmt: skip
    assert results["documents"] == list(DOCUMENTS)
    assert results["threads"] == 1
    assert [said["user"] for said in results["transcript"]] == [turn.question for turn in TURNS]
    for said, turn in zip(results["transcript"], TURNS, strict=True):
        assert set(said) == {"shows", "user", "assistant", "right", "timings", "verdicts"}
        assert said["assistant"].strip()
        assert said["right"] == turn.is_right(said["assistant"])
        assert said["timings"]["generated"] > 0
        for verdict in said["verdicts"].values():
            assert set(verdict) == {"text", "value", "words", "timings"}
    *before, last = (list(said["verdicts"]) for said in results["transcript"])
    assert before == [[*turn.before, *turn.after] for turn in TURNS[:-1]]
    assert last == list(demo.INTRINSICS)


def test_a_verdict_reads_an_invocation_and_the_rest_is_in_the_cache(
    results: dict[str, Any],
) -> None:
    reused = 0
    for said in results["transcript"][:-1]:
        for name, verdict in said["verdicts"].items():
            timings = verdict["timings"]
            assert 0 < timings["evaluated"] < 12, name  # the tokens of a role marker
            assert timings["reused"] >= reused
            reused = timings["reused"]
    comparison = results["comparison"]
    for name, timings in comparison["alora"]["timings"].items():
        assert comparison["n_tokens"] >= timings["reused"] > reused, name
        assert 0 < timings["evaluated"] < 12, name


def test_a_plain_lora_reads_everything(results: dict[str, Any]) -> None:
    comparison = results["comparison"]
    alora, lora = comparison["alora"], comparison["lora"]
    assert list(alora["timings"]) == list(lora["timings"]) == list(demo.INTRINSICS)
    for name, timings in lora["timings"].items():
        same = alora["timings"][name]
        assert timings["reused"] == 0
        assert timings["evaluated"] == same["reused"] + same["evaluated"]
        assert 0 < timings["generated"] <= same["generated"]
    assert lora["evaluated"] > 12 * alora["evaluated"]
    assert "aLoRA's own weights" in lora["weights"]


def test_it_is_worth_it(results: dict[str, Any]) -> None:
    """Some four times as fast on a conversation this short; below 1.5 something is read again."""
    comparison = results["comparison"]
    ratio = comparison["lora"]["seconds"] / comparison["alora"]["seconds"]
    assert comparison["times_as_fast"] == pytest.approx(ratio)
    assert comparison["times_as_fast"] > 1.5


def test_the_conversation_is_untouched(results: dict[str, Any]) -> None:
    assert results["base_untouched"] is True


@pytest.mark.slow
def test_a_change_of_the_conversation_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only while adapters are asked for the first time, say."""
    moments = itertools.count()
    monkeypatch.setattr(Session, "state", lambda _: b"other" if next(moments) == 1 else b"same")
    monkeypatch.setattr("alora_gguf.cli.demo_compare._RUNS", 1)
    assert json.loads(run("--json"))["base_untouched"] is False


def test_the_verdicts_are_what_the_script_is_there_to_show(results: dict[str, Any]) -> None:
    """Of the trained files: the model may err, which is for its adapters to say."""
    for said in results["transcript"]:
        for name, verdict in said["verdicts"].items():
            assert verdict["value"] is not None, (said["user"], name, verdict["text"])
    values = [{n: v["value"] for n, v in s["verdicts"].items()} for s in results["transcript"]]
    assert [v["jailbreak"] for v in values] == [False, False, True, False, False]
    assert [v.get("answerability") for v in values] == [True, True, None, False, True]
    assert values[1]["query_rewrite"] == "Who is the manager of the Bomel library?"
    assert values[-1]["query_rewrite"] == "What is the day off of the Brosa dairy?"
    for said in results["transcript"]:
        if "hallucination" in said["verdicts"]:
            assert said["verdicts"]["hallucination"]["value"] == said["right"], said["user"]


# As text ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_text_tells_the_same_story(text: str, results: dict[str, Any]) -> None:
    at = 0
    for said in results["transcript"]:
        for part in (said["shows"], f"  user       {said['user']}", "  assistant  "):
            at = text.index(part, at)
    shown = squeezed(text)
    for said in results["transcript"]:
        if said["assistant"].isprintable():
            assert squeezed(f"assistant {said['assistant']}") in shown
    for name, verdict in results["transcript"][-1]["verdicts"].items():
        assert squeezed(name + verdict["words"]) in shown
    comparison = results["comparison"]
    n = comparison["n_tokens"]
    for name, timings in comparison["alora"]["timings"].items():
        evaluated = timings["evaluated"]
        reused = timings["reused"]
        row = rf"^  {name} +{reused} +{evaluated} +\d+ ms +0 +{reused + evaluated} +\d+ ms$"
        assert re.search(row, text, re.MULTILINE), name
    alora, lora = comparison["alora"]["evaluated"], comparison["lora"]["evaluated"]
    assert f" times as fast, reading {alora} tokens instead of {lora}.\n" in text
    assert f"\nThe conversation's {n} cells are byte for byte what they were.\n" in text


def test_the_model_reads_what_it_was_trained_to_read(
    text: str, conversations: list[str], results: dict[str, Any]
) -> None:
    assert text
    messages: list[chat.Message] = []
    for said in reversed(results["transcript"]):
        messages.insert(0, chat.Message("assistant", said["assistant"]))
        messages.insert(0, chat.Message("user", said["user"]))
    assert conversations == [chat.render(DOCUMENTS, messages)]


def test_it_fits_a_terminal_and_ends_with_what_to_do_next(text: str) -> None:
    lines = text.splitlines()
    inspect = f"  alora-gguf inspect {demo.adapter_path('uncertainty')}"
    assert lines[-3:] == ["Next", "  alora-gguf convert --help    adapters of your own", inspect]
    assert max(map(len, lines[:-1])) <= 80
    assert len(lines) <= 78


@pytest.mark.parametrize("wish", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.slow
def test_colour_is_for_terminals_that_want_it(
    wish: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ESCAPE not in text
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("alora_gguf.cli.demo_compare._RUNS", 1)
    assert (ESCAPE in run(out=Terminal())) == (not wish)


# Failures -----------------------------------------------------------------------------------------


def test_a_damaged_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_FOLDER", tmp_path)
    assert cli.run(["demo"]) == cli.EXIT_USER
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Error: {tmp_path / 'base.gguf'}: the demo's base is missing; ")


def test_ctrl_c_amid_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "piece", interrupt)
    assert cli.run(["demo", "--threads", "1"]) == cli.EXIT_INTERRUPTED
    said = capsys.readouterr()
    assert said.out.endswith("  assistant  ")
    assert said.err.strip() == "Interrupted."


# The screen ---------------------------------------------------------------------------------------

TURN = Turn("A heading", "Who runs it?", right=("Ruth",), truth="Ruth does")


def test_the_readme_shows_what_it_prints(text: str) -> None:
    """But for times, shares and widths, which are the machine's."""

    def plain(line: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"[\d,.]+ (?=ms)|[\d.]+(?=%| times)", "", line)).strip()

    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    begin = page.index("A follow-up with a pronoun")
    shown = page[begin : page.index("```", begin)].splitlines()
    printed = {plain(line) for line in text.splitlines()}
    assert [line for line in shown if line not in ("", "...") and plain(line) not in printed] == []


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(demo.base_path(), adapters=demo.adapter_paths(), n_ctx=64, n_threads=1) as model:
        yield model


def read(model: Model, name: str, value: object, *, error: str = "") -> Reading:
    """What is read of an intrinsic's result."""
    problem = OutputError(error) if error else None
    timings = Timings(first_token=0.0123, total=0.0123)
    return Reading.of(model, IntrinsicResult(name, "{}", (), "stop", timings, problem, value))


def test_words_appear_as_soon_as_they_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.answer_begins()
    for piece, shown in (
        ("Ru", "  assistant  "), ("th Sum", "Ruth"), ("ley.\x1b", ""),
    ):  # fmt: skip
        screen.piece(piece)
        assert capsys.readouterr().out == shown
    screen.answer_ends(TURN, "Ruth Sumley.\x1b")
    assert capsys.readouterr().out == " Sumley.\\x1b\n"


def test_a_long_answer_goes_on_below(capsys: pytest.CaptureFixture[str]) -> None:
    words = "The Valta library is run by Ruth Sumley, who has done so ever since it was founded."
    screen = Screen()
    screen.answer_begins()
    screen.piece(words)
    screen.answer_ends(TURN, words)
    assert capsys.readouterr().out == (
        "  assistant  The Valta library is run by Ruth Sumley, who has done so ever since\n"
        "             it was founded.\n"
    )
    screen.answer_begins()
    screen.piece("So " + 100 * "o" + " yes")
    screen.answer_ends(TURN, "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["  assistant  So", 13 * " " + 67 * "o", 13 * " " + 33 * "o" + " yes"]


def test_a_wrong_answer_is_called_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().answer_ends(TURN, "Simon does.")
    assert capsys.readouterr().out.endswith("\n             (The base errs: Ruth does.)\n")


def test_badges_flow(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "jailbreak": {"jailbreak": 0.01},
        "answerability": {"answer": "It is not in the documents.", "answerable": 0.02},
        "query_rewrite": {"rewritten_question": "When was the library founded?"},
    }
    Screen().badges([read(model, name, value) for name, value in values.items()])
    assert capsys.readouterr().out == (
        "      12 ms  no jailbreak attempt 99% · not answerable 98%\n"
        '             rewritten question "When was the library founded?"\n'
    )
    Screen().badges([])
    assert capsys.readouterr().out == ""


def test_changed_cells_are_not_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    side = Side(1.0, {name: Timings(first_token=0.5) for name in demo.INTRINSICS})
    Screen().comparison(Comparison(7, 1, side, side), threads=2, base_untouched=False)
    said = capsys.readouterr().out
    assert "on 2 threads\n" in said
    assert "The conversation's 7 cells are NOT what they were.\n" in said
    assert "byte for byte" not in said


@pytest.mark.parametrize(
    ("name", "given", "value", "badge", "good"),
    [
        ("answerability", {"answer": "Red.", "answerable": 0.97}, True, "answerable 97%", True),
        ("answerability", {"answer": "", "answerable": 0.2}, False, "not answerable 80%", False),
        ("uncertainty", {"answer": "Red.", "certainty": 0.95}, 0.95, "certainty 95%", True),
        ("uncertainty", {"answer": "Red.", "certainty": 0.05}, 0.05, "certainty 5%", False),
        ("query_rewrite", {"rewritten_question": "Who?"}, "Who?", 'rewritten question "Who?"',
         None),
        ("hallucination", {"faithful": 0.99}, True, "faithful 99%", True),
        ("hallucination", {"faithful": 0.01}, False, "not faithful 99%", False),
        ("jailbreak", {"jailbreak": 0.9}, True, "jailbreak attempt 90%", False),
        ("jailbreak", {"jailbreak": 0.1}, False, "no jailbreak attempt 90%", True),
    ],
)  # fmt: skip
def test_verdicts_in_words(
    model: Model, name: str, given: object, value: object, badge: str, good: bool | None
) -> None:
    reading = read(model, name, given)
    assert (reading.value, reading.badges) == (value, [Badge(badge, good)])


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_what_is_not_understood_is_not_taken_for_a_verdict(model: Model, name: str) -> None:
    reading = read(model, name, None, error="the reply is not JSON")
    assert (reading.value, reading.badges) == (None, [Badge("not understood", False)])
