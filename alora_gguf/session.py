"""One conversation as a program sees it: what it can be told and asked, one call at a time."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .engine.bank import Use
from .engine.batch import Logits
from .options import CancelToken
from .options import check_int
from .engine.sequence import Conversation
from .engine.scheduler import Progress
from .errors import ClosedError, InputError
from .generate.generation import Generation
from .generate.invoke import Invocation, Verdict, run_invocations
from .generate.plan import Parent
from .engine.provenance import BASE, Spans, spans_for
from .generate.sampling import Sampler, Sampling
from .saved.session_file import write_saved
from .generate.text_stream import check_stops
from .options import Timings

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

    def __init__(self, model: Model, *, conversation: Conversation | None = None) -> None:
        self._model = model
        self._engine = model.engine
        self._lock = threading.RLock()
        self._conversation = conversation or Conversation(model)
        self._generation: weakref.ref[Generation] | None = None
        model.register(self)

    # The conversation ----------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it was made by."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """The conversation's token ids, a copy."""
        return self._conversation.tokens.copy()

    @property
    def text(self) -> str:
        """The conversation's text, control tokens included."""
        return self._engine.vocab.detokenize(self._conversation.tokens, special=True)

    @property
    def cached(self) -> int:
        """How many of the conversation's tokens the KV cache holds."""
        return len(self._conversation.record)

    @property
    def provenance(self) -> Spans:
        """Who computed the cached tokens: (first position, provenance) pairs in order."""
        return self._conversation.record.spans

    def state(self) -> bytes:
        """The conversation's cells as llama.cpp saves them, to compare one moment with another."""
        with self.lock:
            self._begin(writes=False)
            return self._engine.state(self._conversation.seq)

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
            tokens = self._conversation.tokens + self._encode(text)
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
        with self.lock, self._model.using(adapter, scale) as use:
            self._begin()
            ids = self._engine.vocab.check(tokens, "tokens")
            return self._read(ids, use, started, cancel, progress)

    def rewind(self, n: int) -> None:
        """Forgets all but the first `n` tokens."""
        with self.lock:
            self._begin()
            conversation = self._conversation
            conversation.forget(check_int(n, "n", 0, len(conversation.tokens)))

    def fork(self) -> Session:
        """A second conversation that goes on from here; the cells up to here are shared."""
        with self.lock:
            self._begin(writes=False)
            conversation = Conversation(self._model, source=self._conversation)
            return Session(self._model, conversation=conversation)

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
        with self.lock, self._model.using(adapter, scale) as use:
            self._begin()
            conversation, vocab = self._conversation, self._engine.vocab
            before = conversation.tokens
            tokens = before if prompt is None else vocab.check(prompt, "prompt")
            if not tokens:
                raise InputError("the conversation is empty; append something to it first")
            options = sampling or Sampling()
            sampler = Sampler(options, vocab, schema=schema, top_logprobs=logprobs)
            first = use.first_position(tokens, vocab)
            read = conversation.read(tokens, use, logits=True, cancel=cancel, progress=progress)
            try:
                generation = Generation(
                    self,
                    sampler,
                    stops=stops,
                    max_tokens=max_tokens,
                    spans=spans_for(first, use.provenance),
                    prefill=read,
                    started=started,
                    cancel=cancel,
                )
                self._generation = weakref.ref(generation)
                conversation.activate(use, first)
            except BaseException:
                self._end_live_generation()
                conversation.go_back(before)
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
        with self.lock:
            self._begin(writes=False)
            mine = self._conversation
            lags = len(mine.record) < len(mine.tokens)
            if lags and mine.record.spans == spans_for(None, BASE):
                # a call failed before: read the rest once, not once per fork
                with self._model.using(None, 1.0) as base:
                    mine.read(mine.tokens, base, cancel=cancel)
            parent = Parent(mine.seq, mine.record, tuple(mine.tokens), mine.logits)
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
            saved = self._conversation.to_save(notes or {})
        write_saved(path, saved)

    # The life of a session -----------------------------------------------------------------------

    def close(self) -> None:
        """Ends it; its cells stay for others that begin like it, while nobody needs their room. A
        second call does nothing.
        """
        with self.lock:
            self._end_live_generation()
            self._conversation.close()

    @property
    def closed(self) -> bool:
        """Whether the session or its model was closed."""
        return self._conversation.closed

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
        self._conversation.begin()
        if writes:
            self._end_live_generation()

    def _end_live_generation(self) -> None:
        if self._generation is None:
            return
        generation, self._generation = self._generation(), None
        if generation is not None:
            generation.close()
        self._conversation.deactivate()  # its own end may have found a lock taken

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        vocab = self._engine.vocab
        if not isinstance(text, str):
            return vocab.check(text, "tokens")
        if not self._conversation.tokens:
            return vocab.tokenize_start(text) if text else []
        return vocab.tokenize(text, add_special=False, parse_special=True)

    def _read(
        self,
        tokens: list[int],
        use: Use,
        started: float,
        cancel: CancelToken | None,
        progress: Progress | None,
    ) -> Timings:
        read = self._conversation.read(tokens, use, cancel=cancel, progress=progress)
        return replace(read, total=time.perf_counter() - started)

    # What others need; not part of the public API ------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Held by every call. Who takes the engine's locks too takes this one first. Not part of
        the public API.
        """
        return self._lock

    @property
    def conversation(self) -> Conversation:
        """Its tokens and cells, for those who hold `lock`. Not part of the public API."""
        return self._conversation

    def lay_by(self, n: int) -> None:
        """Lets others have the room of all cells but the first `n`, should they need it; the
        conversation stays as it is. Not part of the public API.
        """
        with self.lock:
            self._begin()
            self._conversation.lay_by(n)

    @contextmanager
    def lent(self) -> Iterator[Conversation | None]:
        """Its tokens and cells, for another conversation to share; None if it is closed or another
        thread is using it. Not part of the public API.
        """
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            yield None if self.closed else self._conversation
        finally:
            self._lock.release()

    def deactivate_unless_busy(self) -> None:
        """For a generation that garbage collection ends, perhaps amid something else: blocks on
        nothing. What it cannot do now, the session's next call does. Not part of the public API.
        """
        if self._lock.acquire(blocking=False):
            try:
                if self._engine.lock.acquire(blocking=False):
                    try:
                        self._conversation.deactivate()
                    finally:
                        self._engine.lock.release()
            finally:
                self._lock.release()

    def last_logits(self) -> Logits:
        """The logits after the last token, [n_vocab]. Not part of the public API."""
        if self.closed:
            raise ClosedError("the session or its model was closed during a generation")
        logits = self._conversation.logits
        if logits is None:
            raise InputError("the conversation has changed during a generation")
        return logits

    def end_generation(self, generation: Generation) -> None:
        """Ends its adapter's activation. Not part of the public API."""
        self._conversation.deactivate()
        if self._generation is not None and self._generation() is generation:
            self._generation = None
