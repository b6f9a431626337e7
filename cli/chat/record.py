"""A chat's events as JSON lines: on the output, or in a transcript."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from alora_gguf import InputError

from .asking import Failed, Verdict
from .talk import Turn


class Record:
    """Writes an event a line, each whole."""

    def __init__(self, out: Out) -> None:
        self._out: Out | None = out

    def began(self, base: str, adapters: Sequence[str], n_ctx: int) -> None:
        """What is chatted with, since when."""
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._event("began", at=at, base=base, adapters=list(adapters), n_ctx=n_ctx)

    def turn(self, turn: Turn) -> None:
        """What was said, and what was said of it."""
        self._event(
            "turn",
            user=turn.user,
            assistant=turn.reply,
            finish_reason=turn.finish_reason,
            timings=asdict(turn.timings),
            verdicts=[_fields(verdict) for verdict in turn.verdicts],
            withheld=None if turn.withheld is None else turn.withheld.name,
        )

    def stopped(self) -> None:
        """Something was interrupted and changed nothing."""
        self._event("stopped")

    def answers(self, verdicts: Sequence[Verdict]) -> None:
        """What intrinsics say that were asked for."""
        self._event("answers", verdicts=[_fields(verdict) for verdict in verdicts])

    def aside(self, name: str, text: str) -> None:
        """What an adapter would reply."""
        self._event("aside", adapter=name, text=text)

    def command(self, line: str) -> None:
        """A command that is going to be run."""
        self._event("command", line=line)

    def error(self, text: str) -> None:
        """What went wrong."""
        self._event("error", message=text)

    def _event(self, kind: str, **fields: Any) -> None:
        if self._out is None:
            return
        line = json.dumps({"event": kind, **fields}, ensure_ascii=False, default=str)
        try:
            self._out.write(f"{line}\n")
        except BrokenPipeError:
            raise
        except OSError as error:
            broken, self._out = self._out, None
            raise InputError(
                f"{broken.name}: cannot be written: {error.strerror or error}; nothing more is "
                "written to it"
            ) from error


class Out(Protocol):
    """What lines are written to."""

    name: str

    def write(self, text: str) -> None:
        """Writes all of it, now."""


class Stdout:
    """The output."""

    name = "the output"

    def write(self, text: str) -> None:
        """Writes all of it, now."""
        sys.stdout.write(text)
        sys.stdout.flush()


class File:
    """The end of a file; a new one can be read by its owner only, for it has a conversation."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Raises InputError if it cannot be written."""
        self.name = str(path)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise InputError(
                f"--transcript {path}: cannot be written: {error.strerror}; name a file in a "
                "directory where you may write"
            ) from error
        self._file = stack.enter_context(io.FileIO(file, "ab"))

    def write(self, text: str) -> None:
        """Writes all of it, now."""
        self._file.write(text.encode("utf-8", "replace"))


def _fields(verdict: Verdict) -> dict[str, Any]:
    if isinstance(verdict, Failed):
        return {"name": verdict.name, "error": str(verdict.error)}
    fields: dict[str, Any] = {"name": verdict.name}
    if verdict.error is None:
        fields["value"] = verdict.value
    else:
        fields["error"] = str(verdict.error)
    return {**fields, "text": verdict.text, "timings": asdict(verdict.timings)}
