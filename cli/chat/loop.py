"""Takes a line, does what it says, takes the next one; and what happens when that fails."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

from alora_gguf.cli.render import whole

import alora_gguf as ag

from .commands import Commands
from .view import FROM_THE_START, MORE_ROOM

if TYPE_CHECKING:
    from .lines import Lines
    from .talk import Talk
    from .view import View


class Loop:
    """A conversation from the first line to the last."""

    def __init__(self, talk: Talk, view: View, lines: Lines) -> None:
        self._talk, self._view, self._lines = talk, view, lines
        view.good_of = talk.good_of
        self.commands = Commands(talk, view, lines)
        self._cancel: ag.CancelToken | None = None  # of what is going on
        self._forced = False
        self._said_unreadable = False

    def run(self) -> None:
        """Every line, to the end of them or to /quit.

        At a keyboard Ctrl-C stops what is going on, and a second one the program; elsewhere the
        first does.
        """
        if not self._lines.typed:
            self._take_lines()
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            self._take_lines()
        finally:
            signal.signal(signal.SIGINT, before)

    def _take_lines(self) -> None:
        while self._take_line():
            pass

    def _take_line(self) -> bool:
        """Whether there may be another one."""
        try:
            text = whole(self._lines.read())
            if text.strip():
                with self._lines.unseen():
                    self._handle(text)
        except EOFError:
            return False
        except KeyboardInterrupt:
            if self._forced or not self._lines.typed:
                raise
            self._view.note("(Ctrl-D leaves)")
        return True

    def _interrupt(self, *_: object) -> None:
        if self._cancel is None:
            raise KeyboardInterrupt
        if self._cancel.cancelled:
            self._forced = True
            raise KeyboardInterrupt
        self._cancel.cancel()

    def _handle(self, text: str) -> None:
        """A message or a command. What goes wrong is shown."""
        if not text.startswith("/") or text.startswith("//"):
            self.say(text.removeprefix("/"))
            return
        said = None
        with self._doing() as cancel:
            self._view.command(text.strip())
            said = self.commands.run(text.strip(), cancel)
        if said is not None:
            self.say(said, instead=True)

    def say(self, text: str, *, instead: bool = False) -> None:
        """A message, perhaps `instead` of the last one. What goes wrong is shown."""
        if "\ufffd" in text and not self._said_unreadable:
            self._said_unreadable = True
            self._view.note("what is not UTF-8 is read as \ufffd")
        with self._doing() as cancel:
            self._view.turn(self._talk.say(text, self._view, cancel, instead=instead))

    @contextlib.contextmanager
    def _doing(self) -> Iterator[ag.CancelToken]:
        """Something that can be stopped, and can go wrong."""
        self._cancel = ag.CancelToken()
        try:
            yield self._cancel
        except ag.CancelledError:
            self._view.stopped()
        except BrokenPipeError:  # nobody is there to be told
            raise
        except (ag.AloraError, OSError) as error:
            self._view.error(in_words(error, self._talk))
        finally:
            self._cancel = None


def in_words(error: Exception, talk: Talk) -> str:
    """What went wrong, and what to do about it here."""
    if not isinstance(error, ag.CacheFullError):
        return str(error)
    report = talk.model.cache_report()
    needs = re.search(r"(\d+) cells needed", str(error))
    needed = f" room for {needs[1]} tokens is needed, and" if needs else ""
    ever = talk.chat.session.cached and not (needs and int(needs[1]) > report.n_cells)
    way_out = MORE_ROOM if ever else FROM_THE_START
    return (
        f"this does not fit the KV cache:{needed} {report.used} of its {report.n_cells} are in "
        f"use; {way_out}"
    )
