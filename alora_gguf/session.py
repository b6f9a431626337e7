"""One conversation as a program sees it: what it can be told and asked, one call at a time."""

from __future__ import annotations

import codecs
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ._calls import checked, uninterrupted
from .engine.activation import ActiveAdapter
from .engine.cache_report import CacheSpan, named
from .engine.llama_context import Logits
from .engine.runtime import Runtime
from .engine.sequence import TokenSequence
from .engine.tokens import BASE, Spans, spans_for
from .errors import InputError
from .generate.calls import CallRules
from .generate.generation import Generation
from .generate.invoke import Verdict, run_invocations
from .generate.plan import Parent
from .generate.sampling import SampledReply, token_logprob
from .options import (
    MAX_LOGPROBS,
    AdapterLike,
    CancelToken,
    GenerateOptions,
    Invocation,
    Progress,
    Timings,
    TokenLogprob,
    changed,
    check_int,
    reply_options,
)
from .saved.session_file import write_saved
from .saved.snapshot import snapshot

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .model import Model
    from .options import GenerateFields

_G = TypeVar("_G", bound=Generation)


@uninterrupted
@checked
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
        """Model.session() calls it."""
        self._model = model
        self._runtime = runtime
        self._engine = runtime.engine
        self._sequence = sequence or TokenSequence(runtime.engine)
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
        # a memory that cannot rewind may hold more
        return min(len(self._sequence.cached), len(self._sequence.tokens))

    @property
    def provenance(self) -> Spans:
        """Who computed the cached tokens: (first position, provenance) pairs in order."""
        return self._sequence.cached.copy(self.cached).spans

    @property
    def spans(self) -> tuple[CacheSpan, ...]:
        """The same with the adapters' names, as in Model.cache_report()."""
        return named(self.provenance, self.cached, self._runtime.names())

    def state(self) -> bytes:
        """The conversation's cells as llama.cpp saves them, to compare one moment with another."""
        with self._sequence.lock:
            self._begin(writes=False)
            return self._engine.state(self._sequence.seq)

    def append(
        self,
        text: str | Sequence[int],
        *,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Adds text (control tokens in it are recognized; a first text gets the model's
        beginning-of-sequence token) or token ids, and reads them.

        With an `adapter` (a name, or several mapped to scales), the tokens from its invocation's
        last occurrence on are computed with it (a plain LoRA: all tokens; a vector: the last one,
        which a reply is to follow). Without one, all are the base's: cells that an adapter computed
        earlier are read again. Raises InvocationNotFoundError, UnknownAdapterError, InputError.
        """

        def tokens() -> list[int]:
            before = self._sequence.tokens
            return before + self._engine.vocab.encode(text, "tokens", begins=not before)

        return self._read(tokens, adapter, scale, cancel, progress)

    def sync(
        self,
        tokens: Sequence[int],
        *,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Makes the conversation exactly `tokens`, reading only what the cache does not hold."""
        check = self._engine.vocab.check
        return self._read(lambda: check(tokens, "tokens"), adapter, scale, cancel, progress)

    def score(
        self,
        tokens: Sequence[int],
        *,
        first: int = 1,
        logprobs: int = 0,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[TokenLogprob]:
        """Makes the conversation exactly `tokens`, as sync() does, and tells how likely each was
        after those before it, with so many alternatives (`logprobs`): of the tokens from position
        `first` on, as nothing comes before the one at 0. What is before that is reused; the rest is
        read anew, since the cache has no probabilities. A vector acts on what is scored, from the
        token before the first of it on. Raises InputError for no tokens.
        """
        vocab = self._engine.vocab
        check_int(logprobs, "logprobs", 0, MAX_LOGPROBS)
        decoder, found = codecs.getincrementaldecoder("utf-8")("replace"), list[TokenLogprob]()

        def take(position: int, row: Logits) -> None:
            text = decoder.decode(vocab.piece(read[position]))
            found.append(token_logprob(read[position], text, row, logprobs, vocab))

        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            read = vocab.check(tokens, "tokens")
            if not read:
                raise InputError("there are no tokens to score")
            check_int(first, "first", 1, len(read))
            self._sequence.read_rows(read, first, use, take, cancel=cancel, progress=progress)
        return found

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
            other = TokenSequence(self._engine, self._sequence)
            return Session(self._model, self._runtime, sequence=other)

    def generate(
        self,
        options: GenerateOptions | None = None,
        *,
        prompt: Sequence[int] | None = None,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
        **changes: Unpack[GenerateFields],
    ) -> Generation:
        """Starts a reply to the conversation, which is read first if need be.

        Returns an iterator of its text; `generate(...).read()` gives the whole. With a `prompt`
        (token ids) the conversation becomes exactly that first, as sync() makes it. Fields of
        GenerateOptions and Sampling can be given as keywords, which win over `options`; an
        `adapter` is used as by append(). `cancel` raises here, and later ends the reply where it
        is. Raises InvocationNotFoundError, UnknownAdapterError, SchemaError, and InputError for
        wrong options or if there is nothing to reply to.
        """
        how = reply_options(options, changes, "Session.generate()")
        return self._generate(Generation, how, prompt, cancel, progress)

    def _generate(
        self,
        kind: type[_G],
        how: GenerateOptions,
        prompt: Sequence[int] | None,
        cancel: CancelToken | None,
        progress: Progress | None,
        calls: CallRules | None = None,
        beginning: Sequence[int] = (),
    ) -> _G:
        started = time.perf_counter()
        with self._sequence.lock, self._runtime.bank.using(how.adapter, how.scale) as use:
            if use.classifier is not None:
                raise InputError(
                    f"adapter {use.label} is a classifier, which writes no replies: it is asked, "
                    "with invoke()"
                )
            self._begin()
            sequence, vocab = self._sequence, self._engine.vocab
            before = sequence.tokens
            tokens = before if prompt is None else vocab.check(prompt, "prompt")
            if not tokens:
                raise InputError("the conversation is empty; append something to it first")
            reply = SampledReply(how, vocab, started, calls)
            activations = use.over(tokens, vocab)
            read = self._prefill(tokens, use, beginning, cancel, progress, logits=True)
            try:
                generation = kind(sequence, reply, activations.spans, read, cancel)
                self._generation = weakref.ref(generation)
                sequence.activate(activations)
            except BaseException:
                self._end_live_generation()
                sequence.go_back(before)
                raise
            return generation

    def invoke(
        self,
        invocation: AdapterLike | Invocation | None,
        suffix: str | Sequence[int] | None = None,
        *,
        on_text: Callable[[int, str], None] | None = None,
        cancel: CancelToken | None = None,
        **changes: Unpack[GenerateFields],
    ) -> Verdict:
        """Asks one adapter about the conversation, by an Invocation or by its name (or several,
        mapped to scales; None: the base model) and a `suffix`; fields of GenerateOptions and
        Sampling can be given as keywords. See invoke_many().
        """
        if isinstance(invocation, Invocation):
            if suffix is not None:
                raise InputError("a suffix goes into the Invocation or beside a name, not both")
        else:
            invocation = Invocation(invocation, suffix)
        asked = changed(invocation, changes, "Session.invoke()")
        return self.invoke_many([asked], on_text=on_text, cancel=cancel)[0]

    def invoke_many(
        self,
        invocations: Sequence[AdapterLike | Invocation | None],
        *,
        on_text: Callable[[int, str], None] | None = None,
        on_verdict: Callable[[int, Verdict], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Verdict]:
        """Asks several adapters (by name, or as Invocations) at once, each on a fork that is then
        dropped: the conversation and its cells stay as they are, even during a generation.

        All suffixes are read in one batch, and all replies grow by a token per step in one batch;
        what several suffixes begin with alike is read once, before.
        When there are more than the free sequences or cells allow, they take turns, in order.
        `on_text(index, piece)` is called with each piece of text as it becomes certain,
        `on_verdict(index, verdict)` as soon as one is over.

        Returns one Verdict per invocation, in order. Raises InvocationNotFoundError,
        UnknownAdapterError, InputError before anything is read, CacheFullError if not even one
        fits.
        """
        asked = [_as_invocation(each) for each in invocations]
        with self._sequence.lock:
            self._begin(writes=False)
            mine = self._sequence
            lags = len(mine.cached) < len(mine.tokens)
            if lags and mine.cached.spans == spans_for(None, BASE):
                # a call failed before: read the rest once, not once per fork
                with self._runtime.bank.using(None, 1.0) as base:
                    mine.prefill(mine.tokens, base, cancel=cancel)
            parent = Parent(mine.seq, mine.cached, tuple(mine.tokens), mine.logits)
            return run_invocations(self._runtime, parent, asked, on_text, cancel, on_verdict)

    # Saving --------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, notes: Mapping[str, Any] | None = None) -> None:
        """Writes the conversation, its cells and their provenance to a file, for
        Model.restore_session(); `notes` (what JSON can hold) go with it. An existing file is
        replaced at the very end, or stays as it is.

        Raises SavedSessionError if it cannot be written, InputError for the notes.
        """
        with self._sequence.lock:
            self._begin(writes=False)
            saved = snapshot(self._runtime, self._sequence, notes or {})
        write_saved(path, saved)

    # The life of a session -----------------------------------------------------------------------

    def close(self) -> None:
        """Ends it; its cells stay for others that begin like it, while nobody needs their room.
        Idempotent.
        """
        with self._sequence.lock:
            self._end_live_generation()
            self._sequence.close()

    @property
    def closed(self) -> bool:
        """Whether the session or its model was closed."""
        return self._sequence.closed

    def __repr__(self) -> str:
        if self.closed:
            return "<Session: closed>"
        return f"<Session: {len(self._sequence.tokens)} tokens, {self.cached} cached>"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
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
            Generation.close(generation)  # a chat's Reply would take the chat's lock first
        self._sequence.deactivate()  # its own end may have found a lock taken

    def _read(
        self,
        tokens: Callable[[], list[int]],
        adapter: AdapterLike | None,
        scale: float,
        cancel: CancelToken | None,
        progress: Progress | None,
        beginning: Sequence[int] = (),
    ) -> Timings:
        """With a `beginning` of the tokens, what the model's prompt cache has of it is not read."""
        started = time.perf_counter()
        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            read = self._prefill(tokens(), use, beginning, cancel, progress)
            return replace(read, total=time.perf_counter() - started)

    def _prefill(
        self,
        tokens: list[int],
        use: ActiveAdapter,
        beginning: Sequence[int],
        cancel: CancelToken | None,
        progress: Progress | None,
        *,
        logits: bool = False,
    ) -> Timings:
        sequence = self._sequence
        if not beginning:
            return sequence.prefill(tokens, use, logits=logits, cancel=cancel, progress=progress)
        before, rest = sequence.tokens, max(0, len(tokens) - len(beginning))
        begun = Timings()

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(begun.evaluated + done, begun.evaluated + total)

        try:
            begun = self._recall(beginning, cancel, lambda done, n: told(done, n + rest))
            read = sequence.prefill(tokens, use, logits=logits, cancel=cancel, progress=told)
        except BaseException:
            sequence.go_back(before)
            raise
        return begun.then(read)

    def _recall(
        self, beginning: Sequence[int], cancel: CancelToken | None, progress: Progress | None
    ) -> Timings:
        """Sees to it that there are cells of this beginning: where there are none, it is made the
        conversation, out of the model's prompt cache or for it. Raises CacheFullError and
        CancelledError, and leaves the conversation as it was then.
        """
        cache, sequence = self._model._prompt_cache, self._sequence
        if cache is None:
            return Timings()
        with sequence.lock, self._runtime.bank.using(None, 1.0) as base:
            self._begin()
            before = sequence.tokens
            try:
                return cache.recall(
                    self._runtime, sequence, list(beginning), base, cancel, progress
                )
            except BaseException:
                sequence.go_back(before)
                raise

    def reserve(
        self,
        n: int,
        *,
        prompt: Sequence[int] | None = None,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
    ) -> None:
        """Promises the conversation the cells that it needs to become `prompt` (token ids; None:
        what it is), read by an `adapter` if one is given, and to grow by `n` tokens more. So what
        follows never finds the cache full half-way, however many conversations there are.

        Waits while others, who have reserved cells too, are to give theirs back, unless this thread
        has such itself; raises CacheFullError when nobody is, CancelledError. What is asked about
        the conversation on forks uses the promise too, so add what that needs. The promise ends
        with close() or release().
        """
        check_int(n, "n", 0)
        vocab = self._engine.vocab
        with self._sequence.lock, self._runtime.bank.using(adapter, scale) as use:
            self._begin()
            tokens = self._sequence.tokens if prompt is None else vocab.check(prompt, "prompt")
            self._sequence.reserve(tokens, use, n, cancel)

    def release(self, n: int) -> None:
        """Lets others have the room of all cells but the first `n`, should they need it, and of
        those that were reserved; the conversation stays as it is, and what gave way is read again
        when it is needed.
        """
        with self._sequence.lock:
            self._begin()
            self._sequence.release_tail(check_int(n, "n", 0))

    def _go_back(self, tokens: list[int]) -> None:
        """Makes the conversation `tokens` again, and keeps what the cells have of them."""
        with self._sequence.lock:
            if not self.closed:
                self._sequence.go_back(tokens)


def _as_invocation(value: object) -> Invocation:
    if isinstance(value, Invocation):
        return value
    if value is None or isinstance(value, (str, Mapping)):
        return Invocation(value)
    raise InputError(
        "expected an adapter's name, names mapped to scales, None or an Invocation, got "
        f"{value!r:.80}"
    )
