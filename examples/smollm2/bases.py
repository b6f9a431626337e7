"""SmolLM2's base in other types: what its GGUF dequantises to, as F16 or quantised again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

TYPES: Final = {
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_copy(source: Path, target: Path, name: str) -> None:
    """The base in `source` with all its matrices of the type `name`; whatever else it says stays.
    Nothing of what the source's own type lost comes back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        _write(GGUFReader(source), unfinished, *TYPES[name])
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(
    reader: GGUFReader, path: Path, kind: GGMLQuantizationType, file_type: LlamaFileType
) -> None:
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, arch)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], inner)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        chosen = GGMLQuantizationType.F32 if len(tensor.shape) == 1 else kind
        writer.add_tensor(tensor.name, quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
