"""llama_cpp.Llama's context under a Runtime: what reads, samples and saves. Completions are stock's
and completion.py's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from llama_cpp import Llama as Stock
from llama_cpp.llama_tokenizer import LlamaTokenizer

from alora_gguf._calls import check_text, uninterrupted
from alora_gguf.chat.asking import Contracts
from alora_gguf.chat.limits import bounded_templates
from alora_gguf.chat.prompt import present
from alora_gguf.engine import native as _native
from alora_gguf.engine.activation import Activations, Combination, Places
from alora_gguf.engine.embedding import Embedder
from alora_gguf.engine.llama_context import LlamaContext, Logits, Run
from alora_gguf.engine.loading import check_load
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.tokens import CachedTokens, Spans, Vocabulary
from alora_gguf.engine.trial import try_to_load
from alora_gguf.errors import (
    CacheFullError,
    ClosedError,
    InputError,
    ModelError,
    SavedSessionError,
)
from alora_gguf.gguf.adapter import Begins
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import AdapterLike, Attention, ContextOptions, FrozenDict, Timings
from alora_gguf.saved.snapshot import fill, snapshot

from .request import Request
from .settings import PROMPT_ROWS, check_sampling, checked, context_options, extends
from .stock import LlamaState, Model, Nothing, Sampler, settings_of_cells

BASE: Final = Activations()


@uninterrupted
class Reader(Stock):
    """Everything of Llama that touches the cells."""

    _runtime: Runtime
    _sequence: TokenSequence
    _contracts: Contracts

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        special_tokens_in_text: bool = False,
        attention: Attention = "auto",
        **settings: Any,
    ) -> None:
        """Loads the model at `model_path`, and `adapters`, names mapped to files. `settings` are
        those of llama_cpp.Llama. Control tokens that a chat's messages quote are what they look
        like; with `special_tokens_in_text` they are control tokens, as in llama_cpp. `attention` is
        ContextOptions', and acts with `flash_attn=True`.

        Raises InputError for those that are not supported, ModelError, and AdapterError for the
        adapters.
        """
        self._lock = threading.RLock()
        self._special_tokens_in_text = special_tokens_in_text
        self._request: Request | None = None  # of the completion that is being made
        self._by = BASE  # who computes what is read
        self._held = ExitStack()  # what keeps the adapters of a stream loaded
        self._chosen: Sampler | None = None  # generate()'s, while it samples
        self._turn = 0  # counts what changes the cells
        self._embedder: Embedder | None = None
        self._conversation: tuple[list[Any], datetime] = [], present()  # the latest, since when
        self._last_timings = Timings()
        self._attention = attention
        settings = checked(settings)
        options = replace(context_options(settings), attention=attention)
        self._rows = options.n_batch if settings["logits_all"] else PROMPT_ROWS  # of a batch
        path, log = os.fspath(model_path), _native.load().log
        check_text(path, "model_path")
        with log.capture(verbose=bool(settings["verbose"])):
            try:
                there, base = os.path.exists(path), None  # noqa: PTH110 (any text)
                if there and settings["vocab_only"]:
                    try_to_load([Path(path)], vocab_only=True)
                elif there:
                    base = BaseFile.read(path, settings["kv_overrides"])
                    check_load(base, options)
                with bounded_templates():
                    super().__init__(path, **settings)
            except ValueError as error:
                if str(error).startswith("Model path does not exist"):
                    raise InputError(str(error)) from None
                if str(error).startswith("Failed to"):
                    raise ModelError(f"{path}: {error}{log.tail()}") from error
                raise
        try:
            self._open(base, options, adapters or {})
        except BaseException:
            self.close()
            raise

    def _open(
        self, base: BaseFile | None, options: ContextOptions, adapters: Mapping[str, Any]
    ) -> None:
        """Puts a Runtime on stock's context."""
        model = self._model.model
        self._model.__class__ = Model  # its tokenizers hold this very object
        vocab = Vocabulary(_native.load(), model, self.model_path)
        self._model._vocabulary = vocab  # type: ignore[attr-defined]
        if base is None:
            without = f"{self.model_path}: was opened with vocab_only=True, and has no weights"
            nothing: Any = Nothing(InputError, without)
            self._runtime = self._sequence = self._contracts = nothing
            return
        adopt = model, self._ctx.ctx
        context = LlamaContext(base.path, options, verbose=self.verbose, adopt=adopt)
        self._runtime = runtime = Runtime(base, context)
        self._model._vocabulary = runtime.vocab  # type: ignore[attr-defined]
        self._contracts = Contracts(runtime.bank.find)
        # sequence 0 is left to those who decode on `ctx` themselves, as guidance does
        self._others = TokenSequence(runtime.engine)
        self._sequence = TokenSequence(runtime.engine)
        self._memory_end = runtime.engine.llama.llama_memory_seq_pos_max
        # stock's are as long as was asked for, which llama.cpp may round up
        self.input_ids = np.zeros(self._n_ctx, np.intc)
        n_rows = self._n_ctx if self._logits_all else 1
        self.scores = np.zeros((n_rows, self._n_vocab), np.single)
        self._contracts.check(runtime.bank.load(adapters))

    @property
    def context_params(self) -> Any:
        """llama.cpp's parameters of the context."""
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        """Stock's constructor fills them in from here on, and makes the context of them."""
        params.n_seq_max = 18
        params.kv_unified = True  # sequences share cells only in a unified cache
        params.swa_full = True  # and need cells that a sliding window drops
        params.n_outputs_max = max(self._rows, params.n_seq_max)  # more would take much memory
        self._context_params = params

    # Reading -------------------------------------------------------------------------------------

    def _check_fits(self, text: str) -> None:
        """Raises for a prompt with more tokens than the context has, as stock does once it has
        split it into tokens, which may take minutes.
        """
        vocab = self._model._vocabulary  # type: ignore[attr-defined]
        if type(self.tokenizer_) is LlamaTokenizer and vocab.too_long(text):
            n = self._n_ctx
            raise InputError(f"Requested tokens (more than {n}) exceed context window of {n}")

    def reset(self) -> None:
        """Forgets what was read."""
        with self._changing():
            self._cut(0)
            self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Reads `tokens` behind the first `n_tokens` that were read. They are the base's, and so
        are all before them, except amid a completion with an adapter.

        Raises CacheFullError, DecodeError.
        """
        self._eval(tokens, self._by)

    def _eval(self, tokens: Sequence[int], by: Activations) -> None:
        vocab, sequence = self._runtime.vocab, self._sequence
        with self._changing():
            new, spans = vocab.check(tokens, "tokens"), by.spans
            before = self.n_tokens
            left = self._cut(min(before, _agreeing(sequence.cached, spans)))
            new = [*self.input_ids[left:before].tolist(), *new]  # what could not be kept
            self.n_tokens = left
            try:
                if new:
                    sequence.activate(by)
                self._read(new, spans)
            finally:
                if by.stages:
                    sequence.deactivate()

    def _read(self, tokens: Sequence[int], spans: Spans) -> None:
        request = self._request if self._request and self._request.scores_prompt else None
        all_rows = self._logits_all or request is not None
        step = min(self.n_batch, self._rows) if all_rows else self.n_batch
        for at in range(0, len(tokens), step):
            part, n = tokens[at : at + step], self.n_tokens
            rows = self._decode(Run(self._sequence.seq, part, "all" if all_rows else "last"))
            self._sequence.extend(part, spans, rows[-1].copy() if all_rows else rows)
            self.input_ids[n : n + len(part)] = part
            if self._logits_all:
                self.scores[n : n + len(part)] = rows
            if request is not None and not self._logits_all:
                request.score_prompt(n, rows)
            self.n_tokens += len(part)

    def _decode(self, run: Run) -> Logits:
        engine = self._runtime.engine
        try:
            (rows,) = engine.decode([run])
        except CacheFullError:
            # cells of those who decode on `ctx` themselves are nobody's here
            if not self._ctx.kv_cache_seq_rm(self._others.seq, -1, -1):
                raise
            (rows,) = engine.decode([run])
        return cast(Logits, rows)  # as asked for

    def _cut(self, n: int) -> int:
        """Keeps the first `n` cells, or fewer where the memory cannot rewind; returns how many."""
        left = min(n, len(self._sequence.cached))
        if left < len(self._sequence.cached):
            left = self._sequence.cut(n)
        del self._sequence.tokens[left:]
        return left

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """For calls that change what was read: a stream that is not over ends."""
        with self._lock, self._sequence.lock:
            self._sequence.begin()
            # guidance removes cells of all sequences, ours among them
            left = self._memory_end(self._ctx.memory, self._sequence.seq) + 1
            if left < len(self._sequence.cached):
                self._cut(left)
            self._turn += 1
            if self._by is BASE:  # not a stream's own step
                self._release(self._held)
            yield

    def _release(self, held: ExitStack) -> None:
        """A stream's adapters need not be loaded any more; idempotent, and blocks on no call."""
        with suppress(IndexError):  # of two threads at once, one finds it empty
            held.close()

    @contextmanager
    def _by_of_cells(self) -> Iterator[Activations]:
        """Who computed the last cell, and where that began; keeps them loaded meanwhile."""
        bank, spans = self._runtime.bank, self._sequence.cached.spans
        loaded = bank.loaded().items()
        files = {f.identity: (n, f) for n, f in loaded if not isinstance(f, Combination)}
        last = dict(spans[-1][1].acting)
        if not last or not last.keys() <= files.keys():
            yield BASE
            return
        begun = dict[Begins, int]()
        for start, by in reversed(spans):
            here = [identity for identity, _ in by.acting if identity in last]
            if not here:
                break
            begun.update({files[identity][1].begins: start for identity in here})
        scales = FrozenDict({files[identity][0]: scale for identity, scale in last.items()})
        with bank.using(scales, 1.0) as use:
            yield use.at(Places(begun.get("invocation"), begun.get("reply")))

    def _reuse(
        self, tokens: list[int], by: Activations, *, found: Any = None, again: bool = False
    ) -> str:
        """Makes `n_tokens` what the cells have of `tokens` as `by` is to compute them, but for the
        last one if its logits are not known; or what the state `found` in a cache has, if that is
        more. Returns why no more is there, or "". With `again` nothing is reused.
        """
        sequence, spans = self._sequence, by.spans
        with self._changing():
            keep = sequence.cached.common_prefix(tokens, spans)
            if found is not None:
                with suppress(InputError, SavedSessionError):
                    self._check(found)
                    if found.common_prefix(tokens, spans) > keep:
                        self._fill(found)
                        keep = sequence.cached.common_prefix(tokens, spans)
            note = sequence._note(tokens, keep)
            if keep == len(tokens) and (keep < len(sequence.cached) or sequence.logits is None):
                keep -= 1
            keep = 0 if again else keep
            left = self._cut(keep)
            if left < keep:
                note = "this model's memory cannot rewind, so everything was read again"
            self.n_tokens = left
            self.input_ids[:left] = tokens[:left]
            return note

    # Sampling ------------------------------------------------------------------------------------

    @extends(Stock._init_sampler)
    def _init_sampler(self, options: dict[str, Any]) -> Sampler:
        check_sampling(options)
        return Sampler(super()._init_sampler, options, self._runtime.vocab, self.last_n_tokens_size)

    @extends(Stock.sample)
    def sample(self, options: dict[str, Any]) -> int:
        """Chooses a token to follow those that were read, or the first `idx` + 1 of them, which
        needs logits_all. Outside generate(), every call makes a new sampler of the options and the
        seed.
        """
        idx = options.pop("idx")
        with self._lock:
            row = self._row(idx)
            sampler = self._chosen or self._init_sampler(**options)
            token: int = sampler.choose(row, self._input_ids)
            return token

    def _row(self, idx: int | None) -> Logits:
        """The logits after the token at `idx` (None: the last), [n_vocab]."""
        self._runtime.check_open()
        n, sequence = self.n_tokens, self._sequence
        if not n:
            raise InputError("nothing has been read yet, so there is nothing to sample from")
        if idx is not None and idx != n - 1:
            if not self._logits_all or not 0 <= idx < n:
                raise InputError(f"idx must be {n - 1} without logits_all=True, got {idx!r}")
            row: Logits = self.scores[idx]
            return row
        if len(sequence.cached) != n or sequence.logits is None:  # cut back to here
            self.n_tokens = n - 1
            with self._by_of_cells() as by:
                self._eval(self.input_ids[n - 1 : n].tolist(), by)
        return sequence.last_logits()

    @extends(Stock.generate)
    def generate(
        self,
        options: dict[str, Any],
        *,
        adapter: AdapterLike | None = None,
        adapter_scale: float = 1.0,
    ) -> Iterator[int]:
        """Samples tokens to follow `tokens` without end, and reads each when the next one is asked
        for. Without `reset`, `tokens` follow what was read. What is sent to the generator is
        ignored: it would be a guess at what comes, and never changes what comes.
        """
        inside = self._request is not None  # a completion
        request = self._request or Request(self, self._runtime.vocab, adapter, adapter_scale)
        started = time.perf_counter()
        tokens = self._runtime.vocab.check(options.pop("tokens"), "tokens")
        criteria = options.pop("stopping_criteria")
        with self._lock:
            if not options.pop("reset"):
                tokens = [*self._input_ids.tolist(), *tokens]
            if not tokens:
                raise InputError(
                    "the prompt is empty, and this vocabulary has no token to begin with"
                )
            sampler = self._init_sampler(**options)
            request.prompt = tokens
            again = request.scores_prompt and not self._logits_all
            with ExitStack() as using:
                bank, adapter = self._runtime.bank, request.adapter
                use = using.enter_context(bank.using(adapter, request.scale))
                by = use.over(tokens, self._runtime.vocab)
                note = self._reuse(tokens, by, found=request.found, again=again)
                held = self._held = using.pop_all()
            timings = Timings(self.n_tokens, len(tokens) - self.n_tokens, reuse_note=note)
            turn = self._turn
        new, first, sampled = tokens[timings.reused :], 0.0, 0
        try:
            while True:
                with self._lock:
                    if turn != self._turn or self.n_tokens != len(tokens) - len(new) + sampled:
                        raise InputError("this stream was ended by another call on the same Llama")
                    # within a character, whose end stock waits for
                    most = self._n_ctx if inside and sampled else self._n_ctx + 1
                    request.full = inside and self.n_tokens + len(new) >= most
                    if not request.full:
                        token, row = self._step(new, by, sampler, options, request)
                    turn = self._turn
                if request.full:
                    yield self._token_eos
                    return
                first = first or time.perf_counter() - started
                if criteria is not None and criteria(self._input_ids, row):
                    return
                sampled += 1
                if inside:
                    request.note(token, row)
                yield token
                new = [token]
        finally:
            self._release(held)
            total = time.perf_counter() - started
            self._last_timings = replace(
                timings, generated=sampled, first_token=first or None, total=total
            )

    def _step(
        self,
        new: Sequence[int],
        by: Activations,
        sampler: Sampler,
        options: dict[str, Any],
        request: Request,
    ) -> tuple[int, Logits]:
        """Reads `new` and chooses what follows, through methods that a subclass may override."""
        before, self._request, self._by = self._request, request, by
        try:
            self.eval(new)
            if request.scores_prompt and not request.prompt_scored:
                request.score_prompt(0, self.scores[: self.n_tokens])
            self._chosen = sampler
            token = self.sample(idx=self.n_tokens - 1, **options)
            return token, self._sequence.last_logits()
        finally:
            self._chosen, self._request, self._by = None, before, BASE

    # State ---------------------------------------------------------------------------------------

    def save_state(self) -> LlamaState:
        """What was read, with its cells and who computed them."""
        with self._lock:
            self._runtime.check_open()
            if len(self._sequence.cached) != self.n_tokens:
                with self._by_of_cells() as by:
                    self._eval([], by)
            saved = snapshot(self._runtime, self._sequence, {})
            n_rows = len(saved.tokens) if self._logits_all else 0
            scores = self.scores[:n_rows].copy()
            return LlamaState(saved, self._seed, self._settings(), scores)

    def load_state(self, state: Any) -> None:
        """Goes on from a saved state. Raises SavedSessionError, and leaves everything as it was, if
        it was saved with another base or other settings, or holds cells of an adapter that is not
        loaded with the same weights; CacheFullError.

        A completion that finds one in a cache passes over it in such a case, and if it would save
        it nothing.
        """
        if self._request is not None:
            self._request.found = state  # generate() knows what it would save
            return
        with self._changing():
            self._check(state)
            self._fill(state)
            self._seed = state.seed

    def _check(self, state: Any) -> None:
        if not isinstance(state, LlamaState):
            raise InputError(f"expected a state of save_state(), got {type(state).__name__}")
        state.check(self._runtime, self._settings(), logits_all=self._logits_all)

    def _fill(self, state: LlamaState) -> None:
        self._cut(0)
        self.n_tokens = 0
        fill(self._sequence, state.saved)
        self.input_ids[: state.n_tokens] = state.input_ids
        self.scores[: len(state.scores)] = state.scores
        self.n_tokens = state.n_tokens

    def _settings(self) -> str:
        return settings_of_cells(self.context_params, self.kv_overrides)

    # Its life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything; idempotent."""
        if not hasattr(self, "_stack"):  # stock's constructor did not come this far
            return
        with self._lock:
            if isinstance(getattr(self, "_runtime", None), Runtime):
                self._runtime.close()
            super().close()
            closed: Any = Nothing(ClosedError, f"{self.model_path}: the model was closed")
            self._model = self._ctx = self.tokenizer_ = closed


def _agreeing(record: CachedTokens, spans: Spans) -> int:
    """How many leading cells were computed as `spans` say."""
    n = len(record)
    if record.spans == tuple(span for span in spans if span[0] < max(n, 1)):
        return n
    return record.common_prefix(record.tokens, spans)
