"""The numbers of a conversion: a pair's A and B, put together from the adapter's tensors, a scale
folded into B, the order of rows, one rounding, and checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import ConvertError, FileFormatError

from .metadata import Q8_0_BLOCK
from .plan import Pair, Piece

Array = NDArray[np.floating[Any]]
Read = Callable[[str], Array]
_Part = tuple[tuple[slice, ...], Array]  # values, and where they belong


def make_a(pair: Pair, read: Read) -> Array:
    """A pair's A in numpy's order: [r, n_in], [experts, r, n_in], or an embedding's [n_in, r]."""
    if pair.flip_a:
        columns: Array = read(pair.pieces[0].a.name).T
        return columns
    parts: list[_Part] = [
        ((experts, ranks), _columns(piece, read)) for piece, experts, ranks in _spots(pair)
    ]
    return _put_together(pair, (pair.rank, pair.n_in), parts)


def make_b(pair: Pair, read: Read, factors: list[float]) -> Array:
    """A pair's B [n_out, r] or [experts, n_out, r], each piece's multiplied with its factor.

    float64 where anything was multiplied, so that rounding happens once, later.
    """
    parts: list[_Part] = []
    for (piece, experts, ranks), factor in zip(_spots(pair), factors, strict=True):
        values = _rows(piece, read, factor)
        rows = slice(piece.first, piece.first + values.shape[1])
        parts.append(((experts, rows, ranks), values))
    return _put_together(pair, (pair.n_out, pair.rank), parts)


def _put_together(pair: Pair, shape: tuple[int, int], parts: list[_Part]) -> Array:
    """[experts, *shape], or `shape` without experts, in the widest of the parts' types."""
    dtype = np.result_type(*(values.dtype for _, values in parts))
    out: Array = np.zeros((max(pair.n_experts, 1), *shape), dtype)
    for spot, values in parts:
        out[spot] = values
    matrix: Array = out[0]
    return out if pair.n_experts else matrix


def _columns(piece: Piece, read: Read) -> Array:
    """A piece's A, as [experts, rank, n_in]; 1 expert if it has none."""
    if piece.swapped:
        columns: Array = _rank_by_rank(read(piece.b.name), piece.rank).swapaxes(1, 2)
        return columns
    values = _expert_by_expert(read(piece.a.name), piece.rank)
    return values if piece.columns is None else values[:, :, piece.columns.index()]


def _rows(piece: Piece, read: Read, factor: float) -> Array:
    """A piece's rows of B times `factor`, as [experts, rows, rank]; 1 expert if it has none."""
    first, last = piece.rows
    own: slice | NDArray[np.intp] = slice(first, last)
    if piece.joined is not None:
        own = piece.joined.index()[own]
    if piece.swapped:
        whole = _expert_by_expert(read(piece.a.name), piece.rank).swapaxes(1, 2)
        return fold(whole[:, own], factor)
    values = fold(read(piece.b.name)[own], factor)
    if piece.order is not None:
        values = values[piece.order.index()]
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


def fold(b: NDArray[np.float32], factor: float) -> NDArray[np.floating]:
    """B times `factor` in float64; B itself if the factor is 1, so that nothing is rounded."""
    return b if factor == 1.0 else b.astype(np.float64) * factor


def check_finite(values: NDArray[np.float32], file: str, tensor: str) -> None:
    """Raises FileFormatError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise FileFormatError(
            f"{file}: tensor '{tensor}' has {bad} values that are NaN or infinite; the adapter is "
            "damaged or its training diverged"
        )


@dataclass(frozen=True)
class Encoded:
    """A tensor as a file keeps it.

    data   its bytes
    acts   whether any of its values was not zero
    lost   how many of these became zero by rounding; not counted for q8_0
    """

    data: memoryview
    acts: bool
    lost: int


def encode(values: NDArray[np.floating], outtype: str, tensor: str) -> Encoded:
    """`values` rounded once to `outtype`, to nearest, ties to even; for q8_0, rows of a multiple of
    32 values, as ggml's reference quantizes them.

    Raises ConvertError if a value is too large for the type, or NaN, or if all became zero.
    """
    if outtype == "q8_0":
        return _to_q8_0(values, tensor)
    to_bits, infinite = _ROUNDERS[outtype]
    bits = to_bits(np.ascontiguousarray(values))
    magnitude = bits & (~bits.dtype.type(0) >> 1)  # without the sign
    if magnitude.size and magnitude.max() >= infinite:
        raise _too_large(values, outtype, tensor)
    kept = int(np.count_nonzero(magnitude))
    lost = 0 if kept == magnitude.size else int(np.count_nonzero(values)) - kept
    if lost and not kept:
        raise _too_small(outtype, tensor)
    return Encoded(bits.reshape(-1).data.cast("B"), bool(kept), lost)


def _to_q8_0(values: NDArray[np.floating], tensor: str) -> Encoded:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = np.ascontiguousarray(values, np.float32)
        data: NDArray[np.uint8] = quantize(single, GGMLQuantizationType.Q8_0)
    scales = data.reshape(-1, 2 + Q8_0_BLOCK)[:, :2].copy().view("<f2")
    if not np.isfinite(scales).all():
        raise _too_large(values, "q8_0", tensor)
    acts = bool(values.any())
    if acts and not scales.any():
        raise _too_small("q8_0", tensor)
    return Encoded(data.reshape(-1).data, acts, 0)


def _too_large(values: NDArray[np.floating], outtype: str, tensor: str) -> ConvertError:
    largest = float(np.abs(values).max())
    return ConvertError(
        f"tensor '{tensor}' has values up to {largest:.4g}, too large for {outtype}; choose f32 "
        "(or bf16) with --outtype"
    )


def _too_small(outtype: str, tensor: str) -> ConvertError:
    return ConvertError(
        f"all values of tensor '{tensor}' are too small for {outtype} and would become zero; "
        "choose f32 (or bf16) with --outtype"
    )


def _cast(values: NDArray[np.floating], to: str, bits: str) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(to, copy=False).view(bits)


def _to_bf16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Rounds to bfloat16 (as uint16), once: float64 goes through a float32 rounded to odd.

    Rounding to odd keeps, in the last bit, whether anything was cut off, which is all that the
    second rounding needs to know (Boldo and Melquiond, 2008).
    """
    single = values.astype(np.float32)
    bits = single.view(np.uint32).copy()
    if values.dtype == np.float64:
        inexact = single.astype(np.float64) != values
        too_far = inexact & (np.abs(single.astype(np.float64)) > np.abs(values))
        bits -= too_far.astype(np.uint32)  # one step towards zero: the magnitude is the low bits
        bits |= inexact.astype(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


# how to round to a type, and the bits of its infinity; NaN's are larger
_ROUNDERS: Final[dict[str, tuple[Callable[[NDArray[np.floating]], NDArray[Any]], int]]] = {
    "f32": (partial(_cast, to="<f4", bits="<u4"), 0x7F800000),
    "f16": (partial(_cast, to="<f2", bits="<u2"), 0x7C00),
    "bf16": (_to_bf16, 0x7F80),
}
