"""A GGUF's vocabulary: text to token ids by llama.cpp itself, ids to text by a look at them alone.

Only tokenize_gguf() loads the native library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

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


@dataclass(frozen=True)
class Token:
    """A token as a vocabulary stores it: its bytes, not yet decoded, and its type."""

    data: bytes
    type: int = NORMAL


def tokenize_gguf(header: GGUFHeader, text: str) -> list[int]:
    """The token ids of `text`, in which special tokens are written out; nothing is added.

    llama.cpp reads the vocabulary from a temporary file, so that a model's beginning is enough.
    Raises ConvertError if there is no vocabulary that llama.cpp could use.
    """
    _check_usable(header, text)
    import tempfile

    from alora_gguf.engine.loading import BareVocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(vocabulary_only(header))
        try:
            vocabulary = BareVocabulary(path, header.name)
        except LibraryError as error:
            raise _unusable(
                header, f"cannot be used without the native library: {error}"
            ) from error
        except ModelError as error:
            log = str(error).partition("cannot load this model")[2]
            raise _unusable(header, f"cannot be read by llama.cpp{log}") from error
    try:
        return vocabulary.vocab.tokenize(text, add_special=False, parse_special=True)
    finally:
        vocabulary.close()


def _check_usable(header: GGUFHeader, text: str) -> None:
    """Refuses vocabularies that are missing, unknown here, or would make llama.cpp abort."""
    model, count = header.metadata.get(_MODEL), _count(header)
    if model in (None, "none") or count is None:
        raise ConvertError(
            f"{header.name}: has no vocabulary ({_MODEL}, {_TOKENS}), so text cannot be tokenized; "
            "pass the invocation's ids with --invocation-tokens"
        )
    if model not in (BYTE_LEVEL, SENTENCE_PIECE):
        raise _unusable(header, f"is of the unknown kind '{model}' ({_MODEL})")
    stored = enumerate(_strings(header, range(count)))
    names = {raw.partition(b"\0")[0] or b"[EMPTY_%d]" % number for number, raw in stored}
    if len(names) != count:
        raise _unusable(header, f"holds {count - len(names)} tokens twice ({_TOKENS})")
    if model == SENTENCE_PIECE:  # a character without a token is spelled in tokens of one byte
        for char in sorted({"\u2581", *text.replace(" ", "\u2581")}):
            for byte in [] if char.encode() in names else char.encode():
                if b"<0x%02X>" % byte not in names and bytes([byte]) not in names:
                    raise _unusable(header, f"has no token for the byte 0x{byte:02X} ({_TOKENS})")


def _unusable(header: GGUFHeader, problem: str) -> ConvertError:
    return ConvertError(
        f"{header.name}: its vocabulary {problem}; pass the invocation's ids with "
        "--invocation-tokens"
    )


def text_of(header: GGUFHeader, tokens: Sequence[int]) -> str | None:
    """The text that reads as these tokens in a conversation of their own.

    None if the vocabulary is of a kind that is not known here, the bytes are no UTF-8, or an id is
    none of its. Whether llama.cpp would split the text in the same way is not tried: that takes as
    long as a whole conversion.
    """
    model = header.metadata.get(_MODEL)
    found = _tokens(header, tokens)
    if found is None or not isinstance(model, str):
        return None
    return decode(found, model, space_prefix=header.metadata.get(_SPACE_PREFIX) is not False)


def ordinary(header: GGUFHeader, tokens: Sequence[int]) -> list[bool] | None:
    """For each token whether it is ordinary text, which can merge with the text beside it.

    None without a vocabulary, or for an id outside it. Special tokens are not ordinary: those of
    the types control, user-defined and unknown.
    """
    types = _types(header, tokens)
    return None if types is None else [kind not in _LITERAL for kind in types]


def decode(tokens: Iterable[Token], model: str, *, space_prefix: bool) -> str | None:
    """The text of tokens in the vocabulary of a `model`, BYTE_LEVEL or SENTENCE_PIECE.

    With `space_prefix`, SentencePiece puts a space before the text, and again after every special
    token; it is taken off again. None as in text_of().
    """
    if model not in (BYTE_LEVEL, SENTENCE_PIECE):
        return None
    out, prefixed = b"", space_prefix and model == SENTENCE_PIECE
    fresh = True
    for token in tokens:
        data = token.data if token.type in _LITERAL else _plain_bytes(token, model)
        if data is None:
            return None
        if token.type in _LITERAL:
            fresh = True
        elif fresh and prefixed:
            if not data.startswith(b" "):
                return None
            data, fresh = data[1:], False
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


def _tokens(header: GGUFHeader, tokens: Sequence[int]) -> list[Token] | None:
    """The tokens as they are stored; None if the vocabulary lacks one of them."""
    types = _types(header, tokens)
    if types is None:
        return None
    wanted = sorted(set(tokens))
    found = dict(zip(wanted, _strings(header, wanted), strict=True))
    return [Token(found[token], kind) for token, kind in zip(tokens, types, strict=True)]


def _strings(header: GGUFHeader, wanted: Iterable[int]) -> Iterator[bytes]:
    """The `wanted` tokens of the vocabulary as they are stored; their ids must ascend."""
    data = header.array_bytes(_TOKENS)
    pos = index = 0
    for number in wanted:
        pos = skip_strings(data, pos, number - index)
        (n,) = struct.unpack_from("<Q", data, pos)
        yield bytes(data[pos + 8 : pos + 8 + n])
        pos += 8 + n
        index = number + 1


def _count(header: GGUFHeader) -> int | None:
    """The tokens of the vocabulary; None if there is none."""
    ref = header.metadata.get(_TOKENS)
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.STRING:
        return None
    return ref.count


def _types(header: GGUFHeader, tokens: Sequence[int]) -> list[int] | None:
    """The types of tokens, NORMAL where the file has no types; None if it lacks one of them."""
    count = _count(header)
    if count is None or not all(0 <= token < count for token in tokens):
        return None
    types = header.metadata.get(_TYPES)
    if types is None:
        return [NORMAL] * len(tokens)
    if not isinstance(types, ArrayRef) or types.type is not ValueType.INT32 or types.count < count:
        return None  # llama.cpp would not load it
    data = header.array_bytes(_TYPES)
    return [struct.unpack_from("<i", data, 4 * token)[0] for token in tokens]
