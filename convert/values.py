"""The numbers of a conversion: folding a scale into B, the order of heads, one rounding, checks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import ConvertError, FileFormatError

from .outtypes import Q8_0_BLOCK


def head_order(rows: NDArray[np.floating], heads: int) -> NDArray[np.floating]:
    """Rows [n_out, r] of a query or key projection in llama.cpp's order.

    transformers rotates the first half of a head with the second half, llama.cpp neighbours with
    each other: row i of the first half goes to 2i, row i of the second to 2i + 1. (`permute` in
    upstream's conversion/llama.py does the same to the base.)
    """
    n_out, rank = rows.shape
    halves = rows.reshape(heads, 2, n_out // heads // 2, rank)
    ordered: NDArray[np.floating] = halves.swapaxes(1, 2).reshape(n_out, rank)
    return ordered


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


def encode(values: NDArray[np.floating], outtype: str, tensor: str) -> tuple[bytes, int]:
    """`values` rounded once to `outtype` (to nearest, ties to even), as a file keeps them.

    Returns the bytes and how many values other than zero became zero. q8_0 takes rows of a multiple
    of 32 values and has no such count. Raises ConvertError if a value is too large for the type, or
    if all of them became zero.
    """
    if outtype == "q8_0":
        return _to_q8_0(values, tensor), 0
    if outtype == "bf16":
        bits, infinite = _to_bf16(values), 0x7F80
    elif outtype == "f16":
        with np.errstate(over="ignore", under="ignore"):
            bits, infinite = values.astype("<f2").view("<u2"), 0x7C00
    else:
        with np.errstate(over="ignore", under="ignore"):
            bits, infinite = values.astype("<f4").view("<u4"), 0x7F800000
    magnitude = bits & (~bits.dtype.type(0) >> 1)  # without the sign
    if magnitude.size and magnitude.max() >= infinite:
        raise _too_large(values, outtype, tensor)
    lost = int(np.count_nonzero(values)) - int(np.count_nonzero(magnitude))
    if lost and not magnitude.any():
        raise _too_small(outtype, tensor)
    return bits.tobytes(), lost


def _to_q8_0(values: NDArray[np.floating], tensor: str) -> bytes:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = np.ascontiguousarray(values, np.float32)
        data: NDArray[np.uint8] = quantize(single, GGMLQuantizationType.Q8_0)
    scales = data.reshape(-1, 2 + Q8_0_BLOCK)[:, :2].copy().view("<f2")
    if not np.isfinite(scales).all():
        raise _too_large(values, "q8_0", tensor)
    if values.any() and not scales.any():
        raise _too_small("q8_0", tensor)
    return data.tobytes()


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
