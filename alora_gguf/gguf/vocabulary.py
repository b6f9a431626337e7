"""A GGUF file's vocabulary: what llama.cpp needs of a model to tokenise, and its hash."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from .header import GGUFHeader
from .types import ArrayRef, ValueType

_TOKENS: Final = "tokenizer.ggml.tokens"
# of a model in several files: llama.cpp would look for the others
_SPLIT: Final = ("split.no", "split.count", "split.tensors.count")


def vocabulary_only(header: GGUFHeader) -> bytes:
    """A whole GGUF file with the same metadata and no tensors.

    llama.cpp loads it with `vocab_only` and tokenises as with the model itself, also where only the
    model's header is at hand.
    """
    entries = [entry for key, entry in header.entries.items() if key not in _SPLIT]
    prologue = b"GGUF" + struct.pack("<IQQ", header.version, 0, len(entries))
    return b"".join([prologue, *entries])


def vocabulary_sha256(header: GGUFHeader) -> str | None:
    """The hash of all tokens in their order, as GGUF stores them: for each, its length in bytes as
    u64, its bytes. None if the file has no vocabulary.
    """
    ref = header.metadata.get(_TOKENS)
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.STRING:
        return None
    return hashlib.sha256(header.array_bytes(_TOKENS)).hexdigest()
