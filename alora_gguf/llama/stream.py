"""Tokens being sampled one by one, each read when the next is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from alora_gguf.engine.batch import Logits
from alora_gguf.errors import InputError
from alora_gguf.options import Timings

from .cells import Cells, OnRows
from .options import StoppingCriterion, TokenIds
from .sampling import Chain


class TokenStream(Iterator[int]):
    """Iterates over sampled tokens without end; a stopping criterion, close() or another use of the
    same cells ends it. The last token it gave is not read, unless another one is asked for.

    `row` holds the logits [n_vocab] that the last token was chosen from, `by_criterion` whether a
    stopping criterion was met (the token that was sampled then is not given).
    """

    def __init__(
        self,
        cells: Cells,
        chain: Chain,
        tokens: Sequence[int],
        *,
        criterion: StoppingCriterion | None = None,
        adapter: str | None = None,
        scale: float = 1.0,
        each: OnRows | None = None,
        on_end: Callable[[Timings], None] | None = None,
    ) -> None:
        """Reads `tokens`; `each` gets the rows of all of them. `on_end` is called with the timings.
        Raises as Session.sync() does, and InputError without tokens.
        """
        self._started = time.perf_counter()
        self._cells = cells
        self._chain = chain
        self._criterion = criterion
        self._on_end = on_end
        self._next: int | None = None
        self._first_token: float | None = None
        self._sampled = 0
        self._ended: str | None = None
        self.row: Logits = np.empty(0, np.float32)
        self.by_criterion = False
        if not tokens:
            raise InputError("the prompt is empty, and this vocabulary has no token to begin with")
        self._prefill = cells.read(tokens, adapter, scale, each)
        self._ids: TokenIds = np.array(tokens, np.intc)
        self._n_ids = len(tokens)
        cells.start(adapter, scale)

    @property
    def read_tokens(self) -> TokenIds:
        """The tokens read so far."""
        return self._ids[: self._n_ids]

    @property
    def timings(self) -> Timings:
        """Up to now."""
        return Timings(
            reused=self._prefill.reused,
            evaluated=self._prefill.evaluated,
            generated=self._sampled,
            first_token=self._first_token,
            total=time.perf_counter() - self._started,
            reuse_note=self._prefill.reuse_note,
        )

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> int:
        if self._ended is not None:
            if self._ended:
                raise InputError(self._ended)
            raise StopIteration
        try:
            token = self._step()
        except BaseException:
            self.close()
            raise
        if token is None:
            self.close()
            raise StopIteration
        return token

    def _step(self) -> int | None:
        if self._next is not None:
            self._cells.add(self._next)
            self._remember(self._next)
        self.row = self._cells.last
        token = self._chain.sample(self.row, self.read_tokens)
        if self._first_token is None:
            self._first_token = time.perf_counter() - self._started
        self._sampled += 1
        if self._criterion is not None and self._criterion(self.read_tokens, self.row):
            self.by_criterion = True
            return None
        self._next = token
        return token

    def _remember(self, token: int) -> None:
        if self._n_ids == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(self._n_ids, np.intc)])
        self._ids[self._n_ids] = token
        self._n_ids += 1

    def close(self, reason: str = "") -> None:
        """Ends it; asking for more then raises InputError with the `reason`, if there is one."""
        if self._ended is None:
            self._ended = reason
            self._cells.stop()
            if self._on_end is not None:
                self._on_end(self.timings)
