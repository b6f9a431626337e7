"""A base model known by its GGUF's header; nothing of its data is read."""

from __future__ import annotations

from functools import cached_property

from alora_gguf.errors import ConvertError, FileFormatError, UnsupportedAdapterError
from alora_gguf.gguf.base import vocabulary_sha256
from alora_gguf.gguf.header import GGUFHeader
from alora_gguf.gguf.parser import ArrayRef, ValueType
from alora_gguf.gguf.soundness import departures

from .families import FAMILIES, supported_names
from .model import BaseModel, Shape
from .orders import DeltaHeads
from .tokenizer import GGUFTokenizer

_INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)


class GGUFBase(BaseModel):
    """A base by its header."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.label = header.name
        self._check_kind()
        architecture = header.architecture
        if architecture not in FAMILIES:
            raise UnsupportedAdapterError(
                f"{self.label}: adapters for the architecture '{architecture}' cannot be "
                f"converted yet; supported families: {supported_names()}"
            )
        self.family = FAMILIES[architecture]
        embedding = header.tensors["token_embd.weight"].shape
        self.n_vocab = embedding[1] if len(embedding) > 1 else 0
        self.n_layers = self._integer("block_count")
        if not 0 < self.n_layers <= len(header.tensors):  # names are made for each: bound it
            raise FileFormatError(
                f"{self.label}: '{architecture}.block_count' is {self.n_layers}, but the file has "
                f"{len(header.tensors)} tensors; download or convert it again"
            )
        keys = ("general.name", "general.basename", "general.source.huggingface.repository")
        values = [header.metadata.get(key) for key in keys]
        stated = [value for value in values if isinstance(value, str) and value]
        self.names = tuple(stated or [header.name])
        self.tokenizer = GGUFTokenizer(header)
        self.departures = departures(header)

    def _check_kind(self) -> None:
        header = self.header
        kind = header.metadata.get("general.type", "model")
        if kind != "model":
            raise ConvertError(
                f"{self.label}: is a GGUF of type '{kind}', expected a base model; give "
                "the file of the one that the adapter was trained on"
            )
        parts = header.metadata.get("split.count", 0)
        whole = header.metadata.get("split.tensors.count") == len(header.tensors)
        if isinstance(parts, int) and parts > 1 and not whole:
            raise ConvertError(
                f"{self.label}: is one of {parts} parts of a split model; give the first, with the "
                "others beside it under the names they were published with, or join them with "
                "`llama-gguf-split --merge`"
            )
        if "token_embd.weight" not in header.tensors:
            raise ConvertError(
                f"{self.label}: has no 'token_embd.weight', so it is not a language model; give "
                "the model the adapter was trained on"
            )

    @cached_property
    def vocabulary_sha256(self) -> str | None:
        """The hash of `tokenizer.ggml.tokens`; None if the file has no vocabulary."""
        return vocabulary_sha256(self.header)

    def shape(self, tensor: str) -> Shape | None:
        """A tensor's shape in ggml order, a weight's being (n_in, n_out); None if there is none."""
        info = self.header.tensors.get(tensor)
        return None if info is None else info.shape

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
                raise FileFormatError(
                    f"{self.label}: '{key}' has no entry for layer {layer}; convert the model again"
                )
            count = int(counts[layer])
        else:
            count = self._integer(name)
        if count <= 0:
            raise FileFormatError(
                f"{self.label}: '{key}' is {count} for layer {layer}, expected the number of "
                "attention heads; convert the model again"
            )
        return count

    def attention_rows(self, layer: int) -> tuple[int, int, int]:
        """The rows of a block's query, key and value projections."""
        queries, keys = self.n_heads(layer, keys=False), self.n_heads(layer, keys=True)
        width = self.header.tensors["token_embd.weight"].shape[0] // queries
        k, v = (
            self._integer(name) if f"{self.architecture}.{name}" in self.header.metadata else width
            for name in ("attention.key_length", "attention.value_length")
        )
        return queries * k, keys * k, keys * v

    def delta_heads(self) -> DeltaHeads:
        """The heads of a gated delta net's blocks, for families that have such."""
        names = ("ssm.group_count", "ssm.time_step_rank", "ssm.state_size", "ssm.inner_size")
        keys, values, width, inner = sizes = [self._integer(name) for name in names]
        if min(sizes) <= 0 or values % keys or inner % values:
            given = ", ".join(f"{n} {size}" for n, size in zip(names, sizes, strict=True))
            raise FileFormatError(
                f"{self.label}: a delta net with {given} cannot be; convert the model again"
            )
        return DeltaHeads(keys, values, width, inner // values)

    def _integer(self, name: str) -> int:
        value = self.header.value(f"{self.architecture}.{name}", *_INTEGERS)
        return value if isinstance(value, int) else 0
