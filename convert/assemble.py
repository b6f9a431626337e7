"""The values of what is written: a pair's A and B, put together from the adapter's tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plan import Pair, Piece
from .values import fold, head_order

Array = NDArray[np.floating[Any]]
Read = Callable[[str], Array]


def make_a(pair: Pair, read: Read) -> Array:
    """A pair's A in numpy's order: [r, n_in], [experts, r, n_in], or an embedding's [n_in, r]."""
    if pair.flip_a:
        columns: Array = read(pair.pieces[0].a.name).T
        return columns
    if _is_plain(pair):
        return read(pair.pieces[0].a.name)
    parts = [(experts, ranks, _columns(piece, read)) for piece, experts, ranks in _spots(pair)]
    out = _zeros(pair, (pair.rank, pair.n_in), [values for *_, values in parts])
    for experts, ranks, values in parts:
        out[experts, ranks] = values
    return _shaped(out, pair)


def make_b(pair: Pair, read: Read, factors: list[float]) -> Array:
    """A pair's B [n_out, r] or [experts, n_out, r], each piece's multiplied with its factor.

    float64 where anything was multiplied, so that rounding happens once, later.
    """
    if _is_plain(pair):
        return _shaped(_rows(pair.pieces[0], read, factors[0]), pair)
    parts = [
        (experts, ranks, piece.first, _rows(piece, read, factor))
        for (piece, experts, ranks), factor in zip(_spots(pair), factors, strict=True)
    ]
    out = _zeros(pair, (pair.n_out, pair.rank), [values for *_, values in parts])
    for experts, ranks, first, values in parts:
        out[experts, first : first + values.shape[1], ranks] = values
    return _shaped(out, pair)


def _zeros(pair: Pair, shape: tuple[int, int], parts: list[Array]) -> Array:
    """[experts or 1, *shape], in the widest of the parts' types."""
    return np.zeros((max(pair.n_experts, 1), *shape), np.result_type(*(p.dtype for p in parts)))


def _shaped(out: Array, pair: Pair) -> Array:
    """Without the first dimension where the target has no experts."""
    if pair.n_experts:
        return out
    matrix: Array = out[0]
    return matrix


def _is_plain(pair: Pair) -> bool:
    """Whether the one piece is the pair: nothing to put together."""
    piece = pair.pieces[0]
    whole = piece.rows[1] - piece.rows[0] == pair.n_out
    return len(pair.pieces) == 1 and not pair.n_experts and whole


def _columns(piece: Piece, read: Read) -> Array:
    """A piece's A, as [experts, rank, n_in]; 1 expert if it has none."""
    if piece.swapped:
        columns: Array = _rank_by_rank(read(piece.b.name), piece.rank).swapaxes(1, 2)
        return columns
    return _expert_by_expert(read(piece.a.name), piece.rank)


def _rows(piece: Piece, read: Read, factor: float) -> Array:
    """A piece's rows of B times `factor`, as [experts, rows, rank]; 1 expert if it has none."""
    first, last = piece.rows
    if piece.swapped:
        whole = _expert_by_expert(read(piece.a.name), piece.rank).swapaxes(1, 2)
        return fold(whole[:, first:last], factor)
    values = fold(read(piece.b.name)[first:last], factor)
    if piece.heads:
        values = head_order(values, piece.heads)
    return _rank_by_rank(values, piece.rank)


# PEFT keeps several experts' A expert by expert, and their B rank by rank
# (ParamWrapper.get_delta_weight in peft/tuners/lora/layer.py).


def _expert_by_expert(values: Array, rank: int) -> Array:
    """[experts·rank, n] as [experts, rank, n]."""
    out: Array = values.reshape(-1, rank, values.shape[1])
    return out


def _rank_by_rank(values: Array, rank: int) -> Array:
    """[n, rank·experts] as [experts, n, rank]."""
    out: Array = values.reshape(values.shape[0], rank, -1).transpose(2, 0, 1)
    return out


def _spots(pair: Pair) -> Iterator[tuple[Piece, slice, slice]]:
    """For each piece, the experts and the ranks that are its own in A and B."""
    packed = sum(piece.rank for piece in pair.pieces if piece.expert is None)
    used: Counter[int | None] = Counter()
    for piece in pair.pieces:
        start = used[piece.expert] + (0 if piece.expert is None else packed)
        used[piece.expert] += piece.rank
        ranks = slice(start, start + piece.rank)
        expert = piece.expert
        yield piece, slice(None) if expert is None else slice(expert, expert + 1), ranks
