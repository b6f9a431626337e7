"""The metadata of an adapter GGUF: what stock llama.cpp reads, then our own `alora.*` keys; and the
types that its tensors can have. No numbers are handled here, so numpy is not imported.

llama.cpp ignores keys that it does not know. The names of the general ones are of GGUF's
specification (docs/gguf.md in ggml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from alora_gguf.errors import FileFormatError
from alora_gguf.files import read_small
from alora_gguf.gguf.parser import ValueType
from alora_gguf.gguf.writer import Value

from .base.model import BaseModel
from .peft.config import PeftConfig
from .peft.invocation import Invocation
from .source import MAX_TEXT, Source

# output type -> (ggml's type number, llama.cpp's general.file_type)
OUTTYPES: Final = {"f32": (0, 0), "f16": (1, 1), "bf16": (30, 32), "q8_0": (8, 7)}
_QUANTIZATION: Final = 2  # of ggml's formats, which GGUF wants where a tensor is quantized
Q8_0_BLOCK: Final = 32  # values that share a scale

Entry = tuple[str, ValueType, Value]
CONTRACT: Final = "alora.io_yaml"

# a name on the hub; a path on somebody's disk would tell nobody anything
_HUB_NAME: Final = re.compile(r"([\w.-]+)/([\w.-]+)")
_HUB: Final = "https://huggingface.co/"


def stored_type(outtype: str, row: int) -> str:
    """The output type of a tensor with rows of `row` values: f16 where q8_0's blocks do not fit."""
    return "f16" if outtype == "q8_0" and row % Q8_0_BLOCK else outtype


def adapter_metadata(
    name: str,
    outtype: str,
    alpha: float,
    base: BaseModel,
    config: PeftConfig,
    invocation: Invocation,
    source: Source,
    sha256: str,
) -> list[Entry]:
    """All entries, in the order they are written; what is not known is left out.

    `sha256` is that of the weights' file.
    """
    text, number = ValueType.STRING, ValueType.UINT32
    entries: list[tuple[str, ValueType, Value | None]] = [
        ("general.architecture", text, base.architecture),
        ("general.type", text, "adapter"),
        ("general.name", text, name),
        ("general.file_type", number, OUTTYPES[outtype][1]),
        ("general.quantization_version", number, _QUANTIZATION if outtype == "q8_0" else None),
        ("general.license", text, source.licence),
        *_base_model(config.base_model),
        ("adapter.type", text, "lora"),
        ("adapter.lora.alpha", ValueType.FLOAT32, alpha),
        ("adapter.alora.invocation_tokens", ValueType.ARRAY, invocation.tokens or None),
        ("alora.invocation_text", text, invocation.text),
        ("alora.vocab.sha256", text, base.vocabulary_sha256),
        ("alora.source.repo", text, source.repo),
        ("alora.source.revision", text, source.revision),
        ("alora.source.path", text, source.path),
        ("alora.source.peft_version", text, config.peft_version),
        ("alora.source.sha256", text, sha256),
        (CONTRACT, text, _contract(source.io_yaml)),
    ]
    return [(key, kind, value) for key, kind, value in entries if value is not None]


def _contract(path: Path | None) -> str | None:
    try:
        return None if path is None else read_small(path, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{path}: is not UTF-8; save it again") from None


def _base_model(name: str | None) -> Iterator[tuple[str, ValueType, Value | None]]:
    found = _HUB_NAME.fullmatch(name or "")
    if found is None:
        return
    prefix = "general.base_model.0"
    yield "general.base_model.count", ValueType.UINT32, 1
    yield f"{prefix}.name", ValueType.STRING, found[2]
    yield f"{prefix}.organization", ValueType.STRING, found[1]
    yield f"{prefix}.repo_url", ValueType.STRING, f"{_HUB}{name}"
