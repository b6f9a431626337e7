"""One conversation: its tokens, the cells that hold them, and what it can be asked."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from .bank import Use
from .batch import Logits, Run
from .cancel import CancelToken
from .checks import check_int
from .decoding import Progress
from .errors import CacheFullError, ClosedError, DecodeError, InputError, SavedSessionError
from .generation import Generation
from .invoke import Invocation, Verdict, run_invocations
from .planning import Parent
from .pool import MIN_GAIN, usable
from .provenance import BASE, CachedTokens, Spans, spans_for
from .sampling import Sampler, Sampling
from .saved import SavedAdapter, SavedSession, write_saved
from .text import check_stops
from .timings import Timings

if TYPE_CHECKING:
    from .model import Model


class Session:
    """A conversation on a Model; made by Model.session().

    `tokens` is the conversation. Its cells hold as much of it as could be kept: after a call that
    failed they may hold less, and the next call reads the rest. What can be reused is decided by
    provenance alone: equal (token, adapter identity, scale); also of other sessions' cells, open
    ones and those that were closed lately.

    Every method raises ClosedError once the session or its model is closed, CacheFullError when the
    KV cache has no room, CancelledError when its `cancel` was cancelled, and leaves the
    conversation as it was when it raises. `progress` is called, while a long text is read, with the
    tokens read so far and all there are to read.
    """

    def __init__(self, model: Model, *, _source: Session | None = None) -> None:
        self._model = model
        self._engine = engine = model.engine
        self._lock = threading.RLock()
        if _source is None:
            self._seq = engine.allocate()
            self._cached, self._tokens = CachedTokens(), list[int]()
            self._logits: Logits | None = None
        else:
            n = len(_source._cached)
            self._seq = engine.fork(_source._seq, n)
            self._cached, self._tokens = _source._cached.copy(n), _source._tokens.copy()
            self._logits = _source._logits
        self._generation: weakref.ref[Generation] | None = None
        self._finalizer = weakref.finalize(self, engine.abandon, self._seq)
        self._finalizer.atexit = False
        model.register(self)

    # The conversation ----------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it was made by."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """The conversation's token ids, a copy."""
        return self._tokens.copy()

    @property
    def text(self) -> str:
        """The conversation's text, control tokens included."""
        return self._engine.vocab.detokenize(self._tokens, special=True)

    @property
    def cached(self) -> int:
        """How many of the conversation's tokens the KV cache holds."""
        return len(self._cached)

    @property
    def provenance(self) -> Spans:
        """Who computed the cached tokens: (first position, provenance) pairs in order."""
        return self._cached.spans

    def state(self) -> bytes:
        """The conversation's cells as llama.cpp saves them, to compare one moment with another."""
        with self.lock:
            self._begin(writes=False)
            return self._engine.state(self._seq)

    def append(
        self,
        text: str | Sequence[int],
        *,
        adapter: str | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Adds text (control tokens in it are recognized; a first text gets the model's
        beginning-of-sequence token) or token ids, and reads them.

        With an `adapter`, the tokens from its invocation's last occurrence on are computed with it
        (a plain LoRA: all tokens). Without one, all are the base's: cells that an adapter computed
        earlier are read again. Raises InvocationNotFoundError, UnknownAdapterError, InputError.
        """
        started = time.perf_counter()
        with self.lock, self._model.using(adapter, scale) as use:
            self._begin()
            tokens = self._tokens + self._encode(text)
            return self._timed_read(tokens, use, started, cancel, progress)

    def sync(
        self,
        tokens: Sequence[int],
        *,
        adapter: str | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Makes the conversation exactly `tokens`, reading only what the cache does not hold."""
        started = time.perf_counter()
        with self.lock, self._model.using(adapter, scale) as use:
            self._begin()
            ids = self._engine.vocab.check(tokens, "tokens")
            return self._timed_read(ids, use, started, cancel, progress)

    def rewind(self, n: int) -> None:
        """Forgets all but the first `n` tokens."""
        with self.lock:
            self._begin()
            self.forget(check_int(n, "n", 0, len(self._tokens)))

    def fork(self) -> Session:
        """A second conversation that goes on from here; the cells up to here are shared."""
        with self.lock:
            self._begin(writes=False)
            return Session(self._model, _source=self)

    def generate(
        self,
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        adapter: str | None = None,
        scale: float = 1.0,
        schema: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Generation:
        """Starts a reply to the conversation, which is read first if need be.

        Returns an iterator of its text; `generate(...).read()` gives the whole. With an `adapter`
        as for append(). With a JSON `schema` the reply is JSON that matches it; with `logprobs`
        the log-probabilities of its tokens are kept, and of so many alternatives. `cancel` raises
        here, and later ends the reply where it is. Raises as append() does, InputError if there is
        nothing to reply to, and SchemaError.
        """
        started = time.perf_counter()
        stops = check_stops(stop)
        check_int(max_tokens, "max_tokens", 1)
        with self.lock, self._model.using(adapter, scale) as use:
            self._begin()
            if not self._tokens:
                raise InputError("the conversation is empty; append something to it first")
            vocab = self._engine.vocab
            options = sampling or Sampling()
            sampler = Sampler(options, vocab, schema=schema, top_logprobs=logprobs)
            reused, evaluated, note = self._read(self._tokens, use, True, cancel, progress)
            first = use.first_position(self._tokens, self._engine.vocab)
            generation = Generation(
                self,
                sampler,
                stops=stops,
                max_tokens=max_tokens,
                spans=spans_for(first, use.provenance),
                prefill=Timings(reused, evaluated, 0, None, 0.0, note),
                started=started,
                cancel=cancel,
            )
            if use.slot and first is not None:
                self._engine.activate(self._seq, first, use.slot, use.scale)
            self._generation = weakref.ref(generation)
            return generation

    def invoke(
        self,
        invocation: Invocation,
        *,
        on_text: Callable[[int, str], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> Verdict:
        """Asks one adapter about the conversation; see invoke_many()."""
        return self.invoke_many([invocation], on_text=on_text, cancel=cancel)[0]

    def invoke_many(
        self,
        invocations: Sequence[Invocation],
        *,
        on_text: Callable[[int, str], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Verdict]:
        """Asks several adapters about the conversation at once, each on a fork of it, which is then
        dropped: the conversation and its cells stay as they are, even amid a generation.

        All suffixes are read in one batch, and all replies grow by a token per step in one batch.
        When there are more than the free sequences or cells allow, they take turns, in order.
        `on_text(index, piece)` is called with each piece of text as it becomes certain.

        Returns one Verdict per invocation, in order. Raises InvocationNotFoundError,
        UnknownAdapterError, InputError before anything is read, CacheFullError if not even one
        fits.
        """
        with self.lock:
            self._begin(writes=False)
            lags = len(self._cached) < len(self._tokens)
            if lags and self._cached.spans == spans_for(None, BASE):
                # a call failed before: read the rest once, not once per fork
                with self._model.using(None, 1.0) as base:
                    self._read(self._tokens, base, False, cancel)
            parent = Parent(self._seq, self._cached, tuple(self._tokens), self._logits)
            return run_invocations(self._model, parent, invocations, on_text, cancel)

    # Saving --------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, notes: Mapping[str, Any] | None = None) -> None:
        """Writes the conversation, its cells and their provenance to a file, for
        Model.restore_session(); `notes` (what JSON can hold) go with it. An existing file is
        replaced at the very end, or stays as it is.

        Raises SavedSessionError if it cannot be written, InputError for the notes or for a model
        whose window of attention has been exceeded: llama.cpp saves too little of it.
        """
        with self.lock:
            self._begin(writes=False)
            saved = self._to_save(notes or {})
        write_saved(path, saved)

    def _to_save(self, notes: Mapping[str, Any]) -> SavedSession:
        window = self._engine.window
        if 0 < window < self.cached:
            raise InputError(
                f"{self._engine.path}: attends to a window of {window} tokens, and the "
                f"conversation has {self.cached}: only shorter ones can be saved"
            )
        # a memory that cannot rewind may hold more than the conversation
        n = self.cached if self.cached <= len(self._tokens) else 0
        spans = self._cached.spans if n else spans_for(None, BASE)
        names = {file.identity: name for name, file in self._model.adapters.items()}
        identities = dict.fromkeys(by.identity for _, by in spans if by.identity is not None)
        whole = n and n == len(self._tokens) and self._logits is not None
        return SavedSession(
            tokens=tuple(self._tokens),
            spans=spans,
            state=self._engine.state(self._seq) if n else b"",
            n_cached=n,
            base=self._model.fingerprint,
            adapters=tuple(SavedAdapter(each, names.get(each)) for each in identities),
            cache=self._model.layout,
            logits=self._logits.tobytes() if whole and self._logits is not None else b"",
            notes=notes,
        )

    def load(self, saved: SavedSession) -> None:
        """Takes over what was saved and checked. Not part of the public API."""
        with self.lock:
            if saved.n_cached:
                try:
                    self._engine.set_state(self._seq, saved.state, saved.n_cached)
                except CacheFullError:
                    raise
                except DecodeError as error:
                    raise SavedSessionError(
                        f"{saved.origin}: {error}; open the model as it was when the session was "
                        "saved, or read the conversation again"
                    ) from error
                self._cached.extend(saved.tokens[: saved.n_cached], saved.spans)
            self._tokens = list(saved.tokens)
            if saved.logits:
                self._logits = np.frombuffer(saved.logits, "<f4").copy()

    # The life of a session -----------------------------------------------------------------------

    def close(self) -> None:
        """Ends it; its cells stay for others that begin like it, while nobody needs their room. A
        second call does nothing.
        """
        with self.lock:
            self._end_live_generation()
            if self._finalizer.detach() and not self._engine.closed:
                self._engine.deactivate(self._seq)
                self._model.pool.give(self._seq, self._cached)

    @property
    def closed(self) -> bool:
        """Whether the session or its model was closed."""
        return not self._finalizer.alive or self._engine.closed

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, *, writes: bool = True) -> None:
        """Every call starts here: makes sure that there is something to work on, that no generation
        is surprised by what the call `writes`, and that books and record agree.
        """
        if not self._finalizer.alive:
            raise ClosedError("the session was closed")
        _ = self._engine.ctx  # raises ClosedError after the model's close()
        if writes:
            self._end_live_generation()
        # an interrupt may have struck between the two; what both have is certain
        n = min(len(self._cached), self._engine.books.length(self._seq))
        if n < len(self._cached) or n < self._engine.books.length(self._seq):
            self._cut(n)

    def _end_live_generation(self) -> None:
        if self._generation is None:
            return
        generation, self._generation = self._generation(), None
        if generation is not None:
            generation.close()
        self._engine.deactivate(self._seq)  # its own end may have found a lock taken

    # What Generation needs -----------------------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Held by every call. Who takes the engine's locks too takes this one first."""
        return self._lock

    def deactivate_unless_busy(self) -> None:
        """For a generation that garbage collection ends, perhaps amid something else: blocks on
        nothing. What it cannot do now, the session's next call does.
        """
        if self._lock.acquire(blocking=False):
            try:
                if self._engine.lock.acquire(blocking=False):
                    try:
                        self._engine.deactivate(self._seq)
                    finally:
                        self._engine.lock.release()
            finally:
                self._lock.release()

    def last_logits(self) -> Logits:
        """The logits after the last token, [n_vocab]."""
        if self._engine.closed or not self._finalizer.alive:
            raise ClosedError("the session or its model was closed during a generation")
        if self._logits is None:
            raise InputError("the conversation has changed during a generation")
        return self._logits

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a reply."""
        return self._engine.vocab.is_end(token)

    def piece(self, token: int) -> bytes:
        """The bytes of `token`; none for a control token."""
        return self._engine.vocab.piece(token)

    def advance(self, token: int, spans: Spans, cancel: CancelToken | None = None) -> None:
        """Adds a generated token and reads it; its adapter is active already."""
        n, before = len(self._cached), self._logits
        try:
            (logits,) = self._engine.decode([Run(self._seq, [token])], cancel=cancel)
            self._cached.extend([token], spans)
            self._tokens.append(token)
            self._logits = logits
        except BaseException:
            self._cut(n)
            self._logits = before if self.cached == n else None
            del self._tokens[n:]
            raise

    def forget(self, n: int) -> None:
        """Takes the tokens from position `n` on out of the conversation."""
        del self._tokens[n:]
        # a memory that cannot rewind keeps its cells until it is known what comes next
        if self._engine.rewinds and n < len(self._cached):
            self._cut(n)

    def end_generation(self, generation: Generation) -> None:
        """Ends its adapter's activation."""
        if self._finalizer.alive:
            self._engine.deactivate(self._seq)
        if self._generation is not None and self._generation() is generation:
            self._generation = None

    # Reading -------------------------------------------------------------------------------------

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        vocab = self._engine.vocab
        if not isinstance(text, str):
            return vocab.check(text, "tokens")
        if not self._tokens:
            return vocab.tokenize_start(text) if text else []
        return vocab.tokenize(text, add_special=False, parse_special=True)

    def _timed_read(
        self,
        tokens: list[int],
        use: Use,
        started: float,
        cancel: CancelToken | None,
        progress: Progress | None,
    ) -> Timings:
        reused, evaluated, note = self._read(tokens, use, False, cancel, progress)
        return Timings(reused, evaluated, 0, None, time.perf_counter() - started, note)

    def _read(
        self,
        tokens: list[int],
        use: Use,
        logits: bool,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> tuple[int, int, str]:
        """Makes the cells hold `tokens` as `use` computes them, and `tokens` the conversation.

        Returns (reused, evaluated, why not more was reused). With `logits`, those after the last
        token are there afterwards.
        """
        engine = self._engine
        first = use.first_position(tokens, engine.vocab)
        spans = spans_for(first, use.provenance)
        keep = self._cached.common_prefix(tokens, spans)
        note = self._note(tokens, keep)
        shared = self._share_with_others(tokens, spans, keep)
        if shared:
            keep, note = shared, f"{shared} tokens are shared with another conversation"
        if keep == len(tokens) and logits and (self._logits is None or keep < len(self._cached)):
            keep -= 1  # the last token is read again for its logits
        if keep < len(self._cached):
            engine.require_room(len(tokens) - keep, freed=engine.books.freed_by(self._seq, keep))
            if self._cut(keep) < keep:
                keep = 0
                note = "this model's memory cannot rewind, so everything was read again"
        old, before = self._tokens, self._logits  # None if anything was cut
        rest = tokens[keep:]
        try:
            if rest:
                if use.slot and first is not None:
                    engine.activate(self._seq, first, use.slot, use.scale)
                run = Run(self._seq, rest)
                (self._logits,) = engine.decode([run], cancel=cancel, progress=progress)
                self._cached.extend(rest, spans)
            self._tokens = list(tokens)
        except BaseException:
            self._tokens = old
            self._cut(keep)
            self._logits = before if self.cached == keep else None
            raise
        finally:
            engine.deactivate(self._seq)
        return keep, len(rest), note

    def _share_with_others(self, tokens: list[int], spans: Spans, keep: int) -> int:
        """Where another conversation, open or over, has clearly more of `tokens` in its cells than
        the first `keep`, shares those in place of our own; returns how many, or 0.
        """
        if len(tokens) < keep + MIN_GAIN:
            return 0
        engine, pool = self._engine, self._model.pool
        enough = keep + MIN_GAIN
        but_last = tokens[:-1]  # which is read for its logits
        with pool.longest(but_last, spans) as (pooled, most):
            for other in self._model.live_sessions():
                if other is self or not other._lock.acquire(blocking=False):
                    continue
                try:
                    n = usable(engine, other._cached, but_last, spans)
                    if n >= max(enough, most) and not other.closed:
                        return self._adopt(other._seq, other._cached, n)
                finally:
                    other._lock.release()
            if pooled is None or most < enough:
                return 0
            pool.used(pooled)
            return self._adopt(pooled.seq, pooled.record, most)

    def _adopt(self, seq: int, record: CachedTokens, n: int) -> int:
        if self._engine.books.length(seq) < len(record):
            return 0  # an interrupt struck there; it is put right at its next call
        self._logits = None
        self._cached.truncate(0)
        self._engine.adopt(self._seq, seq, n)
        self._cached = record.copy(n)
        return n

    def _cut(self, n: int) -> int:
        """Keeps the first `n` cells, or fewer where the memory cannot rewind; returns how many."""
        if n < len(self._cached):
            self._logits = None
        self._cached.truncate(n)
        left = self._engine.truncate(self._seq, n)
        self._cached.truncate(left)
        return left

    def _note(self, tokens: list[int], keep: int) -> str:
        if keep >= min(len(self._cached), len(tokens)):
            return ""
        if self._cached.tokens[keep] != tokens[keep]:
            return f"the conversation differs from the cached one at token {keep}"
        by = self._cached.at(keep)
        who = "the base" if by == BASE else f"an adapter at scale {by.scale:g}"
        return f"tokens from {keep} on were in the cache, but computed by {who}"
