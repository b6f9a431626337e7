"""What a conversion needs to know of the base model, whatever form the base comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from alora_gguf.errors import FileFormatError

from .families import FUSED, Family
from .tokenizer import Tokenizer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where the base keeps a weight's rows: `rows` of them, from row `first` of `tensor` on.

    `shape` is the whole tensor's, in ggml order: (n_in, n_out), with the experts as third. `heads`
    says of how many heads llama.cpp keeps the rows in its own order (see values.head_order); 0 is
    of none.
    """

    tensor: str
    shape: Shape
    first: int
    rows: int
    heads: int = 0

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

    def place(self, layer: int, weight: str) -> Place | None:
        """Where the rows of "blk.3.attn_q" are: in its own tensor, or in one that holds several."""
        block, _, name = weight.rpartition(".")
        rotated = self.family.rotated and name in ("attn_q", "attn_k")
        shape = self.shape(f"{weight}.weight")
        if shape is not None:
            heads = self.n_heads(layer, keys=name == "attn_k") if rotated else 0
            return Place(f"{weight}.weight", shape, 0, shape[1] if len(shape) > 1 else 1, heads)
        for fused, members in FUSED.items():
            tensor = f"{block}.{fused}.weight"
            shape = self.shape(tensor)
            if name in members and shape is not None and len(shape) > 1:
                index = members.index(name)
                sizes = self._sizes(layer, members, shape[1])
                if sum(sizes) != shape[1]:
                    raise FileFormatError(
                        f"{self.label}: '{tensor}' has {shape[1]} rows, but {', '.join(members)} "
                        f"need {' + '.join(map(str, sizes))}; convert the model again"
                    )
                heads = self.n_heads(layer, keys=name == "attn_k") if rotated else 0
                return Place(tensor, shape, sum(sizes[:index]), sizes[index], heads)
        return None

    def _sizes(self, layer: int, members: tuple[str, ...], rows: int) -> tuple[int, ...]:
        if members == FUSED["attn_qkv"]:
            return self.attention_rows(layer)
        return (rows // len(members),) * len(members)
