"""The one writer of the tests' small GGUFs, models and adapters alike, where gguf_bytes.py is not
needed for what no writer would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import ArrayRef

from .gguf_bytes import tensor_array

Array = np.ndarray[Any, Any]
Type = gguf.GGUFValueType
_TYPES = {bool: Type.BOOL, int: Type.UINT32, float: Type.FLOAT32, str: Type.STRING}


def make_gguf(
    path: Path,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array | tuple[Array, gguf.GGMLQuantizationType | None]] | None = None,
    *,
    architecture: str = "llama",
) -> Path:
    """Writes a file of `keys` and `tensors` (shapes in numpy order), in this order.

    A bool, int (uint32), float (float32), str or list of them (ints: int32) is written as such. A
    pair of value and GGUFValueType is written as that type; of a list it is the elements' type. A
    key of None is left out, even the architecture. A tensor beside a raw type holds its bytes.
    """
    writer = gguf.GGUFWriter(path, architecture)
    entries = writer.kv_data[0]
    for key, value in (keys or {}).items():
        if value is None:
            entries.pop(key, None)
        elif value != []:
            entries[key] = _value(value)
    for name, data in (tensors or {}).items():
        values, raw = data if isinstance(data, tuple) else (data, None)
        writer.add_tensor(name, values, raw_dtype=raw)
    return finish(writer, path)


def rewritten(
    source: Path,
    target: Path,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF written anew with other `keys` and `tensors`; those of None are left out."""
    header = read_header(source)
    held: dict[str, Any] = {}
    for key, value in header.metadata.items():
        array = isinstance(value, ArrayRef)
        kind = value.type if isinstance(value, ArrayRef) else header.types[key]
        held[key] = (list(header.array(key)) if array else value, Type(kind))
    weights: dict[str, Any] = {name: tensor_array(header, name) for name in header.tensors}
    weights = {k: v for k, v in {**weights, **(tensors or {})}.items() if v is not None}
    return make_gguf(target, {**held, **(keys or {})}, weights)


def adapter_keys(alpha: float | None = 16.0, **more: Any) -> dict[str, Any]:
    """An adapter's usual metadata, and `more` with __ for dots."""
    return {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def token_ids(ids: Any) -> tuple[list[int], gguf.GGUFValueType]:
    """An array of uint32, as invocations are."""
    return list(ids), Type.UINT32


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _value(value: Any) -> gguf.GGUFValue:
    if isinstance(value, tuple):
        value, kind = value
        if isinstance(value, list):
            return gguf.GGUFValue(value, Type.ARRAY, kind)
        return gguf.GGUFValue(value, kind)
    if isinstance(value, list):
        return gguf.GGUFValue(value, Type.ARRAY)
    return gguf.GGUFValue(value, _TYPES[type(value)])
