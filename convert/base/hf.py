"""A base model known by its Hugging Face directory's config.json; no weights are needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from alora_gguf.errors import FileFormatError

from .families import FAMILIES
from .hf_config import (
    ATTENTION,
    CONFIG_NAME,
    EXPERTS,
    FUSED_ATTENTION,
    GEMMA3,
    MAMBA,
    MLP,
    HFConfig,
)
from .hf_tokenizer import HFTokenizer
from .match import model_name
from .model import BaseModel, Shape

_MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS in llama.cpp
_WEIGHT: Final = re.compile(r"blk\.(0|[1-9][0-9]{0,3})\.([a-z_]+)\.weight")
_MAMBA_TYPES: Final = ("mamba", "linear_attention")  # before and since transformers 5
_ATTENTION_TYPES: Final = ("attention", "full_attention")


class HFBase(BaseModel):
    """A base by the config.json of its directory, and the tokenizer.json beside it.

    n_vocab is vocab_size, the rows of the embedding: what upstream pads for Mamba hybrids is the
    list of tokens alone, and llama.cpp loads a GGUF only if the two agree. Of a gemma3 without a
    tokenizer.model, upstream drops the rows beyond the tokenizer's tokens. That a checkpoint holds
    an lm_head in spite of tie_word_embeddings is not known.
    """

    def __init__(self, directory: str | Path, label: str | None = None) -> None:
        self.directory = Path(directory)
        self.label = label or str(self.directory)
        self.tokenizer: HFTokenizer = HFTokenizer(self.directory)
        self._config = config = HFConfig(self.directory / CONFIG_NAME)
        self._kind = config.kind
        self.n_layers = config.number("layers", most=_MAX_LAYERS)
        self._mamba_layers = self._find_mamba_layers()
        self.family = FAMILIES[self._find_architecture()]
        self._tied = config.flag("tie_word_embeddings")
        self._heads = config.number("heads")
        self._kv_heads = config.number("kv_heads", self._heads)
        self._dims = {**self._attention_sizes(), **self._mlp_sizes(), **self._mamba_sizes()}
        self._dense_layers = self._find_dense_layers()
        self.n_vocab = self._count_vocabulary()
        self.names = tuple(self._find_names())

    @property
    def tied(self) -> bool:
        """Whether the output projection is the embedding: there is no tensor for it."""
        return self._tied

    def shape(self, tensor: str) -> Shape | None:
        """The shape in ggml order of a weight that adapters can change; None for all others."""
        if tensor == "token_embd.weight" or (tensor == "output.weight" and not self.tied):
            return self._dims["embd"], self.n_vocab
        found = _WEIGHT.fullmatch(tensor)
        if found is None or int(found[1]) >= self.n_layers:
            return None
        dims = self._block(int(found[1])).get(found[2])
        if dims is None or not self._dims.keys() >= set(dims):  # a granitemoe shares no expert
            return None
        return tuple(self._dims[name] for name in dims)

    def n_heads(self, layer: int, *, keys: bool) -> int:  # noqa: ARG002
        """The number of query heads of a block, or of its key (and value) heads."""
        return self._kv_heads if keys else self._heads

    def attention_rows(self, layer: int) -> tuple[int, int, int]:  # noqa: ARG002
        """The rows of a block's query, key and value projections."""
        return self._dims["q"], self._dims["kv"], self._dims["kv"]

    def _block(self, layer: int) -> dict[str, tuple[str, ...]]:
        """The weights of a block: attention's or a state space's, and an MLP's or experts'."""
        attention = FUSED_ATTENTION if self._kind.fused else ATTENTION
        dense = not self._dims.get("experts") or layer in self._dense_layers
        mixer = MAMBA if layer in self._mamba_layers else attention
        return {**mixer, **(MLP if dense else EXPERTS)}

    def _attention_sizes(self) -> dict[str, int]:
        config, heads = self._config, self._heads
        embd = config.number("embd")
        width = config.number("head_dim", 0)
        if not width and embd % heads:
            raise config.wrong("heads", f"a divisor of the hidden size {embd}")
        width = width or embd // heads
        q, kv = heads * width, self._kv_heads * width
        return {"embd": embd, "q": q, "kv": kv, "qkv": q + 2 * kv}

    def _mlp_sizes(self) -> dict[str, int]:
        config = self._config
        default = 4 * config.number("embd") if self.architecture == "gpt2" else None
        ff = config.number("ff", default)
        sizes = {"ff": ff, "up": 2 * ff if self.architecture == "phi3" else ff}
        if self._kind.experts and (count := config.number("experts", least=0)):
            sizes |= {"experts": count, "ff_exp": config.number("ff_exp"), "one": 1}
            if "ff_shared" in self._kind.fields:
                sizes["ff_shared"] = config.number("ff_shared")
        return sizes

    def _mamba_sizes(self) -> dict[str, int]:
        if not self._mamba_layers:
            return {}
        config = self._config
        inner = config.number("mamba_expand") * config.number("embd")
        states = config.number("mamba_n_groups") * config.number("mamba_d_state")
        # in_proj's rows: the gate; the convolution's input, B and C; the time steps
        return {"ssm": inner, "ssm_in": 2 * inner + 2 * states + config.number("mamba_n_heads")}

    def _find_mamba_layers(self) -> frozenset[int]:
        if self._kind.architecture != "granitehybrid":
            return frozenset()
        types, known = self._config.get("layer_types"), (*_MAMBA_TYPES, *_ATTENTION_TYPES)
        if not isinstance(types, list) or any(kind not in known for kind in types):
            raise self._config.wrong("layer_types", f"a list of {', '.join(known)}")
        if len(types) != self.n_layers:
            raise FileFormatError(
                f"{self._config.path}: layer_types has {len(types)} entries, but "
                f"num_hidden_layers is {self.n_layers}; use the file that was published"
            )
        return frozenset(layer for layer, kind in enumerate(types) if kind in _MAMBA_TYPES)

    def _find_architecture(self) -> str:
        """Upstream makes Granite 4 without state space layers a granite or, if tokens use experts,
        a granitemoe.
        """
        if self._kind.architecture != "granitehybrid" or self._mamba_layers:
            return self._kind.architecture
        used = self._config.number("num_experts_per_tok", 0, least=0)
        return "granitemoe" if used else "granite"

    def _find_dense_layers(self) -> frozenset[int]:
        """The layers of a qwen with experts that have none (in Qwen2MoeDecoderLayer's words)."""
        listed = self._config.get("mlp_only_layers") or []
        if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
            raise self._config.wrong("mlp_only_layers", "a list of layers' numbers")
        step = self._config.number("decoder_sparse_step", 1)
        skipped = {layer for layer in range(self.n_layers) if (layer + 1) % step}
        return frozenset(skipped.union(listed))

    def _count_vocabulary(self) -> int:
        rows = self._config.number("vocab_size")
        if self._kind is not GEMMA3 or (self.directory / "tokenizer.model").is_file():
            return rows
        return min(rows, self.tokenizer.n_listed or rows)

    def _find_names(self) -> list[str]:
        stated = self._config.get("_name_or_path")
        names = [stated if isinstance(stated, str) else "", str(self.directory.absolute())]
        return [name for name in map(model_name, names) if name]
