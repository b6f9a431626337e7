"""A chat in a terminal: replies as they come, broken between words, verdicts as badges below."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from alora_gguf.cli.flow import Flow, side_by_side
from alora_gguf.cli.render import shortened, visible
from rich.console import Console
from rich.text import Text

from .view import Shown, View, ending, evidence, in_full, problems, values_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .asking import Turn, Verdict
    from .view import Record

_STYLES: Final = {True: "green", False: "red", None: "cyan"}
# what is worth rendering: headings, lists, code, emphasis, links, tables, quotes
_MARKDOWN: Final = re.compile(
    r"^#{1,6} |^\s*[-*+] |^\s*\d+[.)] |^```|^> |^\|.*\|$|\*\*\S|`[^`\n]+`|\[[^\]\n]+\]\(",
    re.MULTILINE,
)
_WIDEST: Final = 100
_LONG: Final = 256  # tokens; reading fewer is over before anyone reads how far it is
_PATIENCE: Final = 0.5  # seconds without anything to see, then it is said what takes so long
_HANG: Final = 2  # columns, of a value's further lines


class Screen(View):
    """Shows a chat's events; colour only where it is wanted and can be shown."""

    def __init__(self, records: Sequence[Record] = (), console: Console | None = None) -> None:
        super().__init__(records)
        self.console = console or Console(highlight=False, emoji=False)
        self._flow: Flow | None = None
        self._flow_width = 0
        self._bar = threading.RLock()  # the line that goes again: timers write it too
        self._bar_shown = False
        self._waiting_for = ""
        self._timer: threading.Timer | None = None

    @property
    def width(self) -> int:
        """In columns, of what show() is given."""
        return min(self.console.width, _WIDEST)

    def reading(self, done: int, total: int) -> None:
        """One line, which goes again."""
        if total < _LONG or not self._can_go_back:
            return
        if done < total:
            self._show_bar(f"reading {done} of {total} tokens")
        else:
            self._clear_bar()
            self._wait()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A line that says so, if it takes long; it goes with whatever is shown next."""
        self._waiting_for = what
        self._wait()
        try:
            yield
        finally:
            self._waiting_for = ""
            self._clear_bar()

    def piece(self, text: str) -> None:
        """Wrapped between words."""
        if self._flow is None:
            self._clear_bar()
            self._flow_width = self.width
            self._flow = Flow(self._flow_width - 1)  # a full line makes some terminals break it
        self._write(self._flow.add(visible(text)))

    def reply_over(self, reply: str) -> None:
        """The end of the reply's line. Its Markdown takes the place of what was shown, at once,
        where all of that is still on the screen and as it was written.
        """
        self._clear_bar()
        flow, self._flow = self._flow, None
        if flow is None:
            return
        self._write(flow.end())
        as_written = flow.lines < self.console.height and self._flow_width == self.width
        if self._can_go_back and as_written and _MARKDOWN.search(reply):
            self._write(f"\x1b[{flow.lines}A\x1b[J")
            self.console.print(_markdown(visible(reply)), width=self.width)

    def turn(self, turn: Turn) -> None:
        """Ends the reply, and shows the verdicts."""
        self.reply_over(turn.reply)
        if told := ending(turn):
            self._line(told, "bold red" if turn.withheld else "dim")
        self._badges(turn.verdicts)
        self._print()
        super().turn(turn)

    def stopped(self) -> None:
        """Nothing was said."""
        self.reply_over("")
        self._line("(stopped)", "dim")
        super().stopped()

    def answers(self, verdicts: Sequence[Verdict]) -> None:
        """Badges, and below them each value in full."""
        self._badges(verdicts)
        for result in values_of(verdicts):
            self._line(in_full(result), "dim", indent=2, hang=_HANG)
        self._print()
        super().answers(verdicts)

    def aside(self, name: str, text: str) -> None:
        """With the name of who would say it."""
        self._line(f"{visible(name)}: {visible(text)}", "cyan", indent=2)
        super().aside(name, text)

    def show(self, what: str | Shown) -> None:
        """A text or a table."""
        self._print(Text(visible(what), overflow="fold") if isinstance(what, str) else what.people)
        super().show(what)

    def note(self, text: str) -> None:
        """In the background; of an indented line, which is one of a list, what fits."""
        for line in visible(text).split("\n"):
            self._line(shortened(line, self.width) if line.startswith(" ") else line, "dim")
        self._event("note", text=text)

    def error(self, text: str) -> None:
        """Where it is seen."""
        self.reply_over("")
        self._line(f"Error: {visible(text)}", "red")
        self._note_error(text)

    # Parts ---------------------------------------------------------------------------------------

    @property
    def _can_go_back(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()

    def _print(self, what: RenderableType = "") -> None:
        self._clear_bar()
        self.console.print(what, width=self.width)

    def _line(self, text: str, style: str, *, indent: int = 0, hang: int = 0) -> None:
        """Further lines are indented by `hang` more."""
        lines = Text(text, style=style).wrap(
            self.console, max(self.width - indent - hang, 1), overflow="fold"
        )
        for i, line in enumerate(lines):
            line.rstrip()
            self._print(Text(" " * (indent + hang * bool(i))).append_text(line))

    def _show_bar(self, text: str) -> None:
        with self._bar:
            self._clear_bar()
            self._write(shortened(text, self.width - 1))
            self._bar_shown = True

    def _clear_bar(self) -> None:
        with self._bar:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._bar_shown:
                self._write("\r\x1b[K")
                self._bar_shown = False

    def _wait(self) -> None:
        """Says in a moment what is waited for, if nothing is shown before."""
        with self._bar:
            self._clear_bar()
            if self._waiting_for and self._can_go_back:
                self._timer = threading.Timer(_PATIENCE, self._say_waiting)
                self._timer.daemon = True
                self._timer.start()

    def _say_waiting(self) -> None:
        with self._bar:
            if self._timer is threading.current_thread():  # and nothing came in between
                self._show_bar(f"{self._waiting_for} …")

    def _badges(self, verdicts: Sequence[Verdict]) -> None:
        for wrong in problems(verdicts):
            self._line(wrong, "yellow", indent=2)
        if parts := [
            (visible(each.text), _STYLES[each.good]) for each in self._badges_of(verdicts)
        ]:
            parts.append((evidence(verdicts), "dim"))
            for line in side_by_side(parts, self.width - 2):
                self._print(Text("  ").append(line))


def _markdown(text: str) -> RenderableType:
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    # no links that lead elsewhere than they say, no colours that a terminal may not have
    shown = Markdown(text, hyperlinks=False, code_theme="ansi_dark")
    # what looks like HTML is text: rich would leave it out
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    shown.parsed = parser.parse(text)
    return shown
