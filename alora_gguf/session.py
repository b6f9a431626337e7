"""One conversation as a program sees it: what it can be told and asked, one call at a time."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .engine.bank import ActiveAdapter
from .engine.provenance import BASE, Spans, spans_for
from .engine.runtime import Runtime
from .engine.sequence import TokenSequence
from .errors import InputError
from .generate.generation import Generation
from .generate.invoke import Verdict, run_invocations
from .generate.plan import Invocation, Parent
from .generate.sampling import Sampler, Sampling
from .generate.text_stream import check_stops
from .options import CancelToken, Progress, Timings, check_int
from .saved.session_file import write_saved
from .saved.snapshot import snapshot

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

    def __init__(
        self, model: Model, runtime: Runtime, *, sequence: TokenSequence | None = None
    ) -> None:
        """Use Model.session()."""
        self._model = model
        self._runtime = runtime
        self._engine = runtime.engine
        self._sequence = sequence or runtime.sequence()
        self._generation: weakref.ref[Generation] | None = None
        runtime.prefix_cache.register(self._sequence)

    # The conversation ----------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it was made by."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """The conversation's token ids, a copy."""
        return self._sequence.tokens.copy()

    @property
    def text(self) -> str:
        """The conversation's text, control tokens included."""
        return self._engine.vocab.detokenize(self._sequence.tokens, special=True)

    @property
    def cached(self) -> int:
        """How many of the conversation's tokens the KV cache holds."""
        return len(self._sequence.cached)

    @property
    def provenance(self) -> Spans:
        """Who computed the cached tokens: (first position, provenance) pairs in order."""
        return self._sequence.cached.spans

    def state(self) -> bytes:
        """The conversation's cells as llama.cpp saves them, to compare one moment with another."""
        with self._sequence.lock:
            self._begin(writes=False)
            return self._engine.state(self._sequence.seq)

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
        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            tokens = self._sequence.tokens + self._encode(text)
            return self._read(tokens, use, started, cancel, progress)

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
        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            ids = self._engine.vocab.check(tokens, "tokens")
            return self._read(ids, use, started, cancel, progress)

    def rewind(self, n: int) -> None:
        """Forgets all but the first `n` tokens."""
        with self._sequence.lock:
            self._begin()
            sequence = self._sequence
            sequence.forget(check_int(n, "n", 0, len(sequence.tokens)))

    def fork(self) -> Session:
        """A second conversation that goes on from here; the cells up to here are shared."""
        with self._sequence.lock:
            self._begin(writes=False)
            return Session(self._model, self._runtime, sequence=self._sequence.fork())

    def generate(
        self,
        *,
        prompt: Sequence[int] | None = None,
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

        Returns an iterator of its text; `generate(...).read()` gives the whole. With a `prompt`
        (token ids) the conversation becomes exactly that first, as sync() makes it. With an
        `adapter` as for append(). With a JSON `schema` the reply is JSON that matches it; with
        `logprobs` the log-probabilities of its tokens are kept, and of so many alternatives.
        `cancel` raises here, and later ends the reply where it is. Raises as append() does,
        InputError if there is nothing to reply to, and SchemaError.
        """
        started = time.perf_counter()
        stops = check_stops(stop)
        check_int(max_tokens, "max_tokens", 1)
        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            sequence, vocab = self._sequence, self._engine.vocab
            before = sequence.tokens
            tokens = before if prompt is None else vocab.check(prompt, "prompt")
            if not tokens:
                raise InputError("the conversation is empty; append something to it first")
            options = sampling or Sampling()
            sampler = Sampler(options, vocab, schema=schema, top_logprobs=logprobs)
            first = use.first_position(tokens, vocab)
            read = sequence.read(tokens, use, logits=True, cancel=cancel, progress=progress)
            try:
                generation = Generation(
                    sequence,
                    sampler,
                    stops=stops,
                    max_tokens=max_tokens,
                    spans=spans_for(first, use.provenance),
                    prefill=read,
                    started=started,
                    cancel=cancel,
                )
                self._generation = weakref.ref(generation)
                sequence.activate(use, first)
            except BaseException:
                self._end_live_generation()
                sequence.go_back(before)
                raise
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
        with self._sequence.lock:
            self._begin(writes=False)
            mine = self._sequence
            lags = len(mine.cached) < len(mine.tokens)
            if lags and mine.cached.spans == spans_for(None, BASE):
                # a call failed before: read the rest once, not once per fork
                with self._runtime.bank.using(None, 1.0) as base:
                    mine.read(mine.tokens, base, cancel=cancel)
            parent = Parent(mine.seq, mine.cached, tuple(mine.tokens), mine.logits)
            return run_invocations(self._runtime, parent, invocations, on_text, cancel)

    # Saving --------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, notes: Mapping[str, Any] | None = None) -> None:
        """Writes the conversation, its cells and their provenance to a file, for
        Model.restore_session(); `notes` (what JSON can hold) go with it. An existing file is
        replaced at the very end, or stays as it is.

        Raises SavedSessionError if it cannot be written, InputError for the notes or for a model
        whose window of attention has been exceeded: llama.cpp saves too little of it.
        """
        with self._sequence.lock:
            self._begin(writes=False)
            saved = snapshot(self._runtime, self._sequence, notes or {})
        write_saved(path, saved)

    # The life of a session -----------------------------------------------------------------------

    def close(self) -> None:
        """Ends it; its cells stay for others that begin like it, while nobody needs their room. A
        second call does nothing.
        """
        with self._sequence.lock:
            self._end_live_generation()
            self._sequence.close()

    @property
    def closed(self) -> bool:
        """Whether the session or its model was closed."""
        return self._sequence.closed

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
        """Every call starts here: makes sure that there is something to work on, and that no
        generation is surprised by what the call `writes`.
        """
        self._sequence.begin()
        if writes:
            self._end_live_generation()

    def _end_live_generation(self) -> None:
        if self._generation is None:
            return
        generation, self._generation = self._generation(), None
        if generation is not None:
            generation.close()
        self._sequence.deactivate()  # its own end may have found a lock taken

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        vocab = self._engine.vocab
        if not isinstance(text, str):
            return vocab.check(text, "tokens")
        if not self._sequence.tokens:
            return vocab.tokenize_start(text) if text else []
        return vocab.tokenize(text, add_special=False, parse_special=True)

    def _read(
        self,
        tokens: list[int],
        use: ActiveAdapter,
        started: float,
        cancel: CancelToken | None,
        progress: Progress | None,
    ) -> Timings:
        read = self._sequence.read(tokens, use, cancel=cancel, progress=progress)
        return replace(read, total=time.perf_counter() - started)

    def release_tail(self, n: int) -> None:
        """Lets others have the room of all cells but the first `n`, should they need it; the
        conversation stays as it is.
        """
        with self._sequence.lock:
            self._begin()
            self._sequence.release_tail(n)

    def _go_back(self, tokens: list[int]) -> None:
        """Makes the conversation `tokens` again, and keeps what the cells have of them."""
        with self._sequence.lock:
            if not self.closed:
                self._sequence.go_back(tokens)
