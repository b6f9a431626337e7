"""Writes an adapter at a lower rank: the best approximation of dW there is, by its SVD."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from alora_gguf._calls import checked
from alora_gguf.errors import ConvertError, InputError
from alora_gguf.files import check_target
from alora_gguf.gguf.adapter import AdapterFile, Pair
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import TensorInfo
from alora_gguf.gguf.writer import OutTensor, write_gguf
from alora_gguf.options import check_int

from .factors import Doubles, Factors, factors_of
from .records import TruncatedMatrix, Truncation

_F32: Final = 0
_ALIGNMENT: Final = "general.alignment"  # the writer's is GGUF's default
Halves = tuple[Doubles, Doubles]
"""A [r, n_in] and B [n_out, r]."""


@checked
def check_truncation(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rank: int,
    overwrite: bool = False,
) -> AdapterFile:
    """The adapter, if truncate() can truncate it; raises what that would."""
    check_int(rank, "rank", 1)
    file = AdapterFile.read(adapter)
    check_target(Path(output), overwrite=overwrite, what="adapter's GGUF", error=ConvertError)
    if rank >= file.rank:
        raise InputError(
            f"rank is {rank}, but {file.path} has rank {file.rank}; give a lower one to truncate it"
        )
    return file


@checked
def truncate(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rank: int,
    overwrite: bool = False,
) -> Truncation:
    """Writes the adapter of the GGUF file `adapter` to `output` with every dW cut to `rank` by its
    SVD, which leaves the least ||dW - dW'||_F that this rank allows (Eckart and Young 1936).

    Metadata stay as they are, alpha too: the new A and B make up for the scale alpha/rank, which
    the lower rank makes larger. Cut matrices are written as F32; those that have no higher rank
    stay byte for byte.

    Raises InputError if `output` exists and `overwrite` is false, or if no matrix has a rank above
    `rank`; AdapterFormatError and MissingFileError for the file, ConvertError.
    """
    target, file = Path(output), check_truncation(adapter, output, rank=rank, overwrite=overwrite)
    header = read_header(file.data, name=str(file.path))
    tensors, matrices, weights = dict[str, OutTensor](), list[TruncatedMatrix](), list[float]()
    for pair in file.pairs:
        cut, shorter = _Cut(file, pair, min(rank, pair.rank)), pair.rank > rank
        for info in (pair.a, pair.b):
            tensors[info.name] = cut.tensor(info) if shorter else _as_it_is(file, info)
        matrices += cut.matrices
        weights += cut.squares
    metadata = [
        (key, header.types[key], entry)
        for key, entry in header.entries.items()
        if key != _ALIGNMENT
    ]
    # in the file's order
    ordered = [tensors[name] for name in header.tensors]
    nbytes = write_gguf(target, metadata, ordered, overwrite=overwrite)
    whole = sum(weights)
    kept = sum(w * m.kept for w, m in zip(weights, matrices, strict=True)) / whole if whole else 1.0
    return Truncation(target, rank, nbytes, kept, tuple(matrices))


def _as_it_is(file: AdapterFile, info: TensorInfo) -> OutTensor:
    data = memoryview(file.data)[info.offset : info.offset + info.nbytes]
    return OutTensor(info.name, info.shape, info.type, lambda: data)


class _Cut:
    """A target at a lower rank. `squares` are ||dW||_F^2 of its matrices before."""

    def __init__(self, file: AdapterFile, pair: Pair, rank: int) -> None:
        self.matrices: list[TruncatedMatrix] = []
        self.squares: list[float] = []
        self._pair, self._rank = pair, rank
        self._is_embedding = pair.target.endswith("token_embd.weight")
        # the scale is alpha/rank then; without an alpha it is 1 before and after
        self._more = pair.rank / rank if file.alpha else 1.0
        found = [self._halves(factors) for factors in factors_of(file, pair)]
        self._a = np.stack([a for a, _ in found]).astype("<f4")
        self._b = np.stack([b for _, b in found]).astype("<f4")

    def _halves(self, factors: Factors) -> Halves:
        # of B A itself: its scale is what the file says, and the new one's is alpha/rank
        u, s, vt = replace(factors, scale=1.0).svd()
        squares, k = s**2, self._rank
        total = float(squares.sum())
        self.squares.append(total * factors.scale**2)
        self.matrices.append(
            TruncatedMatrix(
                factors.place.target,
                factors.place.expert,
                factors.rank,
                k,
                float(squares[:k].sum()) / total if total else 1.0,
            )
        )
        # min(rank, n_out, n_in) of them: what is missing is 0
        root = np.sqrt(s[:k] / self._more)
        a, b = np.zeros((k, vt.shape[1])), np.zeros((len(u), k))
        a[: len(root)], b[:, : len(root)] = root[:, None] * vt[:k], u[:, :k] * root
        return a, b

    def tensor(self, info: TensorInfo) -> OutTensor:
        is_a = info is self._pair.a
        array = self._a if is_a else self._b
        if len(info.shape) == 2:
            array = array[0]
        if is_a and self._is_embedding:
            array = array.T
        return OutTensor(info.name, array.shape[::-1], _F32, partial(_bytes, array))


def _bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return array.tobytes()
