"""Tokens: their texts in a model's vocabulary, and who computed those in the cache.

A cell of the KV cache may stand in for a token exactly if the same token, the same adapter and the
same scale would compute it, and all cells before it may, too. Adapters are known by the hash of
what they compute, weights or vectors: names and slots get reused.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from alora_gguf._calls import check_text
from alora_gguf.errors import (
    CacheFullError,
    ClosedError,
    InputError,
    ModelError,
)

from .native import Native

_DENSE: Final = 4  # bytes a token: a text of fewer for each cell may well fit,
_SOON: Final = 32 << 10  # and one of so many bytes is split in a second or two, whatever it says
_SPM: Final = 1  # LLAMA_VOCAB_TYPE_SPM
_BPE: Final = 2  # LLAMA_VOCAB_TYPE_BPE
_STRIPS: Final = 1 << 7 | 1 << 8  # LLAMA_TOKEN_ATTR_LSTRIP, _RSTRIP
_SPACES: Final = b" \t\n\v\f\r"  # C's isspace()
_SPACE_SIGN: Final = "\u2581".encode()  # a space in SentencePiece's tokens
# GPT-2's characters for bytes: those that can be shown, and 256 and up for the others, in order
_SHOWN: Final = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTES: Final = {n: n for n in _SHOWN} | {
    256 + i: n for i, n in enumerate(n for n in range(256) if n not in _SHOWN)
}
_NONE: Final = 0  # LLAMA_VOCAB_TYPE_NONE
_SPECIAL: Final = 1 << 3 | 1 << 4  # LLAMA_TOKEN_ATTR_CONTROL, _USER_DEFINED


class Vocabulary:
    """The vocabulary of one loaded model, for any thread; used up with it: what is not remembered
    raises ClosedError after close().
    """

    def __init__(self, native: Native, model: int, name: str) -> None:
        self._native, self._llama, self._model = native, native.llama, model
        llama = native.llama
        self._name = name
        self.room: int | None = None  # tokens that a context on the model has cells for
        self.handle = llama.llama_model_get_vocab(model)
        self.n_tokens: int = llama.llama_vocab_n_tokens(self.handle)
        self.has_text: bool = llama.llama_vocab_type(self.handle) != _NONE
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._eog: dict[int, bool] = {}
        self._characters: Characters | None = None
        self._pieces_of_text: Pieces | None = None
        self.kept: dict[str, Any] = {}  # what others have worked out of it, to go when it goes
        # nobody is in C when the model is freed; a long text on one thread stops no other
        self._readers, self._left = 0, threading.Condition()
        self._closed = False

    def close(self) -> None:
        """To be called before the model is freed."""
        with self._left:
            self._closed = True
            self._left.wait_for(lambda: not self._readers)

    def forget(self) -> None:
        """The same for finalizers, which must not wait, and when nobody is left who reads."""
        self._closed = True

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """llama.h, to ask about `handle`: the model is not freed meanwhile."""
        with self._left:
            if self._closed:
                raise ClosedError(f"{self._name}: the model was closed")
            self._readers += 1
        try:
            yield self._llama
        finally:
            with self._left:
                self._readers -= 1
                self._left.notify_all()

    def _need_text(self) -> None:
        if not self.has_text:
            raise ModelError(
                f"{self._name}: has no vocabulary (tokenizer.ggml.model is 'none'), so text cannot "
                "be used with it; pass token ids"
            )

    def _need_bytes(self, text: str) -> None:
        """Raises InputError for a text that llama.cpp would end the process over: a SentencePiece
        vocabulary that has no token for a character, nor for its bytes.
        """
        with self.opened() as llama:
            if self._characters is None:
                self._characters = Characters(llama, self.handle, self.n_tokens)
        found = self._characters.first_without_tokens(text)
        if found is not None:
            raise InputError(
                f"{self._name}: its vocabulary has no token for {found!r}, nor for its bytes, so "
                "this text cannot be used with it; leave the character out"
            )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. Raises ModelError if the model has no vocabulary."""
        self._need_text()
        data = check_text(text, f"{self._name}: the text")
        self._need_bytes(text)
        return self.tokenize_bytes(data, add_special=add_special, parse_special=parse_special)

    def tokenize_bytes(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """The same of bytes, which need not be UTF-8."""
        self._need_text()
        with self.opened():
            return self._native.tokenize(
                self.handle, data, self._name, add_special=add_special, parse_special=parse_special
            )

    def too_long(self, text: str) -> bool:
        """Whether `text` has more tokens than there is room for, told before it is split into them,
        which may take minutes; False where that cannot be told.
        """
        if self.room is None or len(text) <= self.room or not self.has_text:
            return False
        data = check_text(text, f"{self._name}: the text")
        if len(data) <= max(_SOON, _DENSE * self.room):
            return False
        with self.opened() as llama:
            if self._pieces_of_text is None:
                self._pieces_of_text = Pieces(llama, self._model, self.handle, self.attributes)
        return self._pieces_of_text.more_than(self.room, data)

    def check_fits(self, text: str) -> None:
        """Raises CacheFullError for a text that is too_long()."""
        if self.too_long(text):
            raise CacheFullError(
                f"{self._name}: the KV cache is full: a text of {len(text)} characters needs more "
                f"than the {self.room} cells that there are; shorten it, or open the model with a "
                "larger n_ctx"
            )

    def encode(self, text: str | Sequence[int], what: str, *, begins: bool) -> list[int]:
        """Token ids of text, or checked ones, in a conversation. Text that `begins` one gets the
        beginning-of-sequence token where the model wants one and it does not bring it. Raises
        CacheFullError.
        """
        if not isinstance(text, str):
            return self.check(text, what)
        self.check_fits(text)
        tokens = self.tokenize(text, add_special=False, parse_special=True)
        bos = self.bos_to_add() if begins and text else None
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

    @cached_property
    def attributes(self) -> Sequence[int]:
        """What llama.cpp knows of each token, LLAMA_TOKEN_ATTR_*."""
        if not self.has_text:
            return [0] * self.n_tokens
        with self.opened():
            return self._native.token_attributes(self.handle, self.n_tokens)

    def is_special(self, token: int) -> bool:
        """Whether the tokenizer takes `token` out of a text before it splits the rest: a control
        token, or one that was added to the vocabulary.
        """
        return bool(self.attributes[token] & _SPECIAL)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; those of control tokens only with `special`."""
        key = (token, special)
        if key not in self._pieces and self.has_text:
            with self.opened() as llama:
                self._pieces[key] = token_bytes(llama, self.handle, token, special=special)
        return self._pieces.get(key, b"")

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

    @property
    def end(self) -> int | None:
        """The token that ends a text; None if there is none."""
        with self.opened() as llama:
            token = int(llama.llama_vocab_eos(self.handle))
        return token if token >= 0 else None

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


# How a text can be spelled ------------------------------------------------------------------------


class Characters:
    """Which characters a vocabulary has tokens for; all of them unless it is SentencePiece's and
    lacks a byte.
    """

    def __init__(self, llama: Any, vocab: int, n_tokens: int) -> None:
        self._missing = set(range(256)) if llama.llama_vocab_type(vocab) == _SPM else set[int]()
        self._characters = set[str]()
        for token in range(n_tokens):
            if not self._missing:  # a sound one has its bytes first
                break
            text = llama.llama_vocab_get_text(vocab, token)
            if len(text) == 6 and text[:3] == b"<0x" and text[5:] == b">":
                self._missing -= {b for b in range(256) if text == b"<0x%02X>" % b}
            elif len(text) <= 4:
                self._missing -= set(text) if len(text) == 1 else set()
                self._characters |= {text.decode("utf-8", "replace")}

    def first_without_tokens(self, text: str) -> str | None:
        """The first character that can be written neither as a token nor byte by byte."""
        if not self._missing or not text:
            return None
        # llama.cpp writes a space as U+2581, and may put one first
        used = dict.fromkeys(("▁" + text).replace(" ", "▁"))
        unknown = (c for c in used if c not in self._characters)
        return next((c for c in unknown if self._missing.intersection(c.encode())), None)


class Pieces:
    """What one token can be of a text, where tokens spell out all of it: with SentencePiece's and
    GPT-2's vocabularies. Others make one token of many unknown words, or drop characters.

    Bytes that may vanish are free: those without a token, and spaces if special tokens swallow
    them. Of GPT-2's it is taken for granted that merges make tokens, as tokenizers do.
    """

    def __init__(self, llama: Any, model: int, vocab: int, attributes: Sequence[int]) -> None:
        self._spm = llama.llama_vocab_type(vocab) == _SPM
        name = _kind(llama, model)
        self._known, free = set[bytes](), set[int]()
        tokens = range(len(attributes))
        if self._spm and name == "llama":
            texts = [llama.llama_vocab_get_text(vocab, token) or b"" for token in tokens]
            self._known = {text.replace(_SPACE_SIGN, b" ") for text in texts}
            # it puts a space before a text, and behind special tokens
            self._known |= {text[1:] for text in self._known if text[:1] == b" "}
        elif llama.llama_vocab_type(vocab) == _BPE and name == "gpt2":
            texts = [llama.llama_vocab_get_text(vocab, token) or b"" for token in tokens]
            if {"Ġ".encode(), "Ċ".encode()} <= set(texts):  # its space and line break
                self._known = {*texts, *map(_of_bytes, texts)}
                free = {n for sign, n in _BYTES.items() if chr(sign).encode() not in self._known}
        if any(attribute & _STRIPS for attribute in attributes):
            free.update(_SPACES)
        self._free = frozenset(free)
        lengths: dict[bytes, set[int]] = {}
        for piece in self._known:
            lengths.setdefault(piece[:2], set()).add(len(piece))
        self._lengths = {begin: tuple(n for n in ns if n > 1) for begin, ns in lengths.items()}

    def more_than(self, most: int, text: bytes) -> bool:
        """Whether `text` has more than `most` tokens, however it is split: a proof, found without
        looking at much more of it than so many tokens can spell.
        """
        if not self._known:
            return False
        data = text.replace(_SPACE_SIGN, b" ") if self._spm else text
        known, lengths = self._known, self._lengths
        fewest = {0: 0}  # tokens that spell so many bytes, for those next to be looked at
        for at, byte in enumerate(data):
            n = fewest.pop(at)
            if n > most and min(fewest.values(), default=n) > most:
                return True
            fewest[at + 1] = min(n + (byte not in self._free), fewest.get(at + 1, n + 1))
            for length in lengths.get(data[at : at + 2], ()):
                if data[at : at + length] in known:
                    fewest[at + length] = min(n + 1, fewest.get(at + length, n + 1))
        return fewest[len(data)] > most


def _kind(llama: Any, model: int) -> str:
    """tokenizer.ggml.model, which says more than the type that llama.cpp makes of it."""
    buffer = ctypes.create_string_buffer(32)
    llama.llama_model_meta_val_str(model, b"tokenizer.ggml.model", buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _of_bytes(text: bytes) -> bytes:
    """The bytes that a token of GPT-2's stands for, or its own if it is none."""
    try:
        return text.decode().translate(_BYTES).encode("latin-1")
    except UnicodeError:
        return text


def token_bytes(llama: Any, vocab: int, token: int, *, special: bool) -> bytes:
    """What a llama_vocab has for a token; for control tokens only with `special`."""
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = llama.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if n >= 0:
            return buffer.raw[:n]
        size = -n


# Who computes what --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provenance:
    """What computed a token: an adapter (`identity`, the hash of what it computes) at a scale, or
    the base (`identity` None, scale 1). Of several at once `parts` has each one's identity and
    scale, sorted; `identity` is the hash of those then, and the scale 1.
    """

    identity: str | None = None
    scale: float = 1.0
    parts: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, identity: str | None, scale: float) -> Provenance:
        """A scale of 0 is the base; other scales are compared as the float32 that ggml computes
        with.
        """
        scale32 = float32(scale)
        if identity is None or scale32 == 0.0:
            return BASE
        return cls(identity, scale32)

    @classmethod
    def of_parts(cls, parts: Iterable[tuple[str, float]]) -> Provenance:
        """Of several at once, in any order: one that is there twice acts at the sum of its scales,
        and what is left alone is what it is by itself.
        """
        scales: dict[str, list[float]] = {}
        for identity, scale in parts:
            scales.setdefault(identity, []).append(scale)
        found = [cls.of(identity, math.fsum(each)) for identity, each in sorted(scales.items())]
        acting = [by for by in found if by != BASE]
        if len(acting) < 2:
            return acting[0] if acting else BASE
        each = tuple((by.identity or "", by.scale) for by in acting)
        return cls(_digest(each), 1.0, each)

    @property
    def digest(self) -> str | None:
        """The hash of what computed it, scale included: at scale 1 the identity."""
        return self.identity if self.scale == 1.0 else _digest(self.acting)

    @property
    def acting(self) -> tuple[tuple[str, float], ...]:
        """Each identity that acts, and its scale; none for the base."""
        if self.identity is None or self.parts:
            return self.parts
        return ((self.identity, self.scale),)


def _digest(acting: Iterable[tuple[str, float]]) -> str:
    digest = hashlib.sha256()
    for identity, scale in acting:
        digest.update(f"{identity}\n".encode() + struct.pack("<f", scale))
    return digest.hexdigest()


def float32(value: float) -> float:
    """The nearest float32."""
    nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return nearest


BASE: Final = Provenance()

Spans = tuple[tuple[int, Provenance], ...]
"""(first position, provenance) in ascending order, the first at 0; each holds until the next."""


def spans_for(first: int | None, provenance: Provenance) -> Spans:
    """The spans of a text that `provenance` computes from position `first` on (None: nowhere)."""
    if first is None or provenance == BASE:
        return ((0, BASE),)
    if first == 0:
        return ((0, provenance),)
    return ((0, BASE), (first, provenance))


class CachedTokens:
    """The tokens in a sequence's cells, in order, and the provenance of each."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._starts: list[int] = [0]
        self._calls: list[Provenance] = [BASE]

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """A copy of the tokens."""
        return self._tokens.copy()

    @property
    def spans(self) -> Spans:
        """The provenance of all tokens, run-length coded."""
        return tuple(zip(self._starts, self._calls, strict=True))

    def at(self, position: int) -> Provenance:
        """The provenance of the token at `position` (0-based)."""
        return self._calls[bisect_right(self._starts, position) - 1]

    def extend(self, tokens: Sequence[int], spans: Spans) -> None:
        """Appends tokens; `spans` count from the start of the sequence, as everywhere here."""
        old, new = len(self._tokens), len(self._tokens) + len(tokens)
        self._tokens.extend(tokens)
        ends = [start for start, _ in spans[1:]] + [new]
        for (begin, kind), end in zip(spans, ends, strict=True):
            start = max(begin, old)
            if start >= min(end, new):
                continue
            if start == 0:
                self._starts, self._calls = [0], [kind]
            elif self._calls[-1] != kind:
                self._starts.append(start)
                self._calls.append(kind)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens."""
        del self._tokens[n:]
        keep = max(1, bisect_right(self._starts, n - 1))
        del self._starts[keep:], self._calls[keep:]
        if n <= 0:
            self._starts, self._calls = [0], [BASE]

    def copy(self, n: int) -> CachedTokens:
        """The first `n` tokens, for a fork."""
        other = CachedTokens()
        other._tokens = self._tokens[:n]
        other._starts, other._calls = self._starts.copy(), self._calls.copy()
        other.truncate(n)
        return other

    def common_prefix(self, tokens: Sequence[int], spans: Spans) -> int:
        """How many leading cells may stand in for `tokens` computed as `spans` say: the longest
        common prefix of (token, adapter identity, scale).
        """
        same = common(self._tokens, list(tokens))
        starts = [start for start, _ in spans]
        for edge in sorted({*self._starts, *starts}):
            if edge >= same:
                break
            if spans[bisect_right(starts, edge) - 1][1] != self.at(edge):
                return edge
        return same


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items, or characters, two sequences of one type have in common at the beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def find_last(tokens: Sequence[int], invocation: Sequence[int]) -> int | None:
    """The position of the last occurrence of `invocation` in `tokens`, or None."""
    n, wanted = len(invocation), list(invocation)
    for at in range(len(tokens) - n, -1, -1):
        if tokens[at] == wanted[0] and list(tokens[at : at + n]) == wanted:
            return at
    return None


def nearest_miss(tokens: Sequence[int], invocation: Sequence[int]) -> tuple[int, int]:
    """(position, length) of the longest beginning of `invocation` in `tokens`, the last such one;
    length 0 if not even its first token occurs.
    """
    best_at, best = 0, 0
    for at, token in enumerate(tokens):
        if token == invocation[0]:
            n = common(tuple(tokens[at : at + len(invocation)]), tuple(invocation))
            best_at, best = (at, n) if n >= best else (best_at, best)
    return best_at, best
