"""A model's vocabulary: text to token ids and back, and which tokens end a reply."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

from alora_gguf.errors import ClosedError, InputError, ModelError

_NONE: Final = 0  # LLAMA_VOCAB_TYPE_NONE
_SPECIAL: Final = 1 << 3 | 1 << 4  # LLAMA_TOKEN_ATTR_CONTROL, _USER_DEFINED


class Vocabulary:
    """The vocabulary of one loaded model, for any thread; used up with it: what is not remembered
    raises ClosedError after close().
    """

    def __init__(self, llama: Any, model: int, name: str) -> None:
        self._llama = llama
        self._name = name
        self.handle = llama.llama_model_get_vocab(model)
        self.n_tokens: int = llama.llama_vocab_n_tokens(self.handle)
        self.has_text: bool = llama.llama_vocab_type(self.handle) != _NONE
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._eog: dict[int, bool] = {}
        self._special: dict[int, bool] = {}
        self.kept: dict[str, Any] = {}  # what others have worked out of it, to go when it goes
        self._lock = threading.Lock()  # nobody is in C when the model is freed
        self._closed = False

    def close(self) -> None:
        """To be called before the model is freed."""
        with self._lock:
            self._closed = True

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """llama.h, to ask about `handle`: the model is not freed meanwhile."""
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._name}: the model was closed")
            yield self._llama

    def _need_text(self) -> None:
        if not self.has_text:
            raise ModelError(
                f"{self._name}: has no vocabulary (tokenizer.ggml.model is 'none'), so text cannot "
                "be used with it; pass token ids"
            )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. Raises ModelError if the model has no vocabulary."""
        self._need_text()
        data = text.encode("utf-8")
        size = len(data) + 8  # no more tokens than bytes, and a few special ones
        while True:
            buffer = (ctypes.c_int32 * size)()
            with self.opened() as llama:
                n = llama.llama_tokenize(
                    self.handle, data, len(data), buffer, size, add_special, parse_special
                )
            if n >= 0:
                return list(buffer[:n])
            if -n <= size:
                raise InputError(f"{self._name}: llama.cpp could not tokenize the text")
            size = -n

    def tokenize_start(self, text: str) -> list[int]:
        """Token ids of a conversation's beginning: with the beginning-of-sequence token where the
        model wants one and `text` does not bring it.
        """
        tokens = self.tokenize(text, add_special=False, parse_special=True)
        bos = self.bos_to_add()
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]

    def bos_to_add(self) -> int | None:
        """The token that begins every text, for models that want one."""
        with self.opened() as llama:
            if not llama.llama_vocab_get_add_bos(self.handle):
                return None
            bos = int(llama.llama_vocab_bos(self.handle))
            return bos if bos >= 0 else None

    def special_text(self, which: Literal["bos", "eos"]) -> str:
        """How the token that begins or ends a text is written; "" if there is none."""
        with self.opened() as llama:
            ask = llama.llama_vocab_bos if which == "bos" else llama.llama_vocab_eos
            token = int(ask(self.handle))
        return "" if token < 0 else self.piece(token, special=True).decode("utf-8", "replace")

    def is_special(self, token: int) -> bool:
        """Whether the tokenizer takes `token` out of a text before it splits the rest: a control
        token, or one that was added to the vocabulary.
        """
        if token not in self._special:
            with self.opened() as llama:
                attributes = int(llama.llama_vocab_get_attr(self.handle, token))
            self._special[token] = bool(attributes & _SPECIAL)
        return self._special[token]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; those of control tokens only with `special`."""
        key = (token, special)
        if key not in self._pieces:
            self._pieces[key] = self._piece(token, special) if self.has_text else b""
        return self._pieces[key]

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            with self.opened() as llama:
                n = llama.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> str:
        """The text of `tokens`. Raises ModelError if the model has no vocabulary."""
        self._need_text()
        return b"".join(self.piece(t, special=special) for t in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a reply (end of sequence, of turn, ...)."""
        if not self.has_text:
            return False
        if token not in self._eog:
            with self.opened() as llama:
                self._eog[token] = bool(llama.llama_vocab_is_eog(self.handle, token))
        return self._eog[token]

    def check(self, tokens: Sequence[int], what: str) -> list[int]:
        """`tokens` as a list of plain ints. Raises InputError for one outside the vocabulary."""
        plain = len(tokens) and set(map(type, tokens)) == {int}  # quickly, as nearly always
        if plain and min(tokens) >= 0 and max(tokens) < self.n_tokens:
            return list(tokens)
        out = []
        for i, token in enumerate(tokens):
            try:
                value = token.__index__()
            except AttributeError:
                raise InputError(f"{what}: token {i} is {token!r}, expected an integer") from None
            if isinstance(token, bool) or not 0 <= value < self.n_tokens:
                raise InputError(
                    f"{what}: token {i} is {token!r}, expected an id in [0, {self.n_tokens})"
                )
            out.append(value)
        return out

    def show(self, tokens: Sequence[int]) -> str:
        """Ids and pieces, for messages: `12 "<cert", 7 "ain"`."""
        if not self.has_text:
            return ", ".join(map(str, tokens))
        pieces = (self.piece(t, special=True).decode("utf-8", "replace") for t in tokens)
        return ", ".join(f'{t} "{p}"' for t, p in zip(tokens, pieces, strict=True))
