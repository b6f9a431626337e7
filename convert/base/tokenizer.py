"""Vocabularies: a GGUF's, tokenized by llama.cpp itself, and ids to text by a look at them alone.

Only GGUFTokenizer.tokenize() loads the native library.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from alora_gguf.errors import ConvertError, LibraryError, ModelError
from alora_gguf.gguf.base import vocabulary_only
from alora_gguf.gguf.header import GGUFHeader
from alora_gguf.gguf.parser import ArrayRef, ValueType, skip_strings

_MODEL: Final = "tokenizer.ggml.model"
_TOKENS: Final = "tokenizer.ggml.tokens"
_TYPES: Final = "tokenizer.ggml.token_type"
_SPACE_PREFIX: Final = "tokenizer.ggml.add_space_prefix"

# tokenizer.ggml.model: byte-level BPE and SentencePiece
BYTE_LEVEL: Final = "gpt2"
SENTENCE_PIECE: Final = "llama"

# tokenizer.ggml.token_type, as numbered by llama.h's llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_LITERAL: Final = (UNKNOWN, CONTROL, USER_DEFINED)  # found in a text as they are written


class Token(NamedTuple):
    """A token as a vocabulary stores it: its bytes, not yet decoded, and its type."""

    data: bytes
    type: int = NORMAL


class Tokenizer(ABC):
    """A base's vocabulary.

    model         BYTE_LEVEL or SENTENCE_PIECE; text is not known of another one
    space_prefix  whether SentencePiece puts a space before a text, and again after special tokens
    """

    model: str | None
    space_prefix: bool

    @abstractmethod
    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, in which special tokens are written out; nothing is added.
        The vocabulary is read once.
        """

    def tokenize(self, text: str) -> list[int]:
        """Those of one text."""
        return self.tokenize_all([text])[0]

    @abstractmethod
    def find(self, tokens: Sequence[int]) -> list[Token] | None:
        """The tokens as they are stored; None without a vocabulary, or for an id outside it."""

    def ordinary(self, tokens: Sequence[int]) -> list[bool] | None:
        """For each token whether it is ordinary text, which can merge with the text beside it,
        rather than a special token; None as in find().
        """
        found = self.find(tokens)
        return None if found is None else [token.type not in _LITERAL for token in found]

    def text_of(self, tokens: Sequence[int]) -> str | None:
        """The text that reads as these tokens in a conversation of their own.

        None if the vocabulary is of a kind that is not known here, the bytes are not UTF-8, or an
        id is not in it. Whether llama.cpp would split the text in the same way is not tried: that
        takes as long as a whole conversion.
        """
        found = self.find(tokens)
        if found is None or self.model not in (BYTE_LEVEL, SENTENCE_PIECE):
            return None
        out = b""
        prefixed = fresh = self.space_prefix and self.model == SENTENCE_PIECE
        for token in found:
            data: bytes | None = token.data
            if token.type in _LITERAL:
                fresh = prefixed
            else:
                data = _plain_bytes(token, self.model)
                if fresh and data is not None:
                    data = data[1:] if data.startswith(b" ") else None
                    fresh = False
            if data is None:
                return None
            out += data
        try:
            return out.decode() or None
        except UnicodeDecodeError:
            return None


def _plain_bytes(token: Token, model: str) -> bytes | None:
    """The bytes that an ordinary token stands for; None if it stands for none."""
    try:
        text = token.data.decode()
        if token.type == BYTE:
            return bytes([int(text[3:5], 16)]) if text[:3] == "<0x" else None
        if token.type != NORMAL:
            return None
        if model == SENTENCE_PIECE:
            return text.replace("\u2581", " ").encode()
        return bytes(_byte_alphabet()[char] for char in text)
    except (KeyError, ValueError):  # UnicodeDecodeError is a ValueError
        return None


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: those that print stand for themselves, the others, in their
    order, are the characters from U+0100 on.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


class GGUFTokenizer(Tokenizer):
    """A GGUF's vocabulary, of which the header is enough."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        model, tokens = header.metadata.get(_MODEL), header.metadata.get(_TOKENS)
        self.model = model if isinstance(model, str) else None
        self.space_prefix = header.metadata.get(_SPACE_PREFIX) is not False
        self._count: int | None = None
        if isinstance(tokens, ArrayRef) and tokens.type is ValueType.STRING:
            self._count = tokens.count

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        """As Tokenizer; llama.cpp reads the vocabulary from a temporary file."""
        for text in texts:
            self._check_usable(text)
        import tempfile

        from alora_gguf.engine.loading import BareVocabulary

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            path.write_bytes(vocabulary_only(self._header))
            try:
                vocabulary = BareVocabulary(path, self._header.name)
            except LibraryError as error:
                problem = f"cannot be used without the native library: {error}"
                raise self._unusable(problem) from error
            except ModelError as error:
                log = str(error).partition("cannot load this model")[2]
                raise self._unusable(f"cannot be read by llama.cpp{log}") from error
        try:
            return [
                vocabulary.vocab.tokenize(text, add_special=False, parse_special=True)
                for text in texts
            ]
        finally:
            vocabulary.close()

    def find(self, tokens: Sequence[int]) -> list[Token] | None:
        """As Tokenizer; the types are NORMAL where the file has none."""
        if self._count is None or not all(0 <= token < self._count for token in tokens):
            return None
        kinds = [NORMAL] * len(tokens)
        types = self._header.metadata.get(_TYPES)
        if types is not None:
            if not isinstance(types, ArrayRef) or types.type is not ValueType.INT32:
                return None  # llama.cpp would not load it
            if types.count < self._count:
                return None
            data = self._header.array_bytes(_TYPES)
            kinds = [struct.unpack_from("<i", data, 4 * token)[0] for token in tokens]
        wanted = sorted(set(tokens))
        found = dict(zip(wanted, self._strings(wanted), strict=True))
        return [Token(found[token], kind) for token, kind in zip(tokens, kinds, strict=True)]

    def _strings(self, wanted: Iterable[int]) -> Iterator[bytes]:
        """The `wanted` tokens as they are stored; their ids must ascend."""
        data = self._header.array_bytes(_TOKENS)
        pos = index = 0
        for number in wanted:
            pos = skip_strings(data, pos, number - index)
            (n,) = struct.unpack_from("<Q", data, pos)
            yield bytes(data[pos + 8 : pos + 8 + n])
            pos += 8 + n
            index = number + 1

    def _check_usable(self, text: str) -> None:
        """Refuses vocabularies that are missing, unknown here, or would make llama.cpp abort."""
        model, count = self._header.metadata.get(_MODEL), self._count
        if model in (None, "none") or count is None:
            raise ConvertError(
                f"{self._header.name}: has no vocabulary ({_MODEL}, {_TOKENS}), so text cannot be "
                "tokenized; pass the invocation's ids with --invocation-tokens"
            )
        if model not in (BYTE_LEVEL, SENTENCE_PIECE):
            raise self._unusable(f"is of the unknown kind '{model}' ({_MODEL})")
        stored = enumerate(self._strings(range(count)))
        names = {raw.partition(b"\0")[0] or b"[EMPTY_%d]" % number for number, raw in stored}
        if len(names) != count:
            raise self._unusable(f"holds {count - len(names)} tokens twice ({_TOKENS})")
        if model == SENTENCE_PIECE:  # a character without a token is spelled in tokens of one byte
            for char in sorted({"\u2581", *text.replace(" ", "\u2581")}):
                for byte in [] if char.encode() in names else char.encode():
                    if b"<0x%02X>" % byte not in names and bytes([byte]) not in names:
                        raise self._unusable(f"has no token for the byte 0x{byte:02X} ({_TOKENS})")

    def _unusable(self, problem: str) -> ConvertError:
        return ConvertError(
            f"{self._header.name}: its vocabulary {problem}; pass the invocation's ids with "
            "--invocation-tokens"
        )
