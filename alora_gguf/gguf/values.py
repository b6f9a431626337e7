"""A tensor's numbers, of whatever type it is stored in, and numbers as a type stores them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import ModelError

from .parser import TensorInfo

Values = NDArray[Any]  # of any type of float
F32: Final = 0
F16: Final = 1
BF16: Final = 30
"""ggml's numbers of types."""


def values(data: memoryview, info: TensorInfo, label: str) -> Values:
    """A tensor's numbers, or those of whole rows of it, in numpy's order of dimensions (the first
    one of rows only counts them). Raises ModelError for a type that cannot be dequantised; `label`
    is the file's name.
    """
    kind = info.type_name
    if kind in ("F32", "F16", "F64"):
        flat: Values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind])
    elif kind == "BF16":
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            rows = np.frombuffer(data, np.uint8).reshape(-1, info.nbytes // _n_rows(info))
            flat = dequantize(rows, GGMLQuantizationType(info.type))
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                f"{label}: tensor '{info.name}' is {kind}, which the installed gguf cannot "
                "dequantise; use a file in another quantization"
            ) from error
    return flat.reshape(-1, *info.shape[-2::-1]) if len(info.shape) > 1 else flat


def _n_rows(info: TensorInfo) -> int:
    n = 1
    for size in info.shape[1:]:
        n *= size
    return n


def stored(array: Values, kind: int) -> bytes:
    """The bytes of numbers in one of the types F32, F16 and BF16, each the nearest there is; they
    are finite and fit it.
    """
    found: Values = array.astype("<f2" if kind == F16 else "<f4")
    if kind == BF16:
        bits = found.view("<u4")
        even = (bits >> np.uint32(16)) & np.uint32(1)  # of two equally near ones, the even one
        found = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2")
    return found.tobytes()
