"""llama_cpp.Llama's sampler chain: the same samplers in the same order, with the same seed."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from alora_gguf.engine import native as _native
from alora_gguf.engine.batch import Logits
from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import DecodeError, InputError

from .options import CompletionOptions, LogitsProcessor, LogitsRow, SampleOptions, TokenIds

_TOKEN_DATA: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_MIROSTAT_M: Final = 100
_NOTHING_LEFT: Final = "no token was left to choose from; loosen the grammar or logit_bias"


def with_bias(options: CompletionOptions, n_vocab: int) -> list[LogitsProcessor]:
    """The logits processors of a completion, the one that adds logit_bias last.

    Raises InputError for tokens outside the vocabulary.
    """
    processors = list(options.logits_processor or ())
    if options.logit_bias:
        biases = {int(token): float(bias) for token, bias in options.logit_bias.items()}
        for token, bias in biases.items():
            if not 0 <= token < n_vocab or math.isnan(bias):
                raise InputError(
                    f"logit_bias: {token} is to get {bias}; expected a token in [0, {n_vocab}) and "
                    "a number"
                )
        tokens = np.array(list(biases), np.intp)
        added = np.array(list(biases.values()), np.float32)

        def add_bias(_: TokenIds, row: LogitsRow) -> LogitsRow:
            row = row.copy()
            row[tokens] += added
            return row

        processors.append(add_bias)
    return processors


class Chain:
    """A sampler chain with its state (seed, last tokens, grammar position)."""

    def __init__(
        self, options: SampleOptions, vocab: Vocabulary, *, seed: int, last_n: int
    ) -> None:
        """`seed` is taken modulo 2^32; 2^32 - 1 stands for one that llama.cpp draws. Penalties look
        at the last `last_n` sampled tokens. Raises InputError for a grammar that is not valid.
        """
        self._processors = tuple(options.logits_processor or ())
        self._n_vocab = vocab.n_tokens
        self._llama: Any = _native.load().llama
        self._chain: Any = None
        no_penalties = (
            options.repeat_penalty == 1
            and options.frequency_penalty == 0
            and options.presence_penalty == 0
        )
        if options.temp == 0 and options.grammar is None and (no_penalties or last_n == 0):
            return
        llama = self._llama
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        weakref.finalize(self, llama.llama_sampler_free, self._chain)
        for part in _parts(llama, options, vocab, seed & 0xFFFFFFFF, last_n):
            llama.llama_sampler_chain_add(self._chain, part)
        self._data = np.empty(self._n_vocab, _TOKEN_DATA)
        self._ids = np.arange(self._n_vocab, dtype=np.int32)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(self._pointer, self._n_vocab, -1, False)

    def sample(self, logits: Logits, read: TokenIds) -> int:
        """Chooses a token from a row of logits [n_vocab] after the tokens `read`, and remembers it.

        Raises DecodeError if there is nothing to choose from.
        """
        row = logits
        for processor in self._processors:
            row = np.asarray(processor(read, row.copy() if row is logits else row), np.float32)
            if row.shape != logits.shape:
                raise InputError(
                    f"a logits processor returned shape {row.shape}, expected {logits.shape}"
                )
        best = int(np.argmax(row))  # NaN counts as the largest
        if not math.isfinite(row[best]):
            raise DecodeError(
                "the logits are not finite; the weights, an adapter's scale or a logits processor "
                "are unusable"
            )
        return best if self._chain is None else self._sample(row)

    def _sample(self, row: Logits) -> int:
        self._data["id"], self._data["logit"], self._data["p"] = self._ids, row, 0.0
        array = self._array
        array.data, array.size, array.selected, array.sorted = (
            self._pointer, self._n_vocab, -1, False,
        )  # fmt: skip
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise DecodeError(_NOTHING_LEFT)
        chosen = array.data[array.selected]
        if not math.isfinite(chosen.logit):
            raise DecodeError(_NOTHING_LEFT)
        token = int(chosen.id)
        self._llama.llama_sampler_accept(self._chain, token)
        return token


def _parts(
    llama: Any, options: SampleOptions, vocab: Vocabulary, seed: int, last_n: int
) -> Iterator[Any]:
    """The samplers in order; one by one, so that those before a grammar that fails are already the
    chain's and freed with it.
    """
    yield llama.llama_sampler_init_penalties(
        vocab.n_tokens,
        last_n,
        options.repeat_penalty,
        options.frequency_penalty,
        options.presence_penalty,
    )
    if options.grammar is not None:
        yield _grammar(llama, options.grammar, vocab)
    tau, eta = options.mirostat_tau, options.mirostat_eta
    if options.temp == 0:
        yield llama.llama_sampler_init_greedy()
        return
    if options.temp > 0 and options.mirostat_mode == 1:
        yield llama.llama_sampler_init_mirostat(vocab.n_tokens, seed, tau, eta, _MIROSTAT_M)
        return
    if options.temp > 0 and options.mirostat_mode == 2:
        yield llama.llama_sampler_init_mirostat_v2(seed, tau, eta)
        return
    if options.temp > 0:  # a negative one draws from the unchanged distribution
        yield llama.llama_sampler_init_top_k(options.top_k)
        yield llama.llama_sampler_init_typical(options.typical_p, 1)
        yield llama.llama_sampler_init_top_p(options.top_p, 1)
        yield llama.llama_sampler_init_min_p(options.min_p, 1)
        yield llama.llama_sampler_init_temp(options.temp)
    yield llama.llama_sampler_init_dist(seed)


def _grammar(llama: Any, grammar: Any, vocab: Vocabulary) -> Any:
    """`grammar` is a llama_cpp.LlamaGrammar, whose GBNF text it keeps to itself."""
    text, root = getattr(grammar, "_grammar", None), getattr(grammar, "_root", "root")
    if not isinstance(text, str):
        raise InputError(
            f"grammar must be a LlamaGrammar, got {type(grammar).__name__}; make one with "
            "LlamaGrammar.from_string() or LlamaGrammar.from_json_schema()"
        )
    if not vocab.has_text:
        raise InputError("a grammar needs a model with a vocabulary")
    made = llama.llama_sampler_init_grammar(vocab.handle, text.encode(), root.encode())
    if not made:
        raise InputError(
            f"the grammar is not valid GBNF with a rule named {root}" + _native.load().log.tail()
        )
    return made
