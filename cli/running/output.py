"""The output: a line for each conversation, whole or not at all; what of it was there before, and
what is still to be asked.

A line begins with the hash of what was asked, so that a later run knows its own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from alora_gguf.cli.render import printable

import alora_gguf as ag

from .conversations import Entry
from .work import Answer

_HEAD: Final = b'{"asked": "'
_LINE: Final = re.compile(rb'\{"asked": "([0-9a-f]{32})", "line": ([0-9]+), .*\}', re.DOTALL)


def as_line(value: Any) -> bytes:
    """A value as JSON in ASCII on one line."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


Say = Callable[[Entry, "Answer | None"], bytes]
"""How a line says what came of a conversation."""


def as_value(_: Entry, answer: Answer | None) -> bytes:
    """Nothing but the value."""
    return as_line(None if answer is None else answer.value())


class Rows:
    """Rows of CSV: the id, or else the line's number, and a value for each of what was `asked`; of
    a value that is an object with one field, that field. What there is not, is empty.
    """

    def __init__(self, asked: Sequence[str]) -> None:
        self._asked = asked
        self.head = _row(["id", *asked])

    def __call__(self, entry: Entry, answer: Answer | None) -> bytes:
        """A row."""
        values = {} if answer is None else answer.values()
        own = entry.echo.get("id", entry.line)
        return _row([_flat(own), *(_flat(values.get(name)) for name in self._asked)])


def _flat(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else value


def _row(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "replace")


class InOrder:
    """To a stream, in the order of the input: a line waits for those before it. `number` is its
    place there, from 0, without gaps.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: dict[int, bytes] = {}
        self._next = 0

    def write(self, number: int, line: bytes) -> None:
        """Takes a line."""
        self._waiting[number] = line
        while self._next in self._waiting:
            self._put(self._next)
            self._next += 1

    def close(self) -> None:
        """Writes what still waits for others, which do not come any more."""
        for number in sorted(self._waiting):
            self._put(number)

    def _put(self, number: int) -> None:
        self._stream.write(self._waiting.pop(number))
        self._stream.flush()


class AppendedFile:
    """A file that only grows, by whole lines, as soon as they are known; and what an earlier run
    has written.

    answered  for each hash the lines that it stood on in the input, and whether it was answered as
              the contracts say
    failed    the hash, the line and the error of what could not be asked
    """

    def __init__(self, path: Path) -> None:
        """Opens it, or begins it. What is torn at its end, from a crash, is cut off.

        Raises InputError if it cannot be written, is not of an earlier run, or in use by one.
        """
        self.path = path
        self.answered: dict[str, dict[int, bool]] = {}
        self.failed: set[tuple[str, int, str]] = set()
        try:
            regular = not path.exists() or path.is_file()
            self._file = path.open("ab+" if regular else "ab", buffering=0)
        except OSError as error:
            raise self._refusal(error) from error
        try:
            if regular:
                if not _claim(self._file.fileno()):
                    raise ag.InputError(f"{path}: another run is writing it; wait, or name another")
                self._take_up()
        except BaseException:
            self.close()
            raise

    def write(self, _: int, line: bytes) -> None:
        """Appends a line."""
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._refusal(error) from error

    def close(self) -> None:
        """Closes it; a second call does nothing."""
        self._file.close()

    def take(self, asked: str, line: int | None) -> bool | None:
        """Whether it was answered well; None if it was not asked, with that number or (None) one
        that nobody else has taken.
        """
        lines = self.answered.get(asked, {})
        if line is None:
            line = next(iter(lines), None)
        return None if line is None else lines.pop(line, None)

    def _take_up(self) -> None:
        """Notes the lines that are there, and makes the last one whole or nothing."""
        self._file.seek(0)
        *lines, torn = self._file.readall().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not self._note(line):
                raise self._foreign(number)
        if torn and not (torn.startswith(_HEAD) or _HEAD.startswith(torn)):
            raise self._foreign(len(lines) + 1)
        if torn and self._note(torn):
            self.write(0, b"\n")
        elif torn:
            self._file.truncate(self._file.tell() - len(torn))

    def _note(self, line: bytes) -> bool:
        """Notes a line; says whether it is a whole one of ours."""
        found = _LINE.fullmatch(line)
        if found is None:
            return False
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return False
        asked, number = found[1].decode(), int(found[2])
        if "error" in record:
            self.failed.add((asked, number, str(record["error"])))
        else:
            results = (record.get("results") or {}).values()
            well = not any("error" in each for each in results)
            self.answered.setdefault(asked, {})[number] = well
        return True

    def _foreign(self, number: int) -> ag.InputError:
        return ag.InputError(
            f"{self.path}:{number}: is not a line that an earlier run has written; name another "
            "file for the output"
        )

    def _refusal(self, error: OSError) -> ag.InputError:
        return ag.InputError(
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
        setting: str,
        output: InOrder | AppendedFile,
        *,
        progress: Callable[[int, int], None],
        say: Say | None = None,
    ) -> None:
        """`setting` is what is asked of every entry, as Plan.setting() says it; `say` writes lines
        otherwise than in full.
        """
        self._output, self._progress, self._say = output, progress, say
        self._file = output if isinstance(output, AppendedFile) else None
        asked = ((entry.line, f"{setting}\n{entry.digest}") for entry in entries)
        self._asked = {n: hashlib.sha256(text.encode()).hexdigest()[:32] for n, text in asked}
        self._numbers = {entry.line: number for number, entry in enumerate(entries)}
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
        self._progress(self._over, len(self.todo))

    def _write(self, entry: Entry, answer: Answer | None, problem: str) -> None:
        asked = self._asked[entry.line]
        if self._file is not None and (asked, entry.line, problem) in self._file.failed:
            return  # it says so already
        if self._say is not None:
            line = self._say(entry, answer)
        else:
            said = {"error": problem} if answer is None else answer.to_dict()
            line = as_line({"asked": asked, "line": entry.line, **entry.echo, **said})
        self._output.write(self._numbers[entry.line], line)

    def _still_to_ask(self, entries: Sequence[Entry]) -> list[Entry]:
        """All but those that were answered, on the same line of the input or on another one."""
        if self._file is None:
            return list(entries)
        known = dict[int, bool]()
        for exactly in (True, False):
            for entry in entries:
                if entry.line in known or entry.conversation is None:
                    continue
                well = self._file.take(self._asked[entry.line], entry.line if exactly else None)
                if well is not None:
                    known[entry.line] = well
        self.failed += sum(not well for well in known.values())
        return [entry for entry in entries if entry.line not in known]


def _claim(number: int) -> bool:
    """Whether no other process has it; it is ours until it is closed."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
