"""Makes GGUF files byte by byte, with values and tables that a careful writer would not write."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alora_gguf.gguf.header import GGUFHeader
from alora_gguf.gguf.parser import GGML_TYPES, VALUE_FORMATS, ValueType

# name -> ggml type and shape in ggml order
Tensors = dict[str, tuple[str, tuple[int, ...]]]

_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
_PYTHON = {
    str: ValueType.STRING,
    bool: ValueType.BOOL,
    int: ValueType.UINT32,
    float: ValueType.FLOAT32,
}


def gguf_bytes(metadata: Mapping[str, Any], tensors: Tensors) -> bytes:
    """A GGUF (version 3) whose weights are zero.

    Strings, bools, ints (u32), floats (f32) and lists of them are written as such; a pair of
    ValueType and value is written as that type.
    """
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    entries = [_string(key) + _typed(value) for key, value in metadata.items()]
    table, size = [], 0
    for name, (kind, shape) in tensors.items():
        size += -size % 32
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        table.append(_string(name) + dims + struct.pack("<IQ", _NUMBERS[kind], size))
        _, per_block, block_bytes = GGML_TYPES[_NUMBERS[kind]]
        elements = 1
        for n in shape:
            elements *= n
        size += elements // per_block * block_bytes
    head += b"".join(entries) + b"".join(table)
    return head + bytes(-len(head) % 32) + bytes(size + -size % 32)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    if isinstance(value, tuple):
        kind, value = value
    else:
        kind = ValueType.ARRAY if isinstance(value, list) else _PYTHON[type(value)]
    if kind is not ValueType.ARRAY:
        return struct.pack("<I", kind) + _payload(kind, value)
    inner = _PYTHON[type(value[0])] if value else ValueType.UINT32
    head = struct.pack("<IIQ", kind, inner, len(value))
    return head + b"".join(_payload(inner, item) for item in value)


def _payload(kind: ValueType, value: Any) -> bytes:
    if kind is ValueType.STRING:
        return _string(value)
    return struct.pack("<" + VALUE_FORMATS[kind], value)


def tensor_array(header: GGUFHeader, name: str) -> NDArray[Any]:
    """A tensor's values in numpy order, the reverse of ggml's: a weight is [out, in]. BF16 is
    widened to float32.
    """
    info, raw = header.tensors[name], header.tensor_data(name)
    if info.type_name == "BF16":
        values: NDArray[Any] = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[info.type_name])
    return values.reshape(info.shape[::-1])
