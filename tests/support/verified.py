"""Adapters that a verification should find something about, made of tests/tiny_base.py's."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np

from alora_gguf.gguf.header import read_header
from tests.support import tiny_base

VOCABULARY_KEY = "alora.vocab.sha256"


def tiny_vocabulary_sha256() -> str:
    """As the converter documents it: of every token its length as u64 and its bytes."""
    digest = hashlib.sha256()
    for token in tiny_base.vocabulary()[0]:
        digest.update(struct.pack("<Q", len(token.encode())) + token.encode())
    return digest.hexdigest()


def adapter_with(path: Path, entries: dict[str, str], **options: Any) -> Path:
    """tiny_base.write_adapter() with further metadata."""
    return tiny_base.write_adapter(path, keys=entries, **options)


def with_nan(source: Path, target: Path) -> Path:
    """A copy of an F32 adapter with a NaN amid its first tensor."""
    data = bytearray(source.read_bytes())
    info = next(iter(read_header(bytes(data)).tensors.values()))
    data[info.offset + 4 : info.offset + 8] = np.float32("nan").tobytes()
    target.write_bytes(data)
    return target


def with_context(source: Path, target: Path, n: int) -> Path:
    """A copy of a tiny base that says it was trained for texts of `n` tokens."""
    key = b"llama.context_length" + struct.pack("<I", 4)
    data = source.read_bytes()
    assert data.count(key + struct.pack("<I", 1024)) == 1
    target.write_bytes(data.replace(key + struct.pack("<I", 1024), key + struct.pack("<I", n)))
    return target
