"""Writes the benchmark's models and adapters: real shapes and real tensor types, random weights.

Speed does not depend on the weights' values, so the quantized blocks are random bytes with sane
scales and no float is ever quantized. Files are kept in build/bench-models.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

FOLDER: Final = Path(__file__).resolve().parents[1] / "build" / "bench-models" / "v1"
INVOCATION: Final = tuple(range(1000, 1016))
"""The invocation of every adapter: 16 token ids."""


@dataclass(frozen=True)
class Shape:
    """What decides a base's speed; `metadata` is what its architecture wants besides."""

    name: str
    arch: str
    layers: int
    vocab: int
    metadata: dict[str, float] = field(default_factory=dict)
    hidden: int = 2048
    ff: int = 8192
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    experts: int = 0
    experts_used: int = 0

    def linears(self) -> dict[str, tuple[int, ...]]:
        """([n_expert,] n_out, n_in) of each linear layer of a block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        experts = (self.experts,) if self.experts else ()
        ending = "_exps" if self.experts else ""
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            f"ffn_gate{ending}": (*experts, self.ff, self.hidden),
            f"ffn_up{ending}": (*experts, self.ff, self.hidden),
            f"ffn_down{ending}": (*experts, self.hidden, self.ff),
        }


SHAPES: Final = {
    "1b": Shape(
        "Llama-3.2-1B", "llama", 16, 128256,
        {"rope.freq_base": 500000.0, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "2b": Shape(
        "Granite-3.3-2B", "granite", 40, 49152,
        {
            "rope.freq_base": 10000000.0, "attention.layer_norm_rms_epsilon": 1e-5,
            "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0,
            "attention.scale": 0.015625,
        },
    ),
    "135m": Shape(
        "SmolLM2-135M", "llama", 30, 49152,
        {"rope.freq_base": 100000.0, "attention.layer_norm_rms_epsilon": 1e-5},
        hidden=576, ff=1536, heads=9, kv_heads=3,
    ),
    "moe": Shape(
        "Granite-3.1-1B-A400M", "granitemoe", 24, 49152,
        {
            "rope.freq_base": 1500000.0, "attention.layer_norm_rms_epsilon": 1e-6,
            "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0,
            "attention.scale": 0.015625,
        },
        hidden=1024, ff=512, heads=16, experts=32, experts_used=8,
    ),
}  # fmt: skip
DENSE: Final = ("1b", "2b")

TARGETS: Final = {
    "attention-only": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "all-linear": (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
        "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
    ),
}  # fmt: skip


def base(shape: Shape, quant: str = "q4_0") -> Path:
    """A base of `shape`, written if it is missing. Both shapes tie their output to the embedding,
    which llama.cpp's quantizer then makes Q6_K.
    """
    path = FOLDER / f"{shape.name}-{quant}.gguf"
    if not path.is_file():
        with _writer(path, shape.arch) as writer:
            _fill_base(writer, shape, quant)
    return path


def adapters(
    shape: Shape, targets: str, n: int = 8, rank: int = 32, dtype: str = "F16"
) -> list[Path]:
    """`n` aLoRA adapters of TARGETS[targets], F16 or Q8_0, written if they are missing."""
    paths = []
    for i in range(n):
        kind = "" if dtype == "F16" else f"-{dtype.lower()}"
        path = FOLDER / f"{shape.name}-{targets}-r{rank}{kind}-{i}.gguf"
        if not path.is_file():
            with _writer(path, shape.arch) as writer:
                _fill_adapter(writer, shape, targets, rank, i, dtype)
        paths.append(path)
    return paths


@contextlib.contextmanager
def _writer(path: Path, arch: str) -> Iterator[Any]:
    """A GGUF writer whose file appears at `path` when it is complete."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    writer = gguf.GGUFWriter(temporary, arch)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)


def _fill_base(writer: Any, shape: Shape, quant: str) -> None:
    arch, rng = shape.arch, np.random.default_rng(1)
    writer.add_name(f"{shape.name} shape, random weights")
    writer.add_tokenizer_model("none")
    integers = {
        "vocab_size": shape.vocab,
        "block_count": shape.layers,
        "context_length": 131072,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ff,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.head_dim,
    }
    if shape.experts:
        integers |= {"expert_count": shape.experts, "expert_used_count": shape.experts_used}
    for key, number in integers.items():
        writer.add_uint32(f"{arch}.{key}", number)
    for key, value in shape.metadata.items():
        writer.add_float32(f"{arch}.{key}", value)

    ones = np.ones(shape.hidden, dtype=np.float32)
    fine = "q8_0" if shape.hidden % 256 else "q6_k"  # whose blocks have 256 values
    _add_blocks(writer, rng, "token_embd.weight", (shape.vocab, shape.hidden), fine)
    writer.add_tensor("output_norm.weight", ones)
    for layer, name, size in _linears(shape):
        if name == "attn_q":
            writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
            writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
            if shape.experts:
                router = rng.standard_normal((shape.experts, shape.hidden), dtype=np.float32)
                writer.add_tensor(f"blk.{layer}.ffn_gate_inp.weight", router)
        _add_blocks(writer, rng, f"blk.{layer}.{name}.weight", size, quant)


def _linears(shape: Shape) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    for layer in range(shape.layers):
        for name, size in shape.linears().items():
            yield layer, name, size


def _add_blocks(
    writer: Any, rng: np.random.Generator, name: str, size: tuple[int, ...], quant: str
) -> None:
    """Adds quantized [n_out, n_in] matrices whose rows keep a vector's size, more or less."""
    import gguf

    n_in = size[-1]
    spread = {"q4_0": 4.6, "q8_0": 74.0, "q6_k": 18.5 * 74.0}[quant]  # of a block at scale 1
    n_blocks = math.prod(size) // (256 if quant == "q6_k" else 32)
    scales = rng.uniform(0.7, 1.3, n_blocks) * rng.choice([-1.0, 1.0], n_blocks)
    scales = (scales / (spread * n_in**0.5)).astype(np.float16)
    scale_bytes: Bytes = scales.view(np.uint8).reshape(n_blocks, 2)
    payload = {"q4_0": 16, "q8_0": 32, "q6_k": 208}[quant]
    noise = np.frombuffer(rng.bytes(n_blocks * payload), dtype=np.uint8).reshape(n_blocks, payload)
    parts = [noise, scale_bytes] if quant == "q6_k" else [scale_bytes, noise]
    blocks = np.concatenate(parts, axis=1).reshape(*size[:-1], -1)
    writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[quant.upper()])


def _fill_adapter(
    writer: Any, shape: Shape, targets: str, rank: int, index: int, dtype: str
) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[dtype]

    def add(name: str, values: NDArray[np.float16]) -> None:
        if dtype == "F16":
            writer.add_tensor(name, values)
        else:
            stored = gguf.quants.quantize(values.astype(np.float32), kind)
            writer.add_tensor(name, stored, raw_dtype=kind)

    rng = np.random.default_rng(100 + index)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(f"random {targets} {index}")
    writer.add_float32("adapter.lora.alpha", float(rank))
    writer.add_key_value(
        "adapter.alora.invocation_tokens",
        list(INVOCATION),
        gguf.GGUFValueType.ARRAY,
        sub_type=gguf.GGUFValueType.UINT32,
    )
    for layer, name, (*experts, n_out, n_in) in _linears(shape):
        if name in TARGETS[targets]:
            weight = f"blk.{layer}.{name}.weight"
            add(f"{weight}.lora_a", _noise(rng, (*experts, rank, n_in), n_in**-0.5))
            add(f"{weight}.lora_b", _noise(rng, (*experts, n_out, rank), 0.1 * rank**-0.5))


def _noise(
    rng: np.random.Generator, size: tuple[int, ...], deviation: float
) -> NDArray[np.float16]:
    noise = rng.random(size, dtype=np.float32)
    noise -= np.float32(0.5)
    noise *= np.float32(deviation * 12**0.5)
    return noise.astype(np.float16)
