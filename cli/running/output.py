"""The output: a line for each conversation, whole or not at all; what of it was there before, and
what is still to be asked.

A line begins with the hash of what was asked, so that a later run knows its own.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import click
from alora_gguf.cli.render import printable

from alora_gguf import InputError

from .conversations import Entry
from .work import Answer

_HEAD: Final = b'{"asked": "'
_LINE: Final = re.compile(rb'\{"asked": "([0-9a-f]{32})", "line": ([0-9]+), .*\}', re.DOTALL)


def as_line(value: Any) -> bytes:
    """A value as JSON in ASCII on one line."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


class Output(Protocol):
    """Where lines go. `number` is the line's place in the input, from 0, without gaps."""

    def write(self, number: int, line: bytes) -> None:
        """Takes a line."""

    def close(self) -> None:
        """Writes what is left."""


class InOrder:
    """To a stream, in the order of the input: a line waits for those before it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: dict[int, bytes] = {}
        self._next = 0

    def write(self, number: int, line: bytes) -> None:
        """Takes a line."""
        self._waiting[number] = line
        while self._next in self._waiting:
            self._put(self._waiting.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Writes what still waits for others, which do not come any more."""
        for number in sorted(self._waiting):
            self._put(self._waiting.pop(number))

    def _put(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()


@dataclass
class Done:
    """What an earlier run has written: for each hash the lines that it stood on in the input, with
    the error if there was one, and whether an intrinsic's answer had one.
    """

    answered: dict[str, dict[int, bool]] = field(default_factory=dict)
    failed: set[tuple[str, int, str]] = field(default_factory=set)

    def add(self, asked: str, line: int, record: Mapping[str, Any]) -> None:
        """Notes a line."""
        if "error" in record:
            self.failed.add((asked, line, str(record["error"])))
        else:
            results = record.get("results") or {}
            bad = any("error" in each for each in results.values())
            self.answered.setdefault(asked, {})[line] = not bad

    def take(self, asked: str, line: int | None) -> bool | None:
        """Whether it was answered well; None if it was not asked, with that number or (None) one
        that nobody else has taken.
        """
        lines = self.answered.get(asked, {})
        if line is None:
            line = next(iter(lines), None)
        return None if line is None else lines.pop(line, None)


class AppendedFile:
    """A file that only grows, by whole lines, as soon as they are known."""

    def __init__(self, path: Path) -> None:
        """Opens it, or begins it. What is torn at its end, from a crash, is cut off.

        Raises InputError if it cannot be written, is not of an earlier run, or in use by one.
        """
        self.path = path
        self.done = Done()
        try:
            regular = not path.exists() or stat.S_ISREG(path.stat().st_mode)
            access = os.O_RDWR if regular else os.O_WRONLY
            self._number = os.open(path, access | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
        except OSError as error:
            raise self._refusal(error) from error
        try:
            if regular:
                if not _claim(self._number):
                    raise InputError(f"{path}: another run is writing it; wait, or name another")
                self._take_up()
        except OSError as error:
            self.close()
            raise self._refusal(error) from error
        except BaseException:
            self.close()
            raise

    def write(self, number: int, line: bytes) -> None:  # noqa: ARG002 (an Output's)
        """Appends a line."""
        try:
            while line:
                line = line[os.write(self._number, line) :]
        except OSError as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """Closes it; a second call does nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def _take_up(self) -> None:
        """Notes the lines that are there, and makes the last one whole or nothing."""
        with os.fdopen(os.dup(self._number), "rb") as file:
            data = file.read()
        *lines, torn = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not self._note(line):
                raise self._foreign(number)
        if torn and not (torn.startswith(_HEAD) or _HEAD.startswith(torn)):
            raise self._foreign(len(lines) + 1)
        if torn and self._note(torn):
            self.write(0, b"\n")
        elif torn:
            os.truncate(self._number, len(data) - len(torn))

    def _note(self, line: bytes) -> bool:
        """Notes a line; says whether it is a whole one of ours."""
        found = _LINE.fullmatch(line)
        try:
            record = json.loads(line) if found is not None else None
        except (ValueError, RecursionError):
            record = None
        if found is None or record is None:
            return False
        self.done.add(found[1].decode(), int(found[2]), record)
        return True

    def _foreign(self, number: int) -> InputError:
        return InputError(
            f"{self.path}:{number}: is not a line that an earlier run has written; name another "
            "file for the output"
        )

    def _refusal(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written: {error.strerror or error}; name another file for the "
            "output"
        )


class Lines:
    """Takes what comes of conversations, writes a line for each and says on stderr what is wrong.

    todo    those that are still to be asked
    failed  how many could not be asked, or not be answered as their contracts say
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        asked: Callable[[Entry], str],
        output: Output,
        *,
        done: Done | None = None,
        values_only: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`asked` is the hash of what is asked of an entry, `done` what the output has already."""
        self._output, self._progress = output, progress
        self._values_only = values_only
        self._asked = {entry.line: asked(entry) for entry in entries}
        self._numbers = {entry.line: number for number, entry in enumerate(entries)}
        self._done = done or Done()
        self.failed = 0
        self._over = 0
        self.todo = self._still_to_ask(entries)

    def deliver(self, entry: Entry, answer: Answer | None, problem: str) -> None:
        """What came of an entry."""
        problems = [problem] if answer is None else answer.problems()
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

    def _still_to_ask(self, entries: Sequence[Entry]) -> list[Entry]:
        """All but those that were answered, on the same line of the input or on another one."""
        known = dict[int, bool]()
        for exactly in (True, False):
            for entry in entries:
                if entry.line in known or entry.conversation is None:
                    continue
                well = self._done.take(self._asked[entry.line], entry.line if exactly else None)
                if well is not None:
                    known[entry.line] = well
        self.failed += sum(not well for well in known.values())
        return [entry for entry in entries if entry.line not in known]


if sys.platform == "win32":
    _BINARY: Final = os.O_BINARY

    def _claim(_number: int) -> bool:
        return True

else:
    import fcntl

    _BINARY: Final = 0

    def _claim(number: int) -> bool:
        """Whether no other process has it; it is ours until it is closed."""
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True
