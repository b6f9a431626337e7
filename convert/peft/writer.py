"""Writes safetensors files; weights.py has the layout."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> int:
    """Writes tensors, by name a type such as "BF16" and the values' bits, sorted by their names.

    Returns the size in bytes. Raises OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        kind, values = tensors[name]
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [end, end + values.nbytes],
        }
        end += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name][1].tobytes())
    return 8 + len(text) + end
