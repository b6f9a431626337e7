"""Writes states to a safetensors file: the length of a header, the header as JSON, the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.files import write_whole

_TYPES: Final = {"float32": "F32", "int32": "I32"}
_ALIGNED: Final = 8  # bytes, so that tensors can be used where they are


def write_states(path: Path, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
    """Writes float32 and int32 arrays by name, and `about` as the file's metadata; a file that
    exists is replaced. Raises InputError, and FileFormatError if the file system refuses.
    """
    header, end = dict[str, Any]({"__metadata__": dict(about)}), 0
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = _TYPES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with write_whole(path, what="safetensors") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
