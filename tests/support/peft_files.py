"""Small PEFT directories and bases made without torch, to try the converter's refusals on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from alora_gguf.convert import ConversionReport, convert_adapter
from numpy.typing import NDArray

from .make_gguf import make_gguf

N_VOCAB, N_EMBD, N_FF, N_HEADS, N_KV_HEADS, RANK, LAYERS = 40, 16, 24, 4, 2, 4, 2
_KV = N_EMBD // N_HEADS * N_KV_HEADS

# tensor in a block -> (in, out)
BLOCK = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, _KV),
    "attn_v": (N_EMBD, _KV),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_gate": (N_EMBD, N_FF),
    "ffn_up": (N_EMBD, N_FF),
    "ffn_down": (N_FF, N_EMBD),
}
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PREFIX = "base_model.model."
# the least that a small llama's config.json can say
LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def write_base(
    path: Path,
    *,
    architecture: str = "llama",
    tied: bool = False,
    kind: str = "model",
    changes: dict[str, Any] | None = None,
    block: Mapping[str, tuple[int, ...]] = BLOCK,
) -> Path:
    """A base of zeros; `changes` are to its `<architecture>.` metadata.

    `block` has the tensors of a block and their shapes in ggml order.
    """
    counts: dict[str, Any] = {
        "block_count": LAYERS,
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": N_KV_HEADS,
        **(changes or {}),
    }
    keys = {f"{architecture}.{key}": value for key, value in counts.items()}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (N_EMBD, N_VOCAB)}
    if not tied:
        shapes["output"] = (N_EMBD, N_VOCAB)
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    tensors = {
        f"{name}.weight": np.zeros(shape[::-1], np.float16) for name, shape in shapes.items()
    }
    return make_gguf(path, {"general.type": kind, **keys}, tensors, architecture=architecture)


@dataclass
class Case:
    """An adapter directory in the making: change `config` and `tensors`, then convert()."""

    folder: Path
    base: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "adapter"

    @property
    def out(self) -> Path:
        return self.folder / "out.gguf"

    def add(self, module: str, n_in: int, n_out: int, rank: int = RANK, seed: int = 0) -> None:
        """A random pair for a module such as "model.layers.0.mlp.up_proj"."""
        rng = np.random.default_rng([seed, *module.encode()])
        for kind, shape in (("A", (rank, n_in)), ("B", (n_out, rank))):
            values = rng.standard_normal(shape).astype(np.float32)
            self.tensors[f"{PREFIX}{module}.lora_{kind}.weight"] = values

    def write(self) -> None:
        from safetensors.numpy import save_file

        self.source.mkdir(exist_ok=True)
        (self.source / "adapter_config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, self.source / "adapter_model.safetensors")

    def convert(self, **options: Any) -> ConversionReport:
        """Writes the directory and converts it (to F32 unless told otherwise)."""
        self.write()
        options.setdefault("outtype", "f32")
        return convert_adapter(self.source, self.base, self.out, **options)


def sound_case(folder: Path) -> Case:
    """An aLoRA that converts: all linear layers of a llama."""
    case = Case(folder, write_base(folder / "base.gguf"))
    case.config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "alora_invocation_tokens": [7, 8],
        "peft_version": "0.21.2",
        "base_model_name_or_path": "org/model",
    }
    for layer in range(LAYERS):
        for module, tensor in MODULES.items():
            case.add(f"model.layers.{layer}.{module}", *BLOCK[tensor])
    return case
