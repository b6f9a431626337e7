"""The one sequence that a Llama reads and writes: a Session, and what only Llama needs below it.

The only module here that works on a Session's Conversation: rows of logits of a whole prompt, an
adapter that stays active between tokens, and cells that come from a saved state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from alora_gguf.engine.batch import Logits, Run
from alora_gguf.engine.provenance import BASE, CachedTokens, Spans, spans_for
from alora_gguf.errors import DecodeError, InputError
from alora_gguf.model import Model
from alora_gguf.options import Timings
from alora_gguf.saved.session_file import SavedSession
from alora_gguf.saved.snapshot import fill, snapshot
from alora_gguf.session import Session

OnRows = Callable[[int, Logits], None]
"""Called with a position and rows [n, n_vocab]: the logits after the tokens from there on."""


class Cells:
    """Tokens that are read, and the logits after the last of them.

    With `keep_rows` the logits after every token are kept: float32, n_vocab per token.
    """

    def __init__(self, model: Model, *, keep_rows: bool, chunk: int) -> None:
        """`chunk` is how many rows of logits one batch may give."""
        self._model = model
        self._engine = model._runtime.engine
        self._session: Session = model.session()
        self._conversation = self._session._sequence
        self._chunk = chunk
        self._rows: list[Logits] | None = [] if keep_rows else None
        self._spans: Spans = spans_for(None, BASE)

    @property
    def session(self) -> Session:
        """The session below."""
        return self._session

    @property
    def tokens(self) -> list[int]:
        """The tokens read so far, a copy."""
        return self._session.tokens

    @property
    def rows(self) -> list[Logits]:
        """The logits after each token, [n_vocab] each. Raises InputError unless they are kept."""
        if self._rows is None:
            raise InputError(
                "the logits of all tokens are kept only if the model is opened with "
                "logits_all=True; log-probabilities of completions need no such thing"
            )
        return self._rows

    @property
    def last(self) -> Logits:
        """The logits after the last token, [n_vocab]. Raises InputError if there is no token."""
        if not self._conversation.tokens:
            raise InputError("nothing has been read yet, so there is nothing to sample from")
        if not self._conversation.ready:  # cut back to here, or loaded from a saved state
            self.read(self._session.tokens, *self._use_of_cells())
        return self._session._sequence.last_logits()

    def _use_of_cells(self) -> tuple[str | None, float]:
        """The (adapter, scale) that the cells' last token was computed with."""
        by = self._session.provenance[-1][1]
        for name, file in self._model.adapters.items():
            if by.identity is not None and file.identity == by.identity:
                return name, by.scale
        return None, 1.0

    # Reading -------------------------------------------------------------------------------------

    def read(
        self,
        tokens: Sequence[int],
        adapter: str | None = None,
        scale: float = 1.0,
        each: OnRows | None = None,
    ) -> Timings:
        """Makes the tokens exactly `tokens`, reads what the cells do not hold, and the last token
        again where its logits are gone. With `each`, everything is read, for the rows of it all.
        """
        if each is not None and self._rows is None:
            self._spans_of(tokens, adapter, scale)  # raises before anything is forgotten
            self._truncate(0)
            return self._read_rows(tokens, adapter, scale, each)
        if self._rows is not None:
            timings = self._read_keeping(tokens, adapter, scale)
            if each is not None and self._rows:
                each(0, np.stack(self._rows))
            return timings
        timings = self._session.sync(tokens, adapter=adapter, scale=scale)
        return self._with_logits(tokens, adapter, scale, timings)

    def _with_logits(
        self, tokens: Sequence[int], adapter: str | None, scale: float, timings: Timings
    ) -> Timings:
        if not tokens or self._conversation.ready:
            return timings
        self._session.rewind(len(tokens) - 1)
        again = self._session.sync(tokens, adapter=adapter, scale=scale)
        return Timings(
            again.reused,
            timings.evaluated + again.evaluated,
            total=timings.total + again.total,
            reuse_note=timings.reuse_note or again.reuse_note,
        )

    def _read_keeping(self, tokens: Sequence[int], adapter: str | None, scale: float) -> Timings:
        """read() where every token's row is kept: the rows of reused cells are there already."""
        rows = self.rows
        spans = self._spans_of(tokens, adapter, scale)
        keep = min(self._conversation.cached.common_prefix(tokens, spans), len(rows))
        if keep == len(tokens) > 0 and not (keep == len(rows) and self._conversation.ready):
            keep -= 1  # as stock does: the last token is read again for its logits
        self._truncate(keep)
        return self._read_rows(tokens, adapter, scale, lambda _, new: rows.extend(new))

    def _spans_of(self, tokens: Sequence[int], adapter: str | None, scale: float) -> Spans:
        """Who is to compute `tokens`."""
        with self._model._runtime.bank.using(adapter, scale) as use:
            return spans_for(use.first_position(tokens, self._engine.vocab), use.provenance)

    def _truncate(self, n: int) -> None:
        """Keeps the first `n` cells and their tokens, or none where the memory cannot rewind."""
        session, conversation = self._session, self._conversation
        with session._sequence.lock:
            session.rewind(min(n, len(conversation.tokens)))
            left = conversation.cut(n)
            del conversation.tokens[left:]
            if self._rows is not None:
                del self._rows[left:]

    def _read_rows(
        self, tokens: Sequence[int], adapter: str | None, scale: float, each: OnRows
    ) -> Timings:
        """Appends what is missing of `tokens`, in batches of `chunk`, all of whose rows it hands
        over.
        """
        started = time.perf_counter()
        conversation, engine = self._conversation, self._engine
        with self._session._sequence.lock, self._model._runtime.bank.using(adapter, scale) as use:
            tokens = engine.vocab.check(tokens, "tokens")
            first = use.first_position(tokens, engine.vocab)
            spans = spans_for(first, use.provenance)
            have = len(conversation.cached)
            try:
                conversation.activate(use, first)
                for at in range(have, len(tokens), self._chunk):
                    part = tokens[at : at + self._chunk]
                    (rows,) = engine.decode([Run(conversation.seq, part, outputs="all")])
                    if rows is None:
                        raise DecodeError(f"{engine.path}: llama.cpp gave no logits")
                    conversation.extend(part, spans, rows[-1].copy())
                    each(at, rows)
            finally:
                conversation.deactivate()
        return Timings(have, len(tokens) - have, total=time.perf_counter() - started)

    # Generating ----------------------------------------------------------------------------------

    def start(self, adapter: str | None, scale: float) -> None:
        """From now on add() computes with `adapter`, as read() did for its invocation."""
        conversation = self._conversation
        with self._session._sequence.lock, self._model._runtime.bank.using(adapter, scale) as use:
            first = use.first_position(conversation.tokens, self._engine.vocab)
            self._spans = spans_for(first, use.provenance)
            conversation.activate(use, first)  # an active adapter cannot be unloaded

    def add(self, token: int) -> None:
        """Reads a sampled token."""
        self._conversation.advance(token, self._spans)
        if self._rows is not None:
            self._rows.append(self._session._sequence.last_logits().copy())

    def stop(self) -> None:
        """Ends what start() began; may be called by garbage collection, so it waits for nothing:
        settle() makes up for it.
        """
        self._session._sequence.deactivate_unless_busy()

    def settle(self) -> None:
        """Makes sure that no adapter is active."""
        self._conversation.deactivate()

    def usable(
        self, saved: SavedSession, tokens: Sequence[int], adapter: str | None, scale: float
    ) -> bool:
        """Whether `saved` holds more of `tokens`, as they are to be computed, than the cells do."""
        record = CachedTokens()
        record.extend(saved.tokens[: saved.n_cached], saved.spans)
        spans = self._spans_of(tokens, adapter, scale)
        ours = self._conversation.cached.common_prefix(tokens, spans)
        return record.common_prefix(tokens, spans) > ours

    # The rest ------------------------------------------------------------------------------------

    def cut(self, n: int) -> None:
        """Forgets all but the first `n` tokens."""
        self._session.rewind(n)
        if self._rows is not None:
            del self._rows[n:]

    def save(self) -> tuple[SavedSession, Logits | None]:
        """All that was read, and the rows [n_tokens, n_vocab] if they are kept.

        Raises InputError for a model whose window of attention has been exceeded: llama.cpp saves
        too little of it.
        """
        with self._session._sequence.lock:
            if self._conversation.tokens:
                _ = self.last  # reads what a call that failed has left unread
            # without the last logits: like stock, a restored state reads its last token again
            saved = replace(snapshot(self._model._runtime, self._conversation, {}), logits=b"")
            return saved, np.stack(self._rows) if self._rows else None

    def load(self, saved: SavedSession, rows: Logits | None) -> None:
        """Replaces everything by what save() gave. If it raises, nothing is held."""
        with self._session._sequence.lock:
            self._truncate(0)
            fill(self._conversation, saved)
            if self._rows is not None:
                self._rows[:] = [] if rows is None else list(rows)

    def close(self) -> None:
        """Gives the cells back."""
        self._session.close()
