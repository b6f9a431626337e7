"""A reply in a chat: the text as it comes, and the message that it becomes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from threading import RLock

from alora_gguf.aio import _in_thread
from alora_gguf.generate.generation import Generation
from alora_gguf.options import Timings

from .asking import IntrinsicResult


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
    ) -> None:
        """Makes it a chat's: `on_end` is called with the chat's `lock` held, when it is over;
        `read` is what it took to read the conversation, if that was done before.
        """
        self._lock, self._on_end = lock, on_end
        self._intrinsics, self._read = intrinsics, read

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

    def __next__(self) -> str:
        with self._lock:
            try:
                return super().__next__()
            finally:
                if self.finish_reason is not None:
                    self._on_end(self)

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        while (piece := await _in_thread(partial(next, self, None), self._cancel)) is not None:
            yield piece

    def close(self) -> None:
        """Ends it where it is; what was said stays in the chat. Idempotent."""
        with self._lock:
            super().close()
            self._on_end(self)
