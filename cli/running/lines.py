"""Many conversations: which of them are still to be asked, and a line for each that was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click
from alora_gguf.cli.render import printable

from .answers import Answer
from .conversations import Entry
from .output import Done, Output, as_line
from .plan import Asked

Progress = Callable[[int, int], None]


class Lines:
    """Takes what comes of conversations, writes a line for each and says on stderr what is wrong.

    failed  how many could not be asked, or not be answered as their contracts say
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        asked: Asked,
        output: Output,
        *,
        done: Done | None = None,
        values_only: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """`done` is what the output has already."""
        self._entries, self._output, self._progress = entries, output, progress
        self._values_only = values_only
        self._asked = {entry.line: asked.of(entry) for entry in entries}
        self._numbers = {entry.line: number for number, entry in enumerate(entries)}
        self._done = done or Done()
        self.failed = 0
        self._over = 0
        self.todo = self._still_to_ask()

    @property
    def skipped(self) -> int:
        """How many were answered before."""
        return len(self._entries) - len(self.todo)

    def deliver(self, entry: Entry, answer: Answer | None, problem: str) -> None:
        """What came of an entry."""
        problems: Iterable[str] = [problem] if answer is None else list(answer.problems())
        for each in problems:
            click.echo(f"Error: {printable(f'{entry.where}: {each}')}", err=True)
        self.failed += bool(problems)
        self._write(entry, answer, problem)
        self._over += 1
        if self._progress is not None:
            self._progress(self._over, len(self.todo))

    def _write(self, entry: Entry, answer: Answer | None, problem: str) -> None:
        asked = self._asked[entry.line]
        if answer is None and (asked, entry.line, problem) in self._done.failed:
            return  # it says so already
        said = {"error": problem} if answer is None else answer.to_dict()
        line = as_line({"asked": asked, "line": entry.line, **entry.echo, **said})
        if self._values_only:
            line = as_line(None if answer is None else answer.value())
        self._output.write(self._numbers[entry.line], line)

    def _still_to_ask(self) -> list[Entry]:
        """All but those that were answered, on the same line of the input or on another one."""
        known = dict[int, bool]()
        for exactly in (True, False):
            for entry in self._entries:
                if entry.line in known or entry.conversation is None:
                    continue
                well = self._done.take(self._asked[entry.line], entry.line if exactly else None)
                if well is not None:
                    known[entry.line] = well
        self.failed += sum(not well for well in known.values())
        return [entry for entry in self._entries if entry.line not in known]
