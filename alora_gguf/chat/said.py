"""What a reply says as it comes: what its model thinks, what it says, and the tools it calls."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator
from typing import Final, Literal

from alora_gguf.generate.calls import CallForm
from alora_gguf.tools import NAME, ToolCall

Event = tuple[str, str | ToolCall]
"""("reasoning", text), ("content", text) or ("tool_call", call)."""

_LETTERS: Final = string.ascii_letters + string.digits
_ID_LENGTH: Final = 9  # as Mistral's templates insist on


class Parts:
    """Takes a reply's text, with the control tokens that stand around thinking and calls, piece by
    piece. Space between the parts belongs to none of them.

    reasoning, content, calls  so far
    before                     characters of the text before the first call
    whole                      whether nothing that was begun has no end
    """

    def __init__(
        self, thinking: tuple[str, str], form: CallForm | None, *, begun: bool = False
    ) -> None:
        """`form` is that of calls, None where there can be none; `begun` says that the reply begins
        amid thinking.
        """
        self.reasoning = self.content = ""
        self.calls: list[ToolCall] = []
        self.before: int | None = None
        self.whole = True
        self._begins, self._ends = thinking
        self._form, self._reader = form, None if form is None else _Reader(form)
        self._phase: Literal["start", "thinking", "content", "calls"]
        self._phase = "thinking" if begun else "start"
        self._thought = begun
        self._buffer, self._taken = "", 0

    @property
    def thought(self) -> bool:
        """Whether there was thinking, and it is over."""
        return self._thought and self._phase not in ("start", "thinking")

    @property
    def n_read(self) -> int:
        """Characters of text that feed() was given."""
        return self._taken + len(self._buffer)

    def knows(self, marker: str) -> bool:
        """Whether a control token stands around one of the parts."""
        form = self._form
        written = () if form is None else (form.opening, *form.between, form.joint, form.closing)
        return marker in (self._begins, self._ends) or any(marker in each for each in written)

    def feed(self, text: str) -> list[Event]:
        """More text; returns what is certain now."""
        self._buffer += text
        events: list[Event] = []
        before = ""
        while before != self._phase:
            before = self._phase
            events += getattr(self, f"_{before}")()
        return events

    def finish(self) -> list[Event]:
        """The end; returns what was held back."""
        rest = self._take(len(self._buffer))
        if self._phase == "thinking":
            self.whole = False
            return list(self._reason(rest.rstrip("\n")))
        if self._phase == "calls":
            self.whole = self._reader is not None and self._reader.over
            return list(self._say(rest)) if self.whole and rest.strip() else []
        return list(self._say(rest))

    def _take(self, n: int) -> str:
        taken, self._buffer = self._buffer[:n], self._buffer[n:]
        self._taken += n
        return taken

    def _start(self) -> Iterator[Event]:
        text = self._buffer.lstrip()
        if text.startswith(self._begins):
            self._take(len(self._buffer) - len(text) + len(self._begins))
            self._phase, self._thought = "thinking", True
        elif not self._begins.startswith(text):
            self._phase = "content"
        yield from ()

    def _thinking(self) -> Iterator[Event]:
        at = self._buffer.find(self._ends)
        if at >= 0:
            yield from self._reason(self._take(at).rstrip("\n"))
            self._take(len(self._ends))
            self._phase = "content"
        else:
            yield from self._reason(self._take(_certain(self._buffer, self._ends)))

    def _content(self) -> Iterator[Event]:
        form = self._form
        if form is None:
            yield from self._say(self._take(len(self._buffer)))
            return
        at = self._buffer.find(form.trigger)
        first = self._buffer[:at].isspace() or at == 0
        if at >= 0 and (not form.only_first or (first and not self.content)):
            self.before = self._taken + at
            yield from self._say(self._take(at).rstrip())
            self._phase = "calls"
            return
        if form.only_first and not self.content and form.trigger.startswith(self._buffer.lstrip()):
            return
        yield from self._say(self._take(_certain(self._buffer, form.trigger)))

    def _calls(self) -> Iterator[Event]:
        assert self._reader is not None  # noqa: S101 (for mypy)
        for call in self._reader.feed(self._take(len(self._buffer))):
            self.calls.append(call)
            yield "tool_call", call

    def _reason(self, text: str) -> Iterator[Event]:
        text = text if self.reasoning else text.lstrip("\n")
        self.reasoning += text
        if text:
            yield "reasoning", text

    def _say(self, text: str) -> Iterator[Event]:
        text = text.lstrip("\n") if self._thought and not self.content else text
        self.content += text
        if text:
            yield "content", text


def _certain(text: str, marker: str) -> int:
    """How many characters of `text` are neither space at its end nor the beginning of a marker."""
    n = len(text)
    for k in range(min(len(marker) - 1, n), 0, -1):
        if text.endswith(marker[:k]):
            n -= k
            break
    return len(text[:n].rstrip())


class _Reader:
    """Reads calls in a form, from their marker on."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._buffer, self._expected = "", form.opening
        self._field = 0  # the next one of a call; the last is followed by `joint` or `closing`
        self._found = dict[str, str]()
        self._object = _Object()

    @property
    def over(self) -> bool:
        """Whether the calls were closed."""
        closed = self._buffer.startswith(self._form.closing)
        return self._field == len(self._form.order) and closed

    def feed(self, text: str) -> Iterator[ToolCall]:
        """More text; the calls that are whole now."""
        self._buffer += text
        order = self._form.order
        while True:
            if self._field == len(order) and self._form.joint:
                self._expected = self._form.joint
            if self._field == len(order) and not self._form.joint:
                return
            if not self._buffer.startswith(self._expected):
                return
            self._buffer = self._buffer[len(self._expected) :]
            self._expected, self._field = "", self._field % len(order)
            if not self._read(order[self._field]):
                return
            self._field += 1
            if self._field == len(order):
                yield self._call()
            else:
                self._expected = self._form.between[self._field - 1]

    def _read(self, field: str) -> bool:
        """Whether all of a field is there."""
        if field == "arguments":
            n = self._object.end(self._buffer)
        else:
            match = re.match(NAME, self._buffer)
            n = match.end() if match and match.end() < len(self._buffer) else None
        if n is None:
            return False
        self._found[field], self._buffer = self._buffer[:n], self._buffer[n:]
        return True

    def _call(self) -> ToolCall:
        found, self._found, self._object = self._found, {}, _Object()
        call_id = found.get("id") or "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))
        return ToolCall(call_id, found["name"], json.loads(found["arguments"]))


class _Object:
    """Finds the end of a JSON object in text that grows."""

    def __init__(self) -> None:
        self._at = self._depth = 0
        self._in_text = False

    def end(self, text: str) -> int | None:
        """How many characters of `text`, which begins with it, it has; None while it goes on."""
        while self._at < len(text):
            sign = text[self._at]
            if self._in_text and sign == "\\":
                if self._at + 1 == len(text):
                    return None
                self._at += 1
            elif sign == '"':
                self._in_text = not self._in_text
            elif not self._in_text and sign in "{[":
                self._depth += 1
            elif not self._in_text and sign in "}]":
                self._depth -= 1
            self._at += 1
            if not self._depth:
                return self._at
        return None
