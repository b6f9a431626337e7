"""Small vocabularies of the two kinds that the converter knows, as GGUFs and as tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .make_gguf import make_gguf
from .tiny_base import byte_symbols

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their types; `merges` of a byte-level one, `scores` of a SentencePiece one."""

    model: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)

    def metadata(self) -> dict[str, Any]:
        entries: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": "gpt-2" if self.merges else "default",
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
        }
        if self.merges:
            return entries | {"tokenizer.ggml.merges": self.merges}
        return entries | {"tokenizer.ggml.scores": self.scores}

    def tokenizer_json(self, **parts: Any) -> str:
        """As Hugging Face has it: with ids given as here, and `parts` of the pipeline."""
        special = (CONTROL, USER_DEFINED, UNKNOWN)
        added = [
            {
                "id": i,
                "content": token,
                "special": self.types[i] != USER_DEFINED,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for i, token in enumerate(self.tokens)
            if self.types[i] in special
        ]
        model = {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(self.tokens)},
            "merges": self.merges,
            "unk_token": None,
            "byte_fallback": self.model == "llama",
        }
        if self.model == "gpt2":
            level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            parts = {"pre_tokenizer": level, "decoder": level, **parts}
        return json.dumps({"version": "1.0", "added_tokens": added, "model": model, **parts})


def byte_level() -> Vocabulary:
    """GPT-2's 256 bytes, a few merges, control and user-defined tokens."""
    merges = ["t h", "th e", "Ġ the", "Ġ a", "< c", "i n", "> >"]
    tokens = byte_symbols() + [merge.replace(" ", "") for merge in merges]
    types = [NORMAL] * len(tokens)
    special = ["<|start_of_role|>", "<|end_of_role|>", "<tool>", "[PAD]"]
    types += [CONTROL, CONTROL, USER_DEFINED, UNUSED]
    return Vocabulary("gpt2", tokens + special, types, merges, [])


def sentence_piece() -> Vocabulary:
    """Bytes, letters and a few longer pieces with `▁` for the space."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz<>|.", "th", "the", "▁the", "▁a", "in"]
    special = ["<|user|>", "<|assistant|>"]
    types += [NORMAL] * len(pieces) + [CONTROL, USER_DEFINED]
    tokens += pieces + special
    scores = [0.0] * 259 + [float(len(piece)) for piece in pieces] + [0.0] * 2
    return Vocabulary("llama", tokens, types, [], scores)


def write_gguf(
    path: Path,
    vocabulary: Vocabulary | None,
    changes: dict[str, Any] | None = None,
    *,
    architecture: str = "llama",
) -> Path:
    """A model of zeros, too small to compute with, with a vocabulary or without.

    `changes` are to its metadata; None removes an entry.
    """
    own = {"tokenizer.ggml.model": "none"} if vocabulary is None else vocabulary.metadata()
    counts = {"block_count": 1, "embedding_length": 8, "attention.head_count": 2}
    sizes = {f"{architecture}.{name}": count for name, count in counts.items()}
    rows = len(vocabulary.tokens) if vocabulary else 50
    shapes = {"token_embd": rows, "output": rows, "blk.0.attn_q": 8}
    tensors = {f"{name}.weight": np.zeros((n, 8), np.float32) for name, n in shapes.items()}
    keys = {**sizes, **own, **(changes or {})}
    return make_gguf(path, keys, tensors, architecture=architecture)
