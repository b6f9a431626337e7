"""What a conversion needs to know of the base model, whatever form the base comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError

from .families import FUSED, Family
from .orders import DeltaHeads, Order, rotary_order
from .tokenizer import Tokenizer

Shape = tuple[int, ...]

_QUERY_KEY_VALUE: Final = "attn_qkv"
# of a gated delta net: what only such a block has, and its input's columns
_DELTA: Final = "ssm_out"


@dataclass(frozen=True)
class Place:
    """Where the base keeps a weight's rows: `rows` of them, from row `first` of `tensor` on.

    `shape` is the whole tensor's, in ggml order: (n_in, n_out), with the experts as third. `order`
    and `columns` are the rows' and the columns' where llama.cpp has them in another one than
    transformers.
    """

    tensor: str
    shape: Shape
    first: int
    rows: int
    order: Order | None = None
    columns: Order | None = None

    @property
    def n_in(self) -> int:
        """How many values the weight maps from."""
        return self.shape[0]

    @property
    def n_experts(self) -> int:
        """The experts that the tensor holds; 0 if it is a plain matrix."""
        return self.shape[2] if len(self.shape) > 2 else 0


class BaseModel(ABC):
    """A base of a family that adapters can be converted for.

    label     the file or reference, for messages
    names     what the model is called, by those who published it
    n_layers  transformer blocks
    n_vocab   token ids: the rows of the embedding
    tokenizer its vocabulary
    departures where llama.cpp is known to compute otherwise than transformers
    """

    label: str
    names: tuple[str, ...]
    family: Family
    n_layers: int
    n_vocab: int
    tokenizer: Tokenizer
    departures: tuple[tuple[int, str], ...] = ()

    @property
    def architecture(self) -> str:
        """`general.architecture`, as llama.cpp knows it."""
        return self.family.architecture

    @property
    def tied(self) -> bool:
        """Whether the output projection is the embedding: there is no tensor for it."""
        return self.shape("output.weight") is None

    @property
    def vocabulary_sha256(self) -> str | None:
        """The hash of all tokens in their order; None if the base does not hold them as GGUF does.

        Hashed are the tokens as GGUF stores them: for each, its length in bytes as u64, its bytes.
        """
        return None

    @abstractmethod
    def shape(self, tensor: str) -> Shape | None:
        """A tensor's shape in ggml order, a weight's being (n_in, n_out); None if there is none."""

    @abstractmethod
    def n_heads(self, layer: int, *, keys: bool) -> int:
        """The number of query heads of a block, or of its key (and value) heads."""

    @abstractmethod
    def attention_rows(self, layer: int) -> tuple[int, int, int]:
        """The rows of a block's query, key and value projections."""

    def delta_heads(self) -> DeltaHeads:
        """The heads of a gated delta net's blocks, for families that have such."""
        raise UnsupportedAdapterError(
            f"{self.label}: says nothing of a delta net's heads; give the base as a GGUF"
        )

    def place(self, layer: int, weight: str) -> Place | None:
        """Where the rows of "blk.3.attn_q" are: in its own tensor, or in one that holds several."""
        block, _, name = weight.rpartition(".")
        shape = self.shape(f"{weight}.weight")
        if shape is not None:
            return self._place(layer, block, name, f"{weight}.weight", shape)
        delta = self.shape(f"{block}.{_DELTA}.weight") is not None  # whose attn_qkv is its own
        for fused, members in FUSED.items():
            tensor = f"{block}.{fused}.weight"
            shape = self.shape(tensor)
            if name in members and shape is not None and len(shape) > 1 and not delta:
                index = members.index(name)
                sizes = self._sizes(layer, members, shape[1])
                if sum(sizes) != shape[1]:
                    raise FileFormatError(
                        f"{self.label}: '{tensor}' has {shape[1]} rows, but {', '.join(members)} "
                        f"need {' + '.join(map(str, sizes))}; convert the model again"
                    )
                order = self._rotary(layer, name, tensor, sizes[index])
                return Place(tensor, shape, sum(sizes[:index]), sizes[index], order)
        return None

    def _place(self, layer: int, block: str, name: str, tensor: str, shape: Shape) -> Place:
        """A weight that is a tensor of its own."""
        rows = shape[1] if len(shape) > 1 else 1
        order, columns = self._rotary(layer, name, tensor, rows), None
        if self.family.tiled and self.shape(f"{block}.{_DELTA}.weight") is not None:
            heads = self.delta_heads()
            wide, narrow = heads.tiled(heads.value_width), heads.tiled(1)
            kept = 2 * heads.keys * heads.key_width
            orders = {
                _QUERY_KEY_VALUE: heads.tiled(heads.value_width, kept),
                "attn_gate": wide,
                "ssm_alpha": narrow,
                "ssm_beta": narrow,
            }
            order = orders.get(name)
            columns = wide if name == _DELTA else None
            for each, n in ((order, rows), (columns, shape[0])):
                if each is not None and each.n != n:
                    raise FileFormatError(
                        f"{self.label}: '{tensor}' is {shape[0]} x {rows}, but its delta net has "
                        f"{heads.keys} heads of {heads.key_width} and {heads.values} of "
                        f"{heads.value_width} values; convert the model again"
                    )
        return Place(tensor, shape, 0, rows, order, columns)

    def _rotary(self, layer: int, name: str, tensor: str, rows: int) -> Order | None:
        if not self.family.rotated or name not in ("attn_q", "attn_k"):
            return None
        heads = self.n_heads(layer, keys=name == "attn_k")
        if rows % (2 * heads):
            raise FileFormatError(
                f"{self.label}: '{tensor}' has {rows} rows, which {heads} heads cannot share; "
                "convert the model again"
            )
        return rotary_order(rows, heads)

    def _sizes(self, layer: int, members: tuple[str, ...], rows: int) -> tuple[int, ...]:
        if members == FUSED[_QUERY_KEY_VALUE]:
            return self.attention_rows(layer)
        return (rows // len(members),) * len(members)
