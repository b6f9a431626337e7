"""A reply in a chat: the text as it comes, and the message that it becomes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from threading import RLock

from alora_gguf.aio import _iterate
from alora_gguf.generate.generation import Generation
from alora_gguf.options import CancelToken, FinishReason, Timings, TokenLogprob

from .asking import IntrinsicResult


class Reply(Iterator[str]):
    """Iterates over pieces of the reply's text, with `for` or `async for`; made by Chat.say().

    While it runs, the chat's last message is what was said so far, and it stays what was said where
    the reply is left: any other call that adds to the chat ends it.
    """

    def __init__(
        self,
        generation: Generation,
        cancel: CancelToken,
        lock: RLock,
        on_end: Callable[[Reply], None],
        intrinsics: tuple[Future[IntrinsicResult], ...] = (),
        read: Timings | None = None,
    ) -> None:
        """Chat.say() calls it. `on_end` is called with the chat's `lock` held, when it is over;
        `read` is what it took to read the conversation, if that was done before.
        """
        self._intrinsics, self._read = intrinsics, read
        self._generation = generation
        self._lock = lock
        self._on_end = on_end
        self._cancel = cancel

    @property
    def text(self) -> str:
        """The text so far; a stop string and what follows it is not part of it."""
        return self._generation.text

    @property
    def tokens(self) -> list[int]:
        """The token ids so far; those of a stop string and an end token are not among them."""
        return self._generation.tokens

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Of the sampled tokens; None unless they were asked for."""
        return self._generation.logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, as of a Generation; None while it runs."""
        return self._generation.finish_reason

    @property
    def timings(self) -> Timings:
        """Of the conversation's reading and the sampling, up to now or to the end."""
        timings, read = self._generation.timings, self._read
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

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Reply {self.finish_reason or 'running'}: {self.text!r}>"

    def read(self) -> str:
        """Runs to the end and returns the whole text."""
        for _ in self:
            pass
        return self.text

    def __iter__(self) -> Reply:
        return self

    def __next__(self) -> str:
        piece = self._step()
        if piece is None:
            raise StopIteration
        return piece

    def _step(self) -> str | None:
        with self._lock:
            try:
                return next(self._generation, None)
            finally:
                if self._generation.finish_reason is not None:
                    self._on_end(self)

    def __aiter__(self) -> AsyncIterator[str]:
        return _iterate(self._step, self._cancel)

    def close(self) -> None:
        """Ends it where it is; what was said stays in the chat. Idempotent."""
        with self._lock:
            self._generation.close()
            self._on_end(self)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
