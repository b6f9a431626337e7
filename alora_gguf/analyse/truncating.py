"""Writes an adapter at a lower rank: the best approximation of dW there is, by its SVD."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from alora_gguf._calls import checked
from alora_gguf.errors import ConvertError, InputError
from alora_gguf.files import check_target
from alora_gguf.gguf.adapter import AdapterFile, Pair
from alora_gguf.options import check_int

from .factors import Doubles, Factors, factors_of
from .records import TruncatedMatrix, Truncation
from .rewriting import Stacks, write_changed

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
    file = check_truncation(adapter, output, rank=rank, overwrite=overwrite)
    return write_cut(file, Path(output), rank, overwrite=overwrite)


def write_cut(file: AdapterFile, target: Path, rank: int, *, overwrite: bool) -> Truncation:
    """What truncate() does; with the adapter's own rank it writes the same dW with other factors,
    which differs by rounding.
    """
    matrices, weights = list[TruncatedMatrix](), list[float]()

    def shorter(pair: Pair) -> Stacks | None:
        cut = _Cut(file, pair, min(rank, pair.rank))
        matrices.extend(cut.matrices)
        weights.extend(cut.squares)
        return cut.stacks if pair.rank > rank or rank == file.rank else None

    nbytes = write_changed(file, target, shorter, overwrite=overwrite)
    whole = sum(weights)
    kept = sum(w * m.kept for w, m in zip(weights, matrices, strict=True)) / whole if whole else 1.0
    return Truncation(target, rank, nbytes, kept, tuple(matrices))


class _Cut:
    """A target at a lower rank: its `stacks`. `squares` are ||dW||_F^2 of its matrices before."""

    def __init__(self, file: AdapterFile, pair: Pair, rank: int) -> None:
        self.matrices: list[TruncatedMatrix] = []
        self.squares: list[float] = []
        self._rank = rank
        # the scale is alpha/rank then; without an alpha it is 1 before and after
        self._more = pair.rank / rank if file.alpha else 1.0
        found = [self._halves(factors) for factors in factors_of(file, pair)]
        self.stacks = np.stack([a for a, _ in found]), np.stack([b for _, b in found])

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
