"""A reply in a chat: the text as it comes, and the message that it becomes."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from threading import RLock

from alora_gguf.aio import _in_thread
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.generate.generation import Generation
from alora_gguf.messages import Message
from alora_gguf.options import Timings
from alora_gguf.tools import ToolCall

from .asking import IntrinsicResult
from .said import Parts


class Reply(Generation):
    """Iterates over pieces of the reply's text, with `for` or `async for`; made by Chat.say().

    While it runs, the chat's last message is what was said so far, and it stays what was said where
    the reply is left: any other call that adds to the chat ends it.

    Who goes on with it takes the chat's lock, then the sequence's; the session, which holds its
    sequence's lock alone, ends it as the Generation it is.
    """

    def _join(
        self,
        lock: RLock,
        on_end: Callable[[Reply], None],
        intrinsics: tuple[Future[IntrinsicResult], ...],
        read: Timings | None,
        parts: Parts,
    ) -> None:
        """Makes it a chat's: `on_end` is called with the chat's `lock` held, when it is over;
        `read` is what it took to read the conversation, if that was done before; `parts` reads what
        it says.
        """
        self._lock, self._on_end = lock, on_end
        self._intrinsics, self._read = intrinsics, read
        self._listener = Listener(parts, self._sequence.engine.vocab)

    @property
    def timings(self) -> Timings:
        """Of the conversation's reading and the sampling, up to now or to the end."""
        timings, read = super().timings, self._read
        if read is None:
            return timings
        first = timings.first_token
        return replace(
            timings,
            reused=min(read.reused, timings.reused),
            evaluated=timings.evaluated + read.evaluated,
            first_token=None if first is None else first + read.total,
            total=timings.total + read.total,
            reuse_note=read.reuse_note or timings.reuse_note,
        )

    @property
    def intrinsics(self) -> tuple[Future[IntrinsicResult], ...]:
        """The answers of the intrinsics that were asked along with it, in order; each is there as
        soon as it is known: `.done()`, and `.result()`, which waits, and raises what asking raised.
        """
        return self._intrinsics

    @property
    def reasoning(self) -> str:
        """What the model thought so far before it spoke: what stands between its markers, such as
        <think> and </think>, whether it began that or the prompt did.
        """
        return self._listener.parts.reasoning

    @property
    def content(self) -> str:
        """What it has said so far, without its thinking and without calls of tools. `text` is all
        of it as it was sampled.
        """
        return self._listener.parts.content

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools so far, those that are whole; none unless the chat has tools."""
        return tuple(self._listener.parts.calls)

    def events(self) -> Iterator[tuple[str, str | ToolCall]]:
        """Runs to the end, and gives what comes piece by piece: ("reasoning", text), ("content",
        text) and ("tool_call", call). What has come already is given first.
        """
        given, events = 0, self._listener.events
        while True:
            yield from events[given : (given := len(events))]
            if self.finish_reason is not None and given == len(events):
                return
            next(self, None)

    def _message(self, *, keeps_reasoning: bool) -> Message:
        """What it has said so far as a message. Thinking is told from it if the template
        `keeps_reasoning`, and all is over that was begun.
        """
        # without the lock, for who only looks: a piece that comes meanwhile may be in one of them
        listener, parts = self._listener, self._listener.parts
        calls = tuple(parts.calls)
        if not parts.whole or not (calls or (parts.thought and keeps_reasoning)):
            return Message("assistant", self.text)
        if keeps_reasoning:
            return Message("assistant", parts.content, calls, reasoning=parts.reasoning)
        return Message("assistant", self.text[: listener.before].rstrip(), calls)

    def __next__(self) -> str:
        with self._lock:
            try:
                return super().__next__()
            finally:
                self._heard()
                if self.finish_reason is not None:
                    self._on_end(self)

    def _heard(self) -> None:
        self._listener.hear(self.tokens, self.text, over=self.finish_reason is not None)

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        while (piece := await _in_thread(partial(next, self, None), self._cancel)) is not None:
            yield piece

    def close(self) -> None:
        """Ends it where it is; what was said stays in the chat. Idempotent."""
        with self._lock:
            super().close()
            self._heard()
            self._on_end(self)


class Listener:
    """Hands a reply's text to what reads it, with the markers that are control tokens in their
    places, which are no text.
    """

    def __init__(self, parts: Parts, vocab: Vocabulary) -> None:
        self.parts, self._vocab = parts, vocab
        self.events: list[tuple[str, str | ToolCall]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_tokens = self._n_decoded = self._n_heard = 0
        self._markers: list[tuple[int, str]] = []  # by characters before them, not yet heard
        self._heard: list[tuple[int, int]] = []  # markers in what was heard: where, characters
        self._over = False

    @property
    def before(self) -> int | None:
        """Characters of the text before the first call."""
        at = self.parts.before
        return at if at is None else at - sum(n for begin, n in self._heard if begin < at)

    def hear(self, tokens: Sequence[int], text: str, *, over: bool) -> None:
        """All tokens and the text so far, and whether that is all."""
        if self._over:
            return
        for token in tokens[self._n_tokens :]:
            piece = self._vocab.piece(token)
            self._n_decoded += len(self._decoder.decode(piece))
            if not piece and (marker := self._vocab.piece(token, special=True)):
                self._markers.append((self._n_decoded, marker.decode("utf-8", "replace")))
        self._n_tokens = max(self._n_tokens, len(tokens))
        while self._markers and self._markers[0][0] <= len(text):
            at, written = self._markers.pop(0)
            self._feed(text[self._n_heard : at])
            self._n_heard = at
            if self.parts.knows(written):
                self._heard.append((self.parts.n_read, len(written)))
                self._feed(written)
        self._feed(text[self._n_heard :])
        self._n_heard = len(text)
        if over:
            self._over = True
            self.events += self.parts.finish()

    def _feed(self, text: str) -> None:
        self.events += self.parts.feed(text) if text else ()
