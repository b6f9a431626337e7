"""Writes an adapter anew with other matrices; all else of it stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.gguf.adapter import AdapterFile, Pair
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import TensorInfo
from alora_gguf.gguf.writer import OutTensor, write_gguf

from .factors import Doubles, factors_of

_F32: Final = 0
_ALIGNMENT: Final = "general.alignment"  # the writer's is GGUF's default
Stacks = tuple[Doubles, Doubles]
"""A [n, r, n_in] and B [n, n_out, r] of a target of n experts; n is 1 in a plain matrix."""


def write_changed(
    file: AdapterFile, target: Path, change: Callable[[Pair], Stacks | None], *, overwrite: bool
) -> int:
    """Writes `file` to `target` with the matrices that `change` gives for a pair, as F32; where it
    gives None they stay byte for byte. Returns the size in bytes; raises as write_gguf() does.
    """
    header = read_header(file.data, name=str(file.path))
    tensors = dict[str, OutTensor]()
    for pair in file.pairs:
        changed = change(pair)
        for i, info in enumerate((pair.a, pair.b)):
            tensors[info.name] = (
                _as_it_is(file, info) if changed is None else _tensor(pair, info, changed[i])
            )
    metadata = [
        (key, header.types[key], entry)
        for key, entry in header.entries.items()
        if key != _ALIGNMENT
    ]
    # in the file's order
    ordered = [tensors.get(name) or _as_it_is(file, i) for name, i in header.tensors.items()]
    return write_gguf(target, metadata, ordered, overwrite=overwrite)


def write_random(file: AdapterFile, target: Path, seed: list[int]) -> None:
    """Writes a random adapter of the same shapes, ranks and ||dW||_F of each matrix: A and B of
    normal numbers. The invocation and what else the file says stay.
    """
    rng = np.random.default_rng(seed)

    def drawn(pair: Pair) -> Stacks:
        a, b = [], []
        for factors in factors_of(file, pair):
            wanted = float(np.linalg.norm(factors.singular_values()))
            new = _normal(rng, factors.a.shape), _normal(rng, factors.b.shape)
            gram = (new[1].T @ new[1]) * (new[0] @ new[0].T)  # ||B A||_F^2 is its sum
            size = abs(factors.scale) * float(np.sqrt(gram.sum()))
            root = np.sqrt(wanted / size) if size else 0.0
            a.append(root * new[0])
            b.append(root * new[1])
        return np.stack(a), np.stack(b)

    write_changed(file, target, drawn, overwrite=False)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Doubles:
    return rng.standard_normal(shape)


def _as_it_is(file: AdapterFile, info: TensorInfo) -> OutTensor:
    data = memoryview(file.data)[info.offset : info.offset + info.nbytes]
    return OutTensor(info.name, info.shape, info.type, lambda: data)


def _tensor(pair: Pair, info: TensorInfo, stack: Doubles) -> OutTensor:
    array = stack.astype("<f4")
    if len(info.shape) == 2:
        array = array[0]
    if info is pair.a and pair.target.endswith("token_embd.weight"):  # stored as it is looked up in
        array = array.T
    return OutTensor(info.name, array.shape[::-1], _F32, partial(_bytes, array))


def _bytes(array: NDArray[Any]) -> bytes:
    return array.tobytes()
