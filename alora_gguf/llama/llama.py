"""The class: llama_cpp.Llama on a Runtime, so that its cells are reused by who computed them, and
every call can have an adapter.

Stock's constructor makes model and context, stock's methods make completions, chats and embeddings.
Ours are those that read, sample and save. Chats and completions are asked through them, so that a
subclass that overrides one is heard.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal

import numpy as np
from llama_cpp import Llama as Stock
from llama_cpp import _internals as internals
from llama_cpp.llama_grammar import LlamaGrammar

from alora_gguf.chat.contracts import Contracts
from alora_gguf.engine import native as _native
from alora_gguf.engine.batch import Logits, Run
from alora_gguf.engine.provenance import CachedTokens, Spans, spans_for
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import (
    AloraError,
    CacheFullError,
    ClosedError,
    DecodeError,
    InputError,
    ModelError,
    SavedSessionError,
)
from alora_gguf.generate.invoke import Verdict, run_invocations
from alora_gguf.generate.plan import Parent
from alora_gguf.generate.sampling import Chain, grammar_sampler, likeliest
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import ContextOptions, Invocation, Timings
from alora_gguf.saved.session_file import check_saved
from alora_gguf.saved.snapshot import fill, snapshot

from . import chat, completion
from .completion import Request
from .embedding import Embedder, fetch_model
from .settings import PROMPT_ROWS, check_sampling, checked, context_options, extends
from .state import LlamaState, settings_of_cells

_By = tuple[str | None, float, int | None]
"""An adapter's name, its scale, and the position that it computes from."""
_BASE: Final[_By] = (None, 1.0, None)


class Llama(Stock):
    """llama_cpp.Llama, on weights that several adapters share; docs/llama.md says what differs.

    From several threads, calls take turns; a call that reads ends a stream that is not over. Every
    method raises ClosedError after close(), and TypeError for a keyword it does not know.
    """

    _runtime: Runtime
    _sequence: TokenSequence
    _contracts: Contracts

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        adapters: Mapping[str, str | os.PathLike[str]] | None = None,
        **settings: Any,
    ) -> None:
        """Loads the model at `model_path`, and `adapters`, names mapped to files. `settings` are
        those of llama_cpp.Llama.

        Raises InputError for those that are not supported, ModelError, and AdapterError for the
        adapters.
        """
        self._lock = threading.RLock()
        self._request: Request | None = None  # of the completion that is being made
        self._by = _BASE  # who computes what is read
        self._chosen: _Sampler | None = None  # generate()'s, while it samples
        self._turn = 0  # counts what changes the cells
        self._embedder: Embedder | None = None
        self._last_timings = Timings()
        settings = checked(settings)
        options = context_options(settings)
        self._rows = options.n_batch if settings["logits_all"] else PROMPT_ROWS  # of a batch
        path, log = os.fspath(model_path), _native.load().log
        with log.capture(verbose=bool(settings["verbose"])):
            try:
                known = os.path.exists(path) and not settings["vocab_only"]  # noqa: PTH110 (any text)
                base = BaseFile.read(path) if known else None
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
        self._model.__class__ = _Model  # its tokenizers hold this very object
        vocab = Vocabulary(_native.load().llama, model, self.model_path)
        self._model._vocabulary = vocab  # type: ignore[attr-defined]
        if base is None:
            without = f"{self.model_path}: was opened with vocab_only=True, and has no weights"
            nothing: Any = _Nothing(InputError, without)
            self._runtime = self._sequence = self._contracts = nothing
            return
        self._runtime = runtime = Runtime(
            base, options, verbose=self.verbose, adopt=(model, self._ctx.ctx)
        )
        self._model._vocabulary = runtime.vocab  # type: ignore[attr-defined]
        self._contracts = Contracts(runtime.bank)
        # sequence 0 is left to those who decode on `ctx` themselves, as guidance does
        self._others = runtime.sequence()
        self._sequence = runtime.sequence()
        self._memory_end = runtime.engine.llama.llama_memory_seq_pos_max
        # stock's are as long as was asked for, which llama.cpp may round up
        self.input_ids = np.zeros(self._n_ctx, np.intc)
        n_rows = self._n_ctx if self._logits_all else 1
        self.scores = np.zeros((n_rows, self._n_vocab), np.single)
        runtime.bank.load(adapters)

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

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",  # noqa: ARG003 (see below)
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Opens a model of the Hugging Face Hub: `filename`, a name or a glob pattern that means
        one file of the repository, with `additional_files` (the other parts of a split model).

        `kwargs` are the constructor's. `local_dir_use_symlinks` has no effect: huggingface_hub no
        longer knows it. Raises InputError if a pattern does not mean exactly one file.
        """
        path = fetch_model(
            repo_id, filename, additional_files or (), local_dir=local_dir, cache_dir=cache_dir
        )
        return cls(path, **kwargs)

    # Adapters ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterFile]:
        """The loaded adapters by name, read-only."""
        return MappingProxyType(dict(self._runtime.bank))

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> AdapterFile:
        """Loads one more adapter under `name`. Raises AdapterFormatError, AdapterMismatchError, or
        AdapterInUseError if the name is taken.
        """
        self._runtime.check_open()
        self._runtime.bank.load({name: path})
        return self._runtime.bank[name]

    def unload_adapter(self, name: str) -> None:
        """Frees an adapter; a stream that is not over ends. Raises UnknownAdapterError."""
        with self._changing():
            self._runtime.bank.unload(name)
            self._contracts.forget(name)

    def load_contract(self, name: str, path: str | os.PathLike[str]) -> None:
        """Gives an adapter another contract (io.yaml) than the one in its file. Raises
        UnknownAdapterError, ContractError.
        """
        self._contracts.set(name, path)

    @property
    def last_timings(self) -> Timings:
        """Of the last completion that ended, in tokens and seconds."""
        return self._last_timings

    # Completions and chats -----------------------------------------------------------------------

    @extends(Stock.create_completion)
    def create_completion(
        self,
        options: dict[str, Any],
        *,
        adapter: str | None = None,
        adapter_scale: float = 1.0,
        intrinsic: str | None = None,
        intrinsic_arguments: Mapping[str, str] | None = None,
    ) -> Any:
        """Continues `prompt`, text or token ids, and returns OpenAI's completion object, or with
        `stream` an iterator of its chunks. `max_tokens` None or below 1 means as many as fit.

        With an `adapter`, the tokens from its invocation's last occurrence in the prompt on are
        computed with it at `adapter_scale` (a plain LoRA: all tokens). With `intrinsic` the text is
        what that intrinsic says after the prompt, as JSON. Raises InputError, CacheFullError,
        UnknownAdapterError, InvocationNotFoundError; ContractError and OutputError for intrinsics.
        """
        if intrinsic is not None:
            extra = chat.Extra(adapter, adapter_scale, None, {}, intrinsic, intrinsic_arguments)
            with self._lock:
                return chat.ask(self, options, _given(Stock.create_completion, options), extra)
        request = Request(self, adapter, adapter_scale)
        answers = self._create_completion(**options, request=request)
        return answers if options["stream"] else next(answers)

    @extends(Stock._create_completion)
    def _create_completion(
        self, options: dict[str, Any], *, request: Request | None = None
    ) -> Iterator[Any]:
        return completion.complete(self, options, request or Request(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """create_completion(), which a subclass may have overridden."""
        return self.create_completion(*args, **kwargs)

    __call__.__signature__ = inspect.signature(create_completion)  # type: ignore[attr-defined]

    @extends(Stock.create_chat_completion)
    def create_chat_completion(
        self,
        options: dict[str, Any],
        *,
        adapter: str | None = None,
        adapter_scale: float = 1.0,
        documents: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        intrinsic: str | None = None,
        intrinsic_arguments: Mapping[str, str] | None = None,
    ) -> Any:
        """Replies to `messages` and returns OpenAI's chat completion object, or with `stream` an
        iterator of its chunks.

        With an `adapter` whose invocation is not in the last turn, the invocation takes the place
        of the assistant's marker. `documents` and `chat_template_kwargs` go to the model's chat
        template. `intrinsic` names one to ask about the conversation instead. Raises as
        create_completion() does, and SchemaError for a response_format that cannot be.
        """
        extra = chat.Extra(
            adapter,
            adapter_scale,
            documents,
            chat_template_kwargs or {},
            intrinsic,
            intrinsic_arguments,
        )
        if intrinsic is None:
            return chat.complete(self, options, extra)
        with self._lock:
            return chat.ask(self, options, _given(Stock.create_chat_completion, options), extra)

    def embed(
        self,
        input: str | list[str],  # noqa: A002 (stock's name)
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """A vector [n_embd] for a text, or one per text of a list; where the model pools nothing
        (pooling_type() is 0), one per token in each place. With `return_count` also the tokens.

        Texts are cut to n_batch tokens with `truncate`, else longer ones raise ValueError. The
        first call makes a second context, with a KV cache of its own.
        """
        with self._lock:
            self._runtime.check_open()
            if not len(input):
                return ([], 0) if return_count else []
            if self._embedder is None:
                self._embedder = Embedder(self)
            seen: Any = self._embedder
            return Stock.embed(seen, input, normalize, truncate, return_count)

    # Reading -------------------------------------------------------------------------------------

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
        name, scale, first = self._by
        vocab, sequence = self._runtime.vocab, self._sequence
        with self._changing(), self._runtime.bank.using(name, scale) as use:
            new, spans = vocab.check(tokens, "tokens"), spans_for(first, use.provenance)
            before = self.n_tokens
            left = self._cut(min(before, _agreeing(sequence.cached, spans)))
            new = [*self.input_ids[left:before].tolist(), *new]  # what could not be kept
            self.n_tokens = left
            try:
                if new:
                    sequence.activate(use, first)
                self._read(new, spans)
            finally:
                if use.slot:
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
        if rows is None:
            raise DecodeError(f"{engine.path}: llama.cpp gave no logits")
        return rows

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
            yield

    @contextmanager
    def _computed_by(self, by: _By) -> Iterator[None]:
        before, self._by = self._by, by
        try:
            yield
        finally:
            self._by = before

    def _by_of_cells(self) -> _By:
        """Who computed the last cell."""
        start, by = self._sequence.cached.spans[-1]
        for name, file in self._runtime.bank.items():
            if by.identity is not None and file.identity == by.identity:
                return name, by.scale, start
        return _BASE

    def _reuse(self, tokens: list[int], by: _By, *, again: bool = False) -> str:
        """Makes `n_tokens` what the cells have of `tokens` as `by` is to compute them, but for the
        last one if its logits are not known. Returns why no more is there, or "". With `again`
        nothing is reused.
        """
        name, scale, first = by
        sequence = self._sequence
        with self._changing(), self._runtime.bank.using(name, scale) as use:
            keep = sequence.cached.common_prefix(tokens, spans_for(first, use.provenance))
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

    def _prompt_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt's tokens, with those that the vocabulary begins a text with."""
        if not isinstance(prompt, str):
            return self._runtime.vocab.check(prompt, "prompt")
        bos, ids = self.token_bos(), self.tokenize(prompt.encode(), add_bos=False, special=True)
        return [bos, *ids] if self._model.add_bos_token() and bos != -1 else ids

    def _invoke(self, tokens: Sequence[int], invocation: Invocation) -> Verdict:
        """Reads `tokens` as the base does, and asks on a fork."""
        self._reuse(list(tokens), _BASE)
        self.eval(tokens[self.n_tokens :])
        cells = self._sequence
        parent = Parent(cells.seq, cells.cached, tuple(cells.tokens), cells.logits)
        return run_invocations(self._runtime, parent, [invocation], None, None)[0]

    # Sampling ------------------------------------------------------------------------------------

    @extends(Stock._init_sampler)
    def _init_sampler(self, options: dict[str, Any]) -> _Sampler:
        check_sampling(options)
        return _Sampler(
            super()._init_sampler, options, self._runtime.vocab, self.last_n_tokens_size
        )

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
            with self._computed_by(self._by_of_cells()):
                self.eval(self.input_ids[n - 1 : n].tolist())
        return sequence.last_logits()

    @extends(Stock.generate)
    def generate(
        self, options: dict[str, Any], *, adapter: str | None = None, adapter_scale: float = 1.0
    ) -> Iterator[int]:
        """Samples tokens to follow `tokens` without end, and reads each when the next one is asked
        for. Without `reset`, `tokens` follow what was read. What is sent to the generator is
        ignored: it would be a guess at what comes, and never changes what comes.
        """
        request = self._request or Request(self, adapter, adapter_scale)
        return self._generate(options, request, inside=self._request is not None)

    def _generate(
        self, options: dict[str, Any], request: Request, *, inside: bool
    ) -> Iterator[int]:
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
            by = self._first(tokens, request)
            request.prompt = tokens
            if request.found is not None:
                self._load_found(request.found, tokens, by)
            again = request.scores_prompt and not self._logits_all
            note = self._reuse(tokens, by, again=again)
            reused = self.n_tokens
            timings = Timings(reused, len(tokens) - reused, reuse_note=note)
            turn = self._turn
        new, first, sampled = tokens[reused:], 0.0, 0
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
                request.note(token, row)
                yield token
                new = [token]
        finally:
            total = time.perf_counter() - started
            self._last_timings = replace(
                timings, generated=sampled, first_token=first or None, total=total
            )

    def _first(self, tokens: list[int], request: Request) -> _By:
        """Who is to compute `tokens`."""
        with self._runtime.bank.using(request.adapter, request.scale) as use:
            first = use.first_position(tokens, self._runtime.vocab)
        return request.adapter, request.scale, first

    def _step(
        self,
        new: Sequence[int],
        by: _By,
        sampler: _Sampler,
        options: dict[str, Any],
        request: Request,
    ) -> tuple[int, Logits]:
        """Reads `new` and chooses what follows, through methods that a subclass may override."""
        before, self._request = self._request, request
        try:
            with self._computed_by(by):
                self.eval(new)
            if request.scores_prompt and not request.prompt_scored:
                request.score_prompt(0, self.scores[: self.n_tokens])
            self._chosen = sampler
            row = self._row(None)
            return self.sample(idx=self.n_tokens - 1, **options), row
        finally:
            self._chosen, self._request = None, before

    # State ---------------------------------------------------------------------------------------

    def save_state(self) -> LlamaState:
        """What was read, with its cells and who computed them.

        Raises InputError for a model whose window of attention has been exceeded: llama.cpp saves
        too little of it; what a completion leaves in a cache is empty then.
        """
        with self._lock:
            self._runtime.check_open()
            if len(self._sequence.cached) != self.n_tokens:
                with self._computed_by(self._by_of_cells()):
                    self.eval([])
            try:
                saved = snapshot(self._runtime, self._sequence, {})
            except InputError:
                if self._request is None:
                    raise
                saved = snapshot(self._runtime, self._others, {})
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
            self._cut(0)
            self.n_tokens = 0
            fill(self._sequence, state.saved)
            self.input_ids[: state.n_tokens] = state.input_ids
            self.scores[: len(state.scores)] = state.scores
            self.n_tokens, self._seed = state.n_tokens, state.seed

    def _load_found(self, state: Any, tokens: list[int], by: _By) -> None:
        """Loads a state of a cache if it has more of `tokens` than the cells."""
        try:
            self._check(state)
        except (InputError, SavedSessionError):
            return
        saved, theirs = state.saved, CachedTokens()
        theirs.extend(saved.tokens[: saved.n_cached], saved.spans)
        name, scale, first = by
        with self._runtime.bank.using(name, scale) as use:
            spans = spans_for(first, use.provenance)
        ours = self._sequence.cached.common_prefix(tokens, spans)
        if theirs.common_prefix(tokens, spans) > ours:
            request, self._request, seed = self._request, None, self._seed
            try:
                Llama.load_state(self, state)
            finally:
                self._request, self._seed = request, seed

    def _check(self, state: Any) -> None:
        if not isinstance(state, LlamaState):
            raise InputError(f"expected a state of save_state(), got {type(state).__name__}")
        runtime = self._runtime
        check_saved(
            state.saved,
            base=runtime.fingerprint,
            cache=runtime.layout,
            adapters_loaded={name: file.identity for name, file in runtime.bank.items()},
            n_vocab=self._n_vocab,
        )
        if state.settings != self._settings():
            raise SavedSessionError(
                f"the state was saved with other settings of the context: {state.settings}, but "
                f"this model has {self._settings()}"
            )
        if self._logits_all and len(state.scores) < state.n_tokens:
            raise SavedSessionError("the state was saved without logits_all=True")

    def _settings(self) -> str:
        return settings_of_cells(self.context_params, self.kv_overrides)

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments: what is unpickled opens the model again."""
        adapters = {name: file.path for name, file in self.adapters.items()}
        settings: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**settings, "adapters": adapters}

    # Its life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything; idempotent."""
        if not hasattr(self, "_stack"):  # stock's constructor did not come this far
            return
        with self._lock:
            if isinstance(getattr(self, "_runtime", None), Runtime):
                self._runtime.close()
            super().close()
            closed: Any = _Nothing(ClosedError, f"{self.model_path}: the model was closed")
            self._model = self._ctx = self.tokenizer_ = closed

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _given(theirs: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not left at their defaults."""
    known = inspect.signature(theirs).parameters
    return {
        name: value
        for name, value in options.items()
        if known[name].default is inspect.Parameter.empty or value != known[name].default
    }


def _agreeing(record: CachedTokens, spans: Spans) -> int:
    """How many leading cells were computed as `spans` say."""
    n = len(record)
    if record.spans == tuple(span for span in spans if span[0] < max(n, 1)):
        return n
    return record.common_prefix(record.tokens, spans)


class _Model(internals.LlamaModel):
    """Stock's model; its texts of tokens are whole (stock drops those of more than 32 bytes)."""

    _vocabulary: Vocabulary

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        vocab = self._vocabulary
        text = b"".join(vocab.piece(t, special=special) for t in vocab.check(tokens, "tokens"))
        # some vocabularies put a space behind a leading beginning-of-sequence token
        leading = text[:1] == b" " and tokens[0] == self.token_bos()
        return text[1:] if leading else text


class _Sampler:
    """Stock's sampler chain over rows of logits, and logits processors whose errors are heard."""

    def __init__(
        self,
        init: Callable[..., internals.LlamaSampler],
        options: dict[str, Any],
        vocab: Vocabulary,
        last_n: int,
    ) -> None:
        self._processors = tuple(options.pop("logits_processor") or ())
        grammar = options["grammar"]
        if grammar is not None:
            if not isinstance(grammar, LlamaGrammar):
                raise InputError(f"grammar must be a LlamaGrammar, got {type(grammar).__name__}")
            llama = _native.load().llama  # stock would add a grammar that is not valid as null
            llama.llama_sampler_free(grammar_sampler(llama, grammar._grammar, vocab))
        plain = last_n == 0 or (
            options["repeat_penalty"] == 1
            and options["frequency_penalty"] == options["presence_penalty"] == 0
        )
        self._stock = self._chain = None
        if options["temp"] != 0 or grammar is not None or not plain:
            self._stock = init(**options)  # frees the chain when it goes
            self._chain = Chain(_native.load().llama, self._stock.sampler, vocab.n_tokens)

    def choose(self, logits: Logits, read: Any) -> int:
        """A token from a row of logits [n_vocab] after the tokens `read`."""
        row = logits
        for processor in self._processors:
            row = np.asarray(processor(read, row.copy() if row is logits else row), np.float32)
            if row.shape != logits.shape:
                raise InputError(
                    f"a logits processor returned shape {row.shape}, expected {logits.shape}"
                )
        best = likeliest(row)
        return best if self._chain is None else self._chain.sample(row)


class _Nothing:
    """Takes the place of what is freed, or was never there."""

    def __init__(self, kind: type[AloraError], message: str) -> None:
        self._kind, self._message = kind, message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._kind(self._message)
