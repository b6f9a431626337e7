"""libggml-base's functions that are called from Python: what a tensor is, and quantizing rows."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.library import library_dir

_LIBRARIES: Final = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
# ggml ends the process for other types; IQ1_S, IQ2_XXS and IQ2_XS need an importance matrix
QUANTIZABLE: Final = frozenset(
    {
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
        *("IQ1_M", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    }
)


@cache
def load_ggml(folder: Path) -> Any:
    """The functions of ggml.h and ggml-backend.h that are used here, from the library there."""
    library = ctypes.CDLL(str(folder / _LIBRARIES.get(sys.platform, "libggml-base.so")))
    pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result in (
        ("ggml_get_name", ctypes.c_char_p),
        ("ggml_nelements", count),
        ("ggml_nrows", count),
        ("ggml_nbytes", size),
        ("ggml_is_contiguous", ctypes.c_bool),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [pointer], result
    library.ggml_backend_tensor_get.argtypes = [pointer, pointer, size, size]
    library.ggml_backend_tensor_get.restype = None
    chunk = library.ggml_quantize_chunk
    chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    chunk.restype = size
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


def quantize_rows(rows: NDArray[np.float32], kind: int, nbytes: int) -> bytes | None:
    """Rows [n, n_in] in a ggml type of QUANTIZABLE, of `nbytes` in all, as llama.cpp's own tools
    write them without an importance matrix; None if the type cannot hold a value.
    """
    ggml = load_ggml(library_dir())
    source = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(source).all():
        return None
    out = np.empty(nbytes, np.uint8)
    ggml.ggml_quantize_chunk(kind, source.ctypes.data, out.ctypes.data, 0, *source.shape, None)
    valid = ggml.ggml_validate_row_data(kind, out.ctypes.data, nbytes)
    return out.tobytes() if valid else None
