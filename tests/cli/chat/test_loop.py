"""Lines one after another, and Ctrl-C at any moment of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest
from alora_gguf.cli.chat.asking import Turn
from alora_gguf.cli.chat.lines import Lines
from alora_gguf.cli.chat.loop import Loop
from alora_gguf.cli.chat.talk import Talk
from alora_gguf.cli.chat.view import View

import alora_gguf as ag

from .test_talk import ANSWER, QUESTION


class Typed(Lines):
    """What a person types: texts, and what else happens at the prompt."""

    typed = True
    can_edit = True

    def __init__(self, *lines: str | Callable[[], None]) -> None:
        self.lines = [*lines]
        self.drafts: list[str] = []

    def read(self, draft: str = "") -> str:
        self.drafts.append(draft)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if callable(line):
            line()
            return ""
        return line


class Seen(View):
    """What was shown, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def turn(self, turn: Turn) -> None:
        self.all.append(f"turn {turn.finish_reason} {turn.reply}")

    def stopped(self) -> None:
        self.all.append("stopped")

    def note(self, text: str) -> None:
        self.all.append(text)

    def error(self, text: str) -> None:
        self.all.append(f"error {text}")


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def led(talk: Talk, *lines: str | Callable[[], None]) -> tuple[list[str], Typed]:
    """What a conversation shows; afterwards Ctrl-C is what it was before."""
    before = signal.getsignal(signal.SIGINT)
    seen, typed = Seen(), Typed(*lines)
    try:
        Loop(talk, seen, typed).run()
    finally:
        assert signal.getsignal(signal.SIGINT) == before
    return seen.all, typed


def test_lines_to_the_end(talk: Talk) -> None:
    seen, _ = led(talk, QUESTION, "", "  ", "/nope", "/rewind", "/quit", "never said")
    assert seen[0] == f"turn stop {ANSWER}"
    assert seen[1].startswith("error there is no command /nope")
    assert seen[2:] == ["took back 1 turn; 0 messages left"]


def test_ctrl_c_at_the_prompt_says_how_to_leave(talk: Talk) -> None:
    assert led(talk, ctrl_c, "/rewind")[0] == ["(Ctrl-D leaves)", "error nothing was said yet"]


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_stops_what_is_going_on_and_a_second_one_the_program(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    def go_on(_: str) -> None:
        for _ in range(n):
            ctrl_c()

    monkeypatch.setattr(Seen, "piece", lambda _, text: go_on(text))
    if n == 2:
        with pytest.raises(KeyboardInterrupt):
            led(talk, QUESTION)
        assert talk.chat.messages == []
        return
    seen, _ = led(talk, QUESTION, "/rewind")
    assert seen[0].startswith("turn cancelled The")
    assert seen[1] == "took back 1 turn; 0 messages left"


def test_ctrl_c_after_a_turn_does_not_end_the_conversation(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who meant the reply is late by a moment."""
    monkeypatch.setattr(Typed, "unseen", late)
    seen, _ = led(talk, QUESTION, "/rewind")
    assert seen == [
        f"turn stop {ANSWER}", "(Ctrl-D leaves)", "took back 1 turn; 0 messages left",
        "(Ctrl-D leaves)",
    ]  # fmt: skip


class late:  # noqa: N801
    """A context that Ctrl-C ends."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        ctrl_c()


def test_the_last_message_stays_until_it_is_said_otherwise(talk: Talk) -> None:
    seen, typed = led(talk, QUESTION, "/edit", ctrl_c, "/edit", "", "/edit", "/rewind", "/edit")
    assert typed.drafts == ["", "", QUESTION, "", QUESTION, "", QUESTION, "", ""]
    assert seen == [
        f"turn stop {ANSWER}", "(left as it was)", "(left as it was)",
        "took back 1 turn; 0 messages left", "error nothing was said yet",
    ]  # fmt: skip
    seen, typed = led(talk, QUESTION, "/edit", "Who runs the Bomel library?", "/edit")
    assert seen[1] == "turn stop The manager of the Bomel library is Ruth Covin."
    assert typed.drafts[-2] == "Who runs the Bomel library?"
    assert seen[2] == "(left as it was)"  # the end of the input is not text
    assert len(talk.chat.messages) == 2


def test_commands_that_cannot_be_stopped_end_as_they_do(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report() -> None:
        ctrl_c()
        raise ag.CancelledError("the call was cancelled")

    monkeypatch.setattr(talk.model, "cache_report", report)
    assert led(talk, "/cache", "/set seed 1")[0] == ["stopped", "seed 1"]


def test_without_a_person_ctrl_c_is_left_alone(talk: Talk) -> None:
    class Piped(Typed):
        typed = False

    before = signal.getsignal(signal.SIGINT)
    Loop(talk, Seen(), Piped(lambda: None, "/rewind")).run()
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(KeyboardInterrupt):
        Loop(talk, Seen(), Piped(ctrl_c)).run()
    failed: list[BaseException] = []

    def elsewhere() -> None:  # where no handler can be set
        try:
            Loop(talk, Seen(), Piped("/rewind")).run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed == []
