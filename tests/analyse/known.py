"""Adapters whose dW is known, written as GGUF, and dW as numpy has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from tests.support.make_gguf import Array, adapter_keys, make_gguf, token_ids

Q, K = "blk.0.attn_q.weight", "blk.0.attn_k.weight"


def write(
    path: Path,
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    alpha: float | None = None,
    dtype: Any = np.float32,
    architecture: str = "llama",
    invocation: Sequence[int] = (7, 8),
    **keys: Any,
) -> Path:
    """An adapter of A [r, n_in] and B [n_out, r] by target; without an invocation a plain LoRA."""
    tensors = {}
    for target, (a, b) in pairs.items():
        for half, values in (("a", a), ("b", b)):
            tensors[f"{target}.lora_{half}"] = np.ascontiguousarray(values.astype(dtype))
    if invocation:
        keys["adapter__alora__invocation_tokens"] = token_ids(list(invocation))
    entries = adapter_keys(alpha, **keys)
    return make_gguf(path, entries, tensors, architecture=architecture)


def random_pair(
    rng: np.random.Generator, rank: int = 4, n_in: int = 64, n_out: int = 48
) -> tuple[Array, Array]:
    return rng.standard_normal((rank, n_in)), rng.standard_normal((n_out, rank))


def orthonormal(rng: np.random.Generator, n: int, k: int) -> Array:
    return np.linalg.qr(rng.standard_normal((n, k)))[0]


def dw_of(path: Path) -> dict[str, Array]:
    """By target, of an adapter without experts in F32 or F16, by plain numpy."""
    file, found = AdapterFile.read(path), {}
    for pair in file.pairs:
        halves = []
        for info in (pair.a, pair.b):
            kind = {"F32": "<f4", "F16": "<f2"}[info.type_name]
            data = file.data[info.offset : info.offset + info.nbytes]
            halves.append(np.frombuffer(data, kind).reshape(info.shape[::-1]).astype(np.float64))
        a, b = halves
        if pair.target == "token_embd.weight":
            a = a.T
        found[pair.target] = (file.alpha / pair.rank if file.alpha else 1.0) * b @ a
    return found


def weight_of(path: Path, target: str) -> Array:
    """A base's matrix, dequantised by gguf at once."""
    import gguf

    base = BaseFile.read(path)
    info = base.tensors[target]
    raw = np.frombuffer(path.read_bytes(), np.uint8)[info.offset : info.offset + info.nbytes]
    rows = raw.reshape(*info.shape[:0:-1], -1)
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(info.type)).astype(np.float64)
