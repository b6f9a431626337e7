"""What `inspection` finds out about a GGUF file: plain records, for programs and for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from .parser import Scalar


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """An array that was left in the file: the type of its elements, such as "string", and count."""

    array_of: str
    count: int


MetadataValue = Scalar | tuple[Scalar, ...] | ArraySummary


@dataclass(frozen=True, slots=True)
class TypeTotal:
    """All tensors of one ggml type together."""

    type: str
    n_tensors: int
    n_parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Like weights of several layers that an adapter changes in the same way.

    `name` leaves out the layer and ".weight", such as "attn_q"; `layers` are ascending, and () for
    a weight outside the layers. `type` is "F16", or "F16/F32" where A's differs from B's. A pair
    maps `n_in` to `n_out` through `rank`, in each of `n_experts` (None for a plain matrix);
    for token_embd `n_in` is the vocabulary. `scale` is alpha/rank, 1 if the file has no alpha, as
    llama.cpp has it. `nbytes` counts A and B of all layers.
    """

    name: str
    layers: tuple[int, ...]
    rank: int
    scale: float
    type: str
    n_in: int
    n_out: int
    n_experts: int | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A base's tokens, counted; `model` and `pre` name the tokenizer, such as "gpt2", "qwen2"."""

    size: int | None
    model: str | None
    pre: str | None
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a split model a file is: `part` counts from 1, `n_tensors` is of all parts."""

    part: int
    n_parts: int
    n_tensors: int | None


@dataclass(frozen=True)
class FileSummary:
    """What every GGUF file has.

    kind         "alora", "lora", "model", "vocabulary" (a model without weights), "mmproj", or
                 what general.type says, such as "imatrix"
    nbytes       the size of the file; `weights_nbytes` that of the tensors, without padding
    types        the tensors by ggml type, the most bytes first
    metadata     every key in the file's order; long arrays, and all of a tokenizer's, only counted
    problems     what is wrong with the file, one sentence each; () for a sound one
    """

    path: Path
    kind: str
    architecture: str | None
    name: str | None
    gguf_version: int
    nbytes: int
    n_tensors: int
    n_parameters: int
    weights_nbytes: int
    types: tuple[TypeTotal, ...]
    metadata: Mapping[str, MetadataValue]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON can hold it; numbers that are not finite become strings."""
        shown: dict[str, Any] = plain(self)
        for last in ("metadata", "problems"):  # long, and of interest once the rest is known
            shown[last] = shown.pop(last)
        return shown


@dataclass(frozen=True)
class AdapterSummary(FileSummary):
    """A LoRA or aLoRA.

    `invocation` is () for a plain LoRA; `invocation_text` is None where the file does not say.
    `alpha` is None if there is none. `targets` and `ranks` leave out tensors that are not pairs;
    `problems` names those. The weights themselves are not looked at.
    """

    invocation_text: str | None
    invocation: tuple[int, ...]
    alpha: float | None
    ranks: tuple[int, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class BaseSummary(FileSummary):
    """A base, or any other file that is not an adapter; None is what the file does not say.

    `heads` and `kv_heads` are one number, or one for each layer. `tied_output` is whether the
    output head shares the embedding's weight; in a split model one part may not know.
    """

    size_label: str | None
    layers: int | None
    n_embd: int | None
    heads: int | tuple[int, ...] | None
    kv_heads: int | tuple[int, ...] | None
    context_length: int | None
    experts: int | None
    experts_used: int | None
    vocabulary: Vocabulary | None
    tied_output: bool | None
    split: Split | None


def plain(value: Any) -> Any:
    """A value of a record in terms of dict, list, str, int, float, bool and None."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
