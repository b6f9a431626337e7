"""A reply being generated: an iterator of text that leaves its session consistent at any end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from alora_gguf._calls import uninterrupted
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.tokens import Spans
from alora_gguf.errors import CancelledError
from alora_gguf.options import CancelToken, FinishReason, Timings, TokenLogprob

from .sampling import SampledReply

if TYPE_CHECKING:
    from typing_extensions import Self


@uninterrupted
class Generation(Iterator[str]):
    """Iterates over pieces of the reply's text, in whole characters; made by Session.generate().

    At every moment the session holds the prompt and `tokens`, whether the iterator was exhausted,
    closed early, or left by an exception or Ctrl-C. Using the session in another way ends it.

    `finish_reason` is None while it runs, then "stop" (an end token or a stop string), "length"
    (max_tokens), "cancelled", "closed" or "error".
    """

    def __init__(
        self,
        sequence: TokenSequence,
        reply: SampledReply,
        spans: Spans,
        prefill: Timings,
        cancel: CancelToken | None,
    ) -> None:
        self._sequence, self._reply = sequence, reply
        self._spans, self._prefill, self._cancel = spans, prefill, cancel
        self._start = len(sequence.tokens)
        self._total: float | None = None
        self._tokens: list[int] | None = None
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The text so far; a stop string and what follows it is not part of it."""
        return self._reply.stream.text

    @property
    def tokens(self) -> list[int]:
        """The reply's tokens that are in the session. An end token and the tokens of a stop string
        are not; neither is a token that reaches into the stop string.
        """
        if self._tokens is not None:
            return self._tokens.copy()
        return self._sequence.tokens[self._start :]

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Of the sampled tokens; None unless generate() was asked for them."""
        return self._reply.sampler.logprobs

    @property
    def timings(self) -> Timings:
        """Of the prompt's reading and the sampling, up to now or to the end."""
        return replace(
            self._prefill,
            generated=self._reply.n_sampled,
            first_token=self._reply.first_token,
            total=self._total or time.perf_counter() - self._reply.started,
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.finish_reason or 'running'}: {self.text!r}>"

    def read(self) -> str:
        """Runs to the end and returns the whole text."""
        for _ in self:
            pass
        return self.text

    def __next__(self) -> str:
        with self._sequence.lock:
            while self.finish_reason is None:
                try:
                    piece = self._step()
                except CancelledError:
                    piece = self._end("cancelled")
                except BaseException:
                    self._finish("error")
                    raise
                if piece:
                    return piece
        raise StopIteration

    def _step(self) -> str:
        """Samples one token, or takes those that there is no choice about, and decodes it; returns
        the text that became certain.
        """
        if self._cancel is not None:
            self._cancel.check()
        sequence, reply = self._sequence, self._reply
        certain, token = reply.certain(), None
        if not certain:
            token = reply.choose(sequence.last_logits())
        more, piece = certain if token is None else [token], ""
        if more:
            sequence.advance(more, self._spans, self._cancel)
            piece = reply.take(certain) if token is None else reply.push(token)
            if reply.stream.stopped:
                sequence.forget(self._start + reply.stream.tokens_in_text())
        return piece if reply.ended is None else piece + self._end(reply.ended)

    def _end(self, reason: FinishReason) -> str:
        rest = self._reply.stream.finish()
        self._finish(reason)
        return rest

    def _finish(self, reason: FinishReason) -> None:
        """Ends the reply; the adapter is no longer in use."""
        if self.finish_reason is None:
            self._tokens = self._sequence.tokens[self._start :]
            self._total = time.perf_counter() - self._reply.started
            self.finish_reason = reason
            self._sequence.deactivate()
            self._sequence.engine.scheduler.leave()

    def close(self) -> None:
        """Ends the reply where it is; what has been generated stays in the session."""
        if self.finish_reason is None:
            with self._sequence.lock:
                self._finish("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # getattr: __init__ may not have come this far
        if getattr(self, "finish_reason", "error") is None:
            self._sequence.deactivate_unless_busy()
