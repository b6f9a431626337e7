"""A GGUF file's vocabulary on its own: what llama.cpp needs of a model to tokenise."""

from __future__ import annotations

import struct
from typing import Final

from .gguf_header import GGUFHeader

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
