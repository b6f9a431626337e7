"""What a conversion needs to know of the base: its GGUF's header, and nothing from its data."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from alora_gguf.errors import ConvertError, FileFormatError, UnsupportedAdapterError
from alora_gguf.gguf_header import GGUFHeader, read_header
from alora_gguf.gguf_types import ArrayRef, ValueType

from .families import FAMILIES, Family, supported_names

_INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)


class BaseModel:
    """A base GGUF whose family can be converted for.

    Raises FileFormatError for a file that is no sound GGUF, ConvertError for one that is no whole
    model, and UnsupportedAdapterError for a family that is not in FAMILIES.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GGUFHeader = read_header(path)
        kind = self.header.metadata.get("general.type", "model")
        if kind != "model":
            raise ConvertError(
                f"{path}: is a GGUF of type '{kind}', expected the base model the adapter is for"
            )
        self.architecture = self.header.architecture
        if self.architecture not in FAMILIES:
            raise UnsupportedAdapterError(
                f"{path}: adapters for the architecture '{self.architecture}' cannot be converted "
                f"yet; supported families: {supported_names()}"
            )
        self.family: Family = FAMILIES[self.architecture]
        parts = self.header.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise ConvertError(
                f"{path}: is one of {parts} parts of a split model; join them first with "
                "`llama-gguf-split --merge`"
            )
        if "token_embd.weight" not in self.header.tensors:
            raise ConvertError(f"{path}: has no 'token_embd.weight', so it is no language model")

    @property
    def n_layers(self) -> int:
        """The number of transformer blocks."""
        count = self._integer("block_count")
        if not 0 < count <= len(self.header.tensors):  # names are made for each: keep it bounded
            raise FileFormatError(
                f"{self.path}: '{self.architecture}.block_count' is {count}, but the file has "
                f"{len(self.header.tensors)} tensors"
            )
        return count

    @cached_property
    def n_vocab(self) -> int:
        """The number of token ids: the rows of the embedding."""
        shape = self.header.tensors["token_embd.weight"].shape
        return shape[1] if len(shape) > 1 else 0

    @property
    def tied(self) -> bool:
        """Whether the output projection is the embedding: the file has no tensor for it."""
        return "output.weight" not in self.header.tensors

    def n_heads(self, layer: int, *, keys: bool) -> int:
        """The number of query heads of a block, or of its key (and value) heads."""
        name = "attention.head_count_kv" if keys else "attention.head_count"
        if keys and f"{self.architecture}.{name}" not in self.header.metadata:
            name = "attention.head_count"
        key = f"{self.architecture}.{name}"
        value = self.header.value(key)
        if isinstance(value, ArrayRef):
            counts = self.header.array(key)
            if len(counts) <= layer:
                raise FileFormatError(f"{self.path}: '{key}' has no entry for layer {layer}")
            count = int(counts[layer])
        else:
            count = self._integer(name)
        if count <= 0:
            raise FileFormatError(f"{self.path}: '{key}' is {count} for layer {layer}")
        return count

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """A tensor's shape in ggml order, a weight's being (n_in, n_out); None if there is none."""
        info = self.header.tensors.get(tensor)
        return None if info is None else info.shape

    def _integer(self, name: str) -> int:
        value = self.header.value(f"{self.architecture}.{name}", *_INTEGERS)
        return value if isinstance(value, int) else 0
