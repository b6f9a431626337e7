"""An aLoRA's weights as a plain LoRA, to show what the difference costs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alora_gguf import Model

HOW: Final = (
    "the aLoRA's own weights without an invocation, which makes a plain LoRA of them, on from the "
    "first token; what a LoRA costs depends on its shape, not on its weights' values"
)


def load_as_plain_lora(model: Model, name: str, alora: Path) -> None:
    """Loads the aLoRA in a file as a plain LoRA: a copy of the file that has no invocation, which
    is gone afterwards. Raises what Model.load_adapter() does.
    """
    with tempfile.TemporaryDirectory(prefix="alora-gguf-") as folder:
        copy = Path(folder) / alora.name
        _write_plain_lora(alora, copy)
        model.load_adapter(name, copy)


def _write_plain_lora(alora: Path, copy: Path) -> None:
    from alora_gguf import AdapterFile
    from alora_gguf.gguf.header import read_header
    from alora_gguf.gguf.types import ValueType
    from alora_gguf.gguf.writer import OutTensor, Value, write_gguf

    file = AdapterFile.read(alora)
    header = read_header(file.data, name=str(alora))
    metadata: list[tuple[str, ValueType, Value]] = [
        ("general.architecture", ValueType.STRING, file.architecture),
        ("general.type", ValueType.STRING, "adapter"),
        ("adapter.type", ValueType.STRING, "lora"),
        ("adapter.lora.alpha", ValueType.FLOAT32, file.alpha),
    ]
    tensors = [
        OutTensor(part.name, part.shape, part.type, partial(header.tensor_data, part.name))
        for pair in file.pairs
        for part in (pair.a, pair.b)
    ]
    write_gguf(copy, metadata, tensors, overwrite=False)
