"""From logits to text that is safe to show: the one step of every reply, whole characters only, and
nothing that may turn out to be the beginning of a stop string.
"""

from __future__ import annotations

import codecs
import time
from typing import Literal

from alora_gguf.engine.batch import Logits
from alora_gguf.engine.vocab import Vocabulary

from .sampling import Sampler


class TextStream:
    """Text that grows by tokens' bytes.

    `text` is all that push() and finish() have returned; `stopped` turns true once a stop string
    has appeared, which ends the text before it.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._ends: list[int] = []  # after each token, the characters it has begun

    def push(self, data: bytes) -> str:
        """Adds a token's bytes; returns the text that is certain now: often none."""
        self._held += self._decoder.decode(data)
        partial = bool(self._decoder.getstate()[0])
        self._ends.append(len(self.text) + len(self._held) + partial)
        at = self._find_stop()
        if at is not None:
            self.stopped = True
            return self._give(at, drop=True)
        return self._give(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """Returns what was held back; the text ends here."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._give(len(self._held))

    def tokens_in_text(self) -> int:
        """How many of the pushed tokens lie wholly within `text`."""
        return sum(end <= len(self.text) for end in self._ends)

    def _give(self, n: int, *, drop: bool = False) -> str:
        piece = self._held[:n]
        self._held = "" if drop else self._held[n:]
        self.text += piece
        return piece

    def _find_stop(self) -> int | None:
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found, default=None)

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:n]):
                    longest = n
                    break
        return longest


class SampledReply:
    """A reply as it is sampled: what it says, and when and why it ends. Who generates it calls
    choose() with the logits after the last token, decodes the token it gives, and calls push().

    `ended` is None while it goes on, then "stop" or "length"; `first_token` is the time, in seconds
    from `started`, at which there was one.
    """

    def __init__(
        self,
        sampler: Sampler,
        vocab: Vocabulary,
        *,
        stops: tuple[str, ...],
        max_tokens: int,
        started: float,
    ) -> None:
        self.sampler, self.stream = sampler, TextStream(stops)
        self._vocab, self._max_tokens, self._started = vocab, max_tokens, started
        self.n_sampled = 0
        self.first_token: float | None = None
        self.ended: Literal["stop", "length"] | None = None

    def choose(self, logits: Logits) -> int | None:
        """The next token, or None if the model ends its reply."""
        token = self.sampler.sample(logits)
        if self.first_token is None:
            self.first_token = time.perf_counter() - self._started
        if not self._vocab.is_end(token):
            return token
        self.n_sampled += 1
        self.ended = "stop"
        return None

    def push(self, token: int) -> str:
        """Adds a chosen token; returns the text that became certain."""
        self.n_sampled += 1
        piece = self.stream.push(self._vocab.piece(token))
        if self.stream.stopped or self.sampler.must_end:
            self.ended = "stop"
        elif self.n_sampled >= self._max_tokens:
            self.ended = "length"
        return piece
