"""What a Llama is before completions: a Model, tokens and text, and tokens read one at a time."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer

from alora_gguf.errors import InputError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.options import Timings

from . import opening
from .cells import Cells, OnRows
from .options import (
    DEFAULT_SEED,
    CompletionOptions,
    GenerateOptions,
    LogitsRow,
    SampleOptions,
    Settings,
    TokenIds,
    sampling_of,
    takes,
)
from .sampling import Chain
from .stream import TokenStream
from .vocabulary import StockVocabulary

_Item = TypeVar("_Item")


class Reader:
    """llama_cpp.Llama's properties, its tokenizer and its low-level methods; Llama has the rest."""

    def __init__(self, settings: Settings) -> None:
        """Opens the model. Raises as Llama() does."""
        self._settings = settings
        self._lock = threading.RLock()
        self._live: weakref.ref[TokenStream] | None = None
        self._last_timings = Timings()
        self._seed = settings.seed or DEFAULT_SEED
        self._runtime = opening.open_model(settings)
        engine, options = self._runtime._runtime.engine, self._runtime._runtime.engine.options
        self._model = StockVocabulary(engine)
        self._cells = Cells(
            self._runtime, keep_rows=settings.logits_all, chunk=min(options.rows, options.n_batch)
        )
        self._own_tokenizer = settings.tokenizer is None
        self.tokenizer_: BaseLlamaTokenizer = settings.tokenizer or self.tokenizer()
        self.model_path = os.fspath(settings.model_path)
        self.metadata = self._model.metadata()
        self.verbose = settings.verbose
        self.last_n_tokens_size = settings.last_n_tokens_size
        self.spm_infill = settings.spm_infill
        self.n_batch = options.n_batch
        self.n_threads = int(engine.native.llama.llama_n_threads(engine.ctx))
        self.n_threads_batch = int(engine.native.llama.llama_n_threads_batch(engine.ctx))

    # Adapters ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterFile]:
        """The loaded adapters by name, read-only."""
        return self._runtime.adapters

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> AdapterFile:
        """Loads one more adapter under `name`. Raises AdapterFormatError, AdapterMismatchError, or
        AdapterInUseError if the name is taken.
        """
        return self._runtime.load_adapter(name, path)

    def load_contract(self, name: str, path: str | os.PathLike[str]) -> None:
        """Gives an adapter another contract (io.yaml) than the one in its file. Raises
        UnknownAdapterError, ContractError.
        """
        self._runtime.set_contract(name, path)

    def unload_adapter(self, name: str) -> None:
        """Frees an adapter; a stream that uses it ends. Raises UnknownAdapterError."""
        with self._lock:
            self._begin()
            self._runtime.unload_adapter(name)

    @property
    def last_timings(self) -> Timings:
        """Of the last completion that ended, in tokens and seconds."""
        return self._last_timings

    # Text and tokens -----------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 `text`; with `special`, control tokens written in it are recognized.
        With `add_bos` come the tokens that begin a text, where the model wants them.
        """
        tokens: list[int] = self.tokenizer_.tokenize(text, add_bos, special)
        return tokens

    def detokenize(
        self,
        tokens: Sequence[int],
        prev_tokens: Sequence[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """The bytes of `tokens`, of control tokens with `special` only. `prev_tokens` are those
        before them, for tokenizers to which that matters.
        """
        before = None if prev_tokens is None else list(prev_tokens)
        text: bytes = self.tokenizer_.detokenize(list(tokens), prev_tokens=before, special=special)
        return text

    def tokenizer(self) -> LlamaTokenizer:
        """The model's own tokenizer, also if another one was given."""
        return LlamaTokenizer(cast(Any, self))  # it asks for `_model` alone

    def token_eos(self) -> int:
        """The token that ends a text, or -1."""
        return self._model.token_eos()

    def token_bos(self) -> int:
        """The token that begins a text, or -1."""
        return self._model.token_bos()

    def token_nl(self) -> int:
        """The token of a line break, or -1."""
        return self._model.token_nl()

    def n_ctx(self) -> int:
        """Cells of the KV cache: the most tokens of a prompt and its completion."""
        return self._runtime.n_ctx

    def n_embd(self) -> int:
        """The length of an embedding."""
        return self._model.n_embd()

    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self._runtime.n_vocab

    def pooling_type(self) -> int:
        """llama.cpp's number of how embed() pools; 0 means a vector for each token."""
        engine = self._runtime._runtime.engine
        return int(engine.native.llama.llama_pooling_type(engine.ctx))

    @property
    def ctx(self) -> int:
        """The llama_context, for llama_cpp's functions that only look."""
        return self._runtime._runtime.engine.ctx

    @property
    def model(self) -> int:
        """The llama_model, for the same."""
        return self._model.model

    # Low level: what was read, one token at a time -----------------------------------------------

    @property
    def n_tokens(self) -> int:
        """How many tokens were read. Setting it forgets those from there on."""
        return len(self._cells.tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        with self._lock:
            self._begin()
            self._cells.cut(n)

    @property
    def input_ids(self) -> TokenIds:
        """The tokens that were read, then zeros, [n_ctx]; a copy."""
        ids = np.zeros(self.n_ctx(), np.intc)
        tokens = self._cells.tokens
        ids[: len(tokens)] = tokens
        return ids

    @property
    def scores(self) -> LogitsRow:
        """Logits after each token, [n_tokens, n_vocab]. Raises InputError without logits_all."""
        rows = self._cells.rows
        return np.stack(rows) if rows else np.empty((0, self.n_vocab()), np.float32)

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens that were read."""
        return deque(self._cells.tokens, maxlen=self.n_ctx())

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The logits after each token. Raises InputError without logits_all."""
        return deque(self.scores.tolist(), maxlen=self.n_ctx())

    def reset(self) -> None:
        """Forgets what was read."""
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Reads `tokens` after those that were read. Raises CacheFullError, DecodeError."""
        with self._lock:
            self._begin()
            if len(tokens):
                self._cells.read([*self._cells.tokens, *tokens])

    @takes(SampleOptions)
    def sample(self, options: SampleOptions) -> int:
        """Chooses a token to follow those that were read, or the first `idx` + 1 of them, which
        needs logits_all. Every call makes a new sampler of the options and the seed.
        """
        with self._lock:
            self._begin()
            ids = np.array(self._cells.tokens, np.intc)
            row = self._cells.last
            if options.idx is not None and options.idx != len(ids) - 1:
                rows = self._cells.rows
                if not 0 <= options.idx < len(rows):
                    raise InputError(f"idx must be in [0, {len(rows)}), got {options.idx!r}")
                row = rows[options.idx]
            return self._chain(options).sample(row, ids)

    @takes(GenerateOptions)
    def generate(self, options: GenerateOptions) -> Generator[int, Sequence[int] | None, None]:
        """Samples tokens to follow `tokens` without end, and reads each when the next one is asked
        for. Without `reset`, `tokens` follow what was read. What is sent to the generator is
        ignored: it would be a guess at what comes, and never changes what comes.
        """
        with self._lock:
            self._begin()
            before = [] if options.reset else self._cells.tokens
            stream = self._stream([*before, *options.tokens], sampling_of(options), options)
        yield from self._in_turns(stream, stream)

    # What completions need -----------------------------------------------------------------------

    def _begin(self) -> None:
        """Every call that reads or samples starts here: it ends a stream that is not over."""
        stream = None if self._live is None else self._live()
        self._live = None
        if stream is not None:
            stream.close("this stream was ended by another call on the same Llama")
        self._cells.settle()

    def _stream(
        self,
        tokens: Sequence[int],
        sampling: SampleOptions,
        options: GenerateOptions | CompletionOptions,
        each: OnRows | None = None,
    ) -> TokenStream:
        """Reads `tokens` and starts to sample."""
        stream = TokenStream(
            self._cells,
            self._chain(sampling),
            self._runtime._runtime.engine.vocab.check(tokens, "tokens"),
            criterion=options.stopping_criteria,
            adapter=options.adapter,
            scale=options.adapter_scale,
            each=each,
            on_end=self._note_timings,
        )
        self._live = weakref.ref(stream)
        return stream

    def _chain(self, options: SampleOptions) -> Chain:
        vocab = self._runtime._runtime.engine.vocab
        return Chain(options, vocab, seed=self._seed, last_n=self.last_n_tokens_size)

    def _note_timings(self, timings: Timings) -> None:
        self._last_timings = timings

    def _in_turns(self, items: Iterator[_Item], stream: TokenStream) -> Iterator[_Item]:
        """`items`, which come from `stream`, each made while no other thread is at work here."""
        try:
            while True:
                with self._lock:
                    item = next(items, None)
                if item is None:
                    return
                yield item
        finally:
            stream.close()

    # Its life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything. A second call does nothing."""
        with self._lock:
            if not self._runtime.closed:
                self._begin()
                self._cells.close()
                self._runtime.close()
