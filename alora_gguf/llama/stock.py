"""What stands in the place of stock's model and sampler, and the Llama that its embed() sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import llama_cpp
import numpy as np
from llama_cpp import Llama as Stock
from llama_cpp import _internals as internals
from llama_cpp.llama_grammar import LlamaGrammar

from alora_gguf.engine import native as _native
from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import AloraError, InputError
from alora_gguf.generate.sampling import Chain, grammar_sampler, likeliest

_NO_POOLING: Final = 0  # LLAMA_POOLING_TYPE_NONE


class Embedder:
    """The Llama that stock's embed() sees: with a context for embeddings, on the same weights, so
    that what was read stays.
    """

    def __init__(self, llama: Stock) -> None:
        self._llama = llama
        params = type(llama.context_params).from_buffer_copy(llama.context_params)
        params.embeddings = True
        params.n_outputs_max = 0
        params.n_seq_max = min(llama.n_batch, llama_cpp.llama_max_parallel_sequences())
        self.context_params = params
        # freed with the model
        self._ctx = internals.LlamaContext(model=llama._model, params=params, verbose=False)
        self._batch = internals.LlamaBatch(n_tokens=llama.n_batch, embd=0, n_seq_max=1)
        if self._ctx.pooling_type() == _NO_POOLING:
            params.n_seq_max = 1  # stock reads several texts of a batch at wrong offsets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def reset(self) -> None:
        """Its cells are gone already."""


class Model(internals.LlamaModel):
    """Stock's model; its texts of tokens are whole (stock drops those of more than 32 bytes)."""

    _vocabulary: Vocabulary
    _latest: tuple[list[int], bytes, bool] = ([], b"", False)

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        """The bytes of `tokens`, of control tokens with `special` only."""
        # stock's completion asks for the whole reply after every token
        known, text, kind = self._latest
        tokens = list(tokens)
        if kind != special or tokens[: len(known)] != known:
            known, text = [], b""
        for token in self._vocabulary.check(tokens[len(known) :], "tokens"):
            text += self._vocabulary.piece(token, special=special)
        if len(tokens) > 1:  # a stream asks for its latest token between
            self._latest = tokens, text, special
        # some vocabularies put a space behind a leading beginning-of-sequence token
        leading = text[:1] == b" " and tokens[0] == self.token_bos()
        return text[1:] if leading else text


class Sampler:
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


class Nothing:
    """Takes the place of what is freed, or was never there."""

    def __init__(self, kind: type[AloraError], message: str) -> None:
        self._kind, self._message = kind, message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._kind(self._message)
