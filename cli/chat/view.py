"""What a chat shows: nothing but what goes wrong, or all of it through a pipe; and its events as
JSON lines, on the output or in a transcript.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from alora_gguf.cli.render import duration, visible
from alora_gguf.cli.verdicts import Badge, Good, badges_of, number_in

import alora_gguf as ag

from .asking import Failed, Turn, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType


class Record:
    """Writes an event a line, each whole, by `write`, to what is called `name`."""

    def __init__(self, name: str, write: Callable[[str], object]) -> None:
        self._name, self._write = name, write
        self._broken = False

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened. Raises InputError once if it cannot be written."""
        if self._broken:
            return
        line = json.dumps({"event": kind, **fields}, ensure_ascii=False, default=str)
        try:
            self._write(f"{line}\n")
        except BrokenPipeError:
            raise
        except OSError as error:
            self._broken = True
            raise ag.InputError(
                f"{self._name}: cannot be written: {error.strerror or error}; nothing more is "
                "written to it"
            ) from error


class Transcript(io.FileIO):
    """The end of a file; a new one can be read by its owner only, for it has a conversation."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if it cannot be written."""
        try:
            super().__init__(path, "ab", opener=partial(os.open, mode=0o600))
        except OSError as error:
            raise ag.InputError(
                f"--transcript {path}: cannot be written: {error.strerror}; name a file in a "
                "directory where you may write"
            ) from error

    def write_text(self, text: str) -> None:
        """Writes all of it, now."""
        self.write(text.encode("utf-8", "replace"))


def write_json(text: str) -> None:
    """Writes lines of JSON to stdout, now, in UTF-8 whatever its encoding is."""
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def write_now(text: str) -> None:
    """Writes all of it to stdout, now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _fields(verdict: Verdict) -> dict[str, Any]:
    name = {"name": verdict.label}
    if verdict.alias is not None:
        name["intrinsic"] = verdict.name
    if isinstance(verdict, Failed):
        return {**name, "error": str(verdict.error)}
    return {**name, **verdict.to_dict()}


_DIGITS: Final = 4

MORE_ROOM: Final = "/ctx N makes room, /rewind takes turns back"
FROM_THE_START: Final = "give it less to read (/doc off drops documents), or make room with /ctx N"


class Shown(NamedTuple):
    """What a command shows: `people` as rich renders it, programs as `data` in JSON."""

    people: RenderableType
    data: Any


class View:
    """Notes and errors go to stderr, the record's events to the records, and nothing else is shown;
    others show more. `failed` says whether anything was not answered.
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self._records = records
        self.failed = False
        self.good_of: Callable[[str], Good | None] = lambda _: None  # as intrinsics' contracts say

    def began(self, model: ag.Model) -> None:
        """What is chatted with, since when."""
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        adapters, base = [*model.adapters], Path(model.path).name
        self._event("began", at=at, base=base, adapters=adapters, n_ctx=model.n_ctx)

    @property
    def width(self) -> int:
        """In columns, of what show() is given."""
        return 80

    def reading(self, done: int, total: int) -> None:
        """So many tokens of a text are read."""

    def piece(self, text: str) -> None:
        """A piece of the reply that is being made."""

    def reply_over(self, reply: str) -> None:
        """The reply is all there; verdicts may follow."""

    @contextlib.contextmanager
    def waiting(self, _what: str) -> Iterator[None]:
        """There may be nothing to see for a while, because of that."""
        yield

    def turn(self, turn: Turn) -> None:
        """The end of a turn, and what the intrinsics say of it."""
        self.failed |= turn.finish_reason in ("full", "withheld") or _fail(turn.verdicts)
        self._event(
            "turn",
            user=turn.user,
            assistant=turn.reply,
            finish_reason=turn.finish_reason,
            timings=asdict(turn.timings),
            verdicts=[_fields(verdict) for verdict in turn.verdicts],
            withheld=None if turn.withheld is None else turn.withheld.label,
        )

    def stopped(self) -> None:
        """What was going on was interrupted and changed nothing."""
        self._event("stopped")

    def answers(self, verdicts: Sequence[Verdict]) -> None:
        """What intrinsics say that were asked for."""
        self.failed |= _fail(verdicts)
        self._event("answers", verdicts=[_fields(verdict) for verdict in verdicts])

    def command(self, line: str) -> None:
        """A command that is going to be run."""
        self._event("command", line=line)

    def aside(self, name: str, text: str) -> None:
        """What an adapter would reply, which stays out of the conversation."""
        self._event("aside", adapter=name, text=text)

    def show(self, what: str | Shown) -> None:
        """Something that was asked for: text or a table."""
        self._event("shown", result=what if isinstance(what, str) else what.data)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        click.echo(visible(text), err=True)
        self._event("note", text=text)

    def error(self, text: str) -> None:
        """What went wrong."""
        click.echo(f"Error: {visible(text)}", err=True)
        self._note_error(text)

    def _note_error(self, text: str) -> None:
        self.failed = True
        self._event("error", message=text)

    def _event(self, kind: str, **fields: Any) -> None:
        for record in self._records:
            record.event(kind, **fields)

    def _badges_of(self, verdicts: Sequence[Verdict]) -> list[Badge]:
        return [
            badge if each.alias is None else replace(badge, text=f"{each.alias}: {badge.text}")
            for each in values_of(verdicts)
            for badge in badges_of(each.name, each.value, self.good_of(each.name))
        ]


class Piped(View):
    """Replies and what is asked for go to stdout as they are, everything else to stderr."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        super().__init__(records)
        self._open = False  # a line of the reply
        self._out = visible if sys.stdout.isatty() else str

    def piece(self, text: str) -> None:
        """As it comes: who reads a pipe can wait for the whole as well."""
        if text:
            self._open = True
            self._write(text)

    def reply_over(self, _: str) -> None:
        """A line break, if there is a reply."""
        if self._open:
            self._write("\n")
        self._open = False

    def turn(self, turn: Turn) -> None:
        """A line break, and the verdicts in short."""
        self.reply_over("")
        if told := ending(turn):
            click.echo(told, err=True)
        for wrong in problems(turn.verdicts):
            click.echo(wrong, err=True)
        if badges := [visible(each.text) for each in self._badges_of(turn.verdicts)]:
            click.echo(" · ".join([*badges, evidence(turn.verdicts)]), err=True)
        super().turn(turn)

    def stopped(self) -> None:
        """A line break."""
        self.reply_over("")
        click.echo("(stopped)", err=True)
        super().stopped()

    def answers(self, verdicts: Sequence[Verdict]) -> None:
        """A JSON value on a line of its own; of several, an object of them."""
        for wrong in problems(verdicts):
            click.echo(f"Error: {wrong}", err=True)
        if values := {each.label: each.value for each in values_of(verdicts)}:
            shown = values if len(verdicts) > 1 else next(iter(values.values()))
            self._write(json.dumps(shown, ensure_ascii=False) + "\n")
        super().answers(verdicts)

    def aside(self, name: str, text: str) -> None:
        """On a line of its own."""
        self._write(text + "\n")
        super().aside(name, text)

    def show(self, what: str | Shown) -> None:
        """As plain text."""
        if isinstance(what, str):
            self._write(f"{visible(what)}\n")
        else:
            from rich.console import Console

            Console(
                file=sys.stdout, width=self.width, color_system=None, highlight=False, emoji=False
            ).print(what.people)
        super().show(what)

    def error(self, text: str) -> None:
        """On a line of its own."""
        self.reply_over("")
        super().error(text)

    def _write(self, text: str) -> None:
        try:
            write_now(self._out(text))  # click would take escapes out of a pipe
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ag.InputError(
                f"the output cannot be written: {error.strerror or error}"
            ) from error


def _fail(verdicts: Sequence[Verdict]) -> bool:
    return any(verdict.error is not None for verdict in verdicts)


# In words, safe to print ------------------------------------------------------------------------


def ending(turn: Turn) -> str:
    """What is to be said of a turn that did not just end, or ""."""
    if turn.withheld is not None:
        answer = next(iter(values_of([turn.withheld])), None)
        none = answer is not None and number_in(answer.value) is None
        why = "its answer is no number, which lets nothing pass; " if none else ""
        return f"Withheld by {visible(turn.withheld.label)}: {why}your message was taken back."
    return {
        "stop": "" if turn.reply else "(the reply is empty)",
        "length": "(cut off: /set max_tokens N, or -n N, for longer replies)",
        "full": f"(cut off: the KV cache is full; {MORE_ROOM})",
    }.get(turn.finish_reason, "(stopped; what was said stays)")


def problems(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Why some have no value."""
    for verdict in verdicts:
        if isinstance(verdict, Failed) and isinstance(verdict.error, ag.CacheFullError):
            yield f"{visible(verdict.label)}: the KV cache has no room to ask it; {MORE_ROOM}"
        elif verdict.error is not None:
            understood = "" if isinstance(verdict, Failed) else "not understood: "
            yield visible(f"{verdict.label}: {understood}{verdict.error}")


def values_of(verdicts: Sequence[Verdict]) -> list[ag.IntrinsicResult]:
    """Those that have one."""
    return [v for v in verdicts if isinstance(v, ag.IntrinsicResult) and v.error is None]


def in_full(verdict: ag.IntrinsicResult) -> str:
    """Its name and value, with numbers as exact as anyone reads them."""
    shown = json.dumps(_rounded(verdict.value), ensure_ascii=False)
    return visible(f"{verdict.label}: {shown}")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    if not isinstance(value, float):
        return value
    return round(value, _DIGITS) if abs(value) < 1 else float(f"{value:.{_DIGITS}g}")


def evidence(verdicts: Sequence[Verdict]) -> str:
    """What verdicts that were asked together cost."""
    timings: list[ag.Timings] = [v.timings for v in verdicts if isinstance(v, ag.IntrinsicResult)]
    seconds = max(each.total for each in timings)
    reused = max(each.reused for each in timings)
    read = sum(each.evaluated for each in timings)
    return f"{duration(seconds)}, {reused} tokens reused, {read} read"
