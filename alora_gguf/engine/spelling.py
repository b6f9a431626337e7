"""How a vocabulary can spell a text: which characters it has tokens for, and how many tokens a text
takes at the very least.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import create_string_buffer
from typing import Any, Final

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
    buffer = create_string_buffer(32)
    llama.llama_model_meta_val_str(model, b"tokenizer.ggml.model", buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _of_bytes(text: bytes) -> bytes:
    """The bytes that a token of GPT-2's stands for, or its own if it is none."""
    try:
        return text.decode().translate(_BYTES).encode("latin-1")
    except UnicodeError:
        return text
