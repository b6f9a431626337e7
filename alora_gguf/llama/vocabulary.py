"""The model's vocabulary and metadata under the names that llama_cpp's tokenizers and chat handlers
know, in bytes. alora_gguf.engine.vocab is the package's own view of the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from alora_gguf.engine.context import Engine
from alora_gguf.errors import InputError


class StockVocabulary:
    """What LlamaTokenizer and others ask of a `Llama._model`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._llama: Any = engine.native.llama
        self._bos = int(self._llama.llama_vocab_bos(self.vocab))

    @property
    def model(self) -> int:
        """The llama_model. Raises ClosedError."""
        return int(self._llama.llama_get_model(self._engine.ctx))

    @property
    def vocab(self) -> int:
        """The llama_vocab. Raises ClosedError."""
        _ = self._engine.ctx
        return int(self._engine.vocab.handle)

    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self._engine.vocab.n_tokens

    def n_embd(self) -> int:
        """The length of an embedding."""
        return int(self._llama.llama_model_n_embd(self.model))

    def n_ctx_train(self) -> int:
        """The context length it was trained with."""
        return int(self._llama.llama_model_n_ctx_train(self.model))

    def vocab_type(self) -> int:
        """llama.cpp's number of the tokenizer's kind."""
        return int(self._llama.llama_vocab_type(self.vocab))

    # Special tokens; -1 where there is none ------------------------------------------------------

    def token_bos(self) -> int:
        """It begins a text."""
        return self._bos

    def token_eos(self) -> int:
        """It ends a text."""
        return int(self._llama.llama_vocab_eos(self.vocab))

    def token_nl(self) -> int:
        """A line break."""
        return int(self._llama.llama_vocab_nl(self.vocab))

    def token_sep(self) -> int:
        """It separates texts."""
        return int(self._llama.llama_vocab_sep(self.vocab))

    def infill_tokens(self) -> tuple[int, int, int] | None:
        """(prefix, suffix, middle) of a model that fills in the middle."""
        llama, vocab = self._llama, self.vocab
        found = (
            int(llama.llama_vocab_fim_pre(vocab)),
            int(llama.llama_vocab_fim_suf(vocab)),
            int(llama.llama_vocab_fim_mid(vocab)),
        )
        return found if min(found) >= 0 else None

    def add_bos_token(self) -> bool:
        """Whether texts are to begin with token_bos()."""
        return bool(self._llama.llama_vocab_get_add_bos(self.vocab))

    def add_eos_token(self) -> bool:
        """Whether texts are to end with token_eos()."""
        return bool(self._llama.llama_vocab_get_add_eos(self.vocab))

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a reply."""
        return self._engine.vocab.is_end(token)

    def token_get_text(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        text: bytes | None = self._llama.llama_vocab_get_text(self.vocab, token)
        return (text or b"").decode("utf-8", "replace")

    # Text ----------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Token ids of UTF-8 `text`, with the tokens that begin and end a text if `add_bos`."""
        size = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            n = self._llama.llama_tokenize(
                self.vocab, text, len(text), buffer, size, add_bos, special
            )
            if n >= 0:
                return list(buffer[:n])
            if -n <= size:
                raise InputError(f"{self._engine.path}: llama.cpp could not tokenize {text[:80]!r}")
            size = -n

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """The bytes of `tokens`; as in llama-cpp-python, without the space that some vocabularies
        put behind a leading beginning-of-sequence token.
        """
        _ = self._engine.ctx
        vocab = self._engine.vocab
        text = b"".join(
            vocab.piece(token, special=special) for token in vocab.check(tokens, "tokens")
        )
        if text[:1] == b" " and tokens[0] == self._bos:
            return text[1:]
        return text

    # Metadata ------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, str]:
        """The file's keys and values as text, arrays left out by llama.cpp."""
        llama, model = self._llama, self.model
        return {
            _text(llama.llama_model_meta_key_by_index, model, i): _text(
                llama.llama_model_meta_val_str_by_index, model, i
            )
            for i in range(llama.llama_model_meta_count(model))
        }


def _text(function: Callable[..., int], model: int, index: int) -> str:
    """What a function that fills a buffer, and returns the length it needed, has to say."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = function(model, index, buffer, size)
        if n < size:
            return buffer.value.decode("utf-8", "replace")
        size = n + 1
