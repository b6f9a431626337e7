"""Writes tiny random llama models and adapters as GGUF: seeded, without torch, in milliseconds.

The vocabulary is a real byte-level BPE one (256 bytes, a few merges, control tokens), so text goes
in and out. Weights are scaled so that tokens matter: neighbouring logits differ by about 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER = 64, 4, 2, 128, 2
N_KV = N_EMBD // N_HEAD * N_HEAD_KV
MERGES = ["t h", "th e", "Ġ a", "Ġ the", "i n", "e r", "< c", "a i", "ai n", "> >"]
CONTROL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]

# target -> (n_in, n_out) per layer
TARGETS = {
    "attn_q": (N_EMBD, N_EMBD),
    "attn_k": (N_EMBD, N_KV),
    "attn_v": (N_EMBD, N_KV),
    "attn_output": (N_EMBD, N_EMBD),
    "ffn_gate": (N_EMBD, N_FF),
    "ffn_up": (N_EMBD, N_FF),
    "ffn_down": (N_FF, N_EMBD),
}
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    table = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [table[b] for b in range(256)]


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """(tokens, types, merges)."""
    tokens = byte_symbols()
    merges = []
    for merge in MERGES:
        word = merge.replace(" ", "")
        if word not in tokens:
            tokens.append(word)
            merges.append(merge)
    types = [int(gguf.TokenType.NORMAL)] * len(tokens)
    tokens += CONTROL
    types += [int(gguf.TokenType.CONTROL)] * len(CONTROL)
    return tokens, types, merges


N_VOCAB = len(vocabulary()[0])
BOS, END, USER, ASSISTANT = range(N_VOCAB - 4, N_VOCAB)


def write_base(
    path: Path,
    *,
    seed: int = 1,
    text: bool = True,
    template: str | None = None,
    tied: bool = False,
    experts: int = 0,
    replace: dict[str, tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType | None]] | None = None,
) -> Path:
    """A random base model; without `text` it has no vocabulary (and the same number of tokens).
    `template` is its chat template. `replace` puts other data, of the raw type given, in the place
    of a weight's.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    add_sizes(writer, N_LAYER)
    writer.add_vocab_size(N_VOCAB)
    if text:
        tokens, types, merges = vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(BOS)
        writer.add_eos_token_id(END)
        writer.add_add_bos_token(True)
        if template is not None:
            writer.add_chat_template(template)
    else:
        writer.add_tokenizer_model("none")
    writer.add_tensor("token_embd.weight", random_weights(rng, N_VOCAB, N_EMBD))
    if not tied:
        writer.add_tensor("output.weight", 0.5 * random_weights(rng, N_VOCAB, N_EMBD))
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    for i in range(N_LAYER):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(N_EMBD, np.float32))
        if experts:
            writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", random_weights(rng, experts, N_EMBD))
        for name, (n_in, n_out) in TARGETS.items():
            stacked = experts and name.startswith("ffn")
            shape = (experts, n_out, n_in) if stacked else (n_out, n_in)
            full = f"blk.{i}.{name}{'_exps' if stacked else ''}.weight"
            weight = random_weights(rng, *shape) / np.float32(n_in**0.5)
            other, raw = (replace or {}).get(full, (weight, None))
            writer.add_tensor(full, other, raw_dtype=raw)
    return finish(writer, path)


def add_sizes(writer: gguf.GGUFWriter, n_layer: int) -> None:
    """What a model of attention layers says of its shape."""
    writer.add_context_length(1024)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)


def write_adapter(
    path: Path,
    *,
    seed: int = 2,
    invocation: Sequence[int] | None = (),
    invocation_text: str | None = None,
    rank: int = 8,
    alpha: float | None = 16.0,
    targets: Sequence[str] = ATTENTION,
    dtype: Any = np.float32,
    strength: float = 1.0,
) -> Path:
    """A random adapter: an aLoRA, or a plain LoRA if `invocation` is None or empty."""
    rng = np.random.default_rng(seed)
    writer = adapter_writer(path)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    if invocation:
        writer.add_array("adapter.alora.invocation_tokens", uint32_list(invocation))
    if invocation_text is not None:
        writer.add_string("alora.invocation_text", invocation_text)
    for i in range(N_LAYER):
        for name in targets:
            n_in, n_out = TARGETS[name]
            a = random_weights(rng, rank, n_in) / np.float32(n_in**0.5)
            b = strength * random_weights(rng, n_out, rank) / np.float32(rank**0.5)
            writer.add_tensor(f"blk.{i}.{name}.weight.lora_a", a.astype(dtype))
            writer.add_tensor(f"blk.{i}.{name}.weight.lora_b", b.astype(dtype))
    return finish(writer, path)


class uint32_list(list[int]):  # noqa: N801
    """Marks a list of token ids; GGUFWriter would store plain ints as int32."""


class _Writer(gguf.GGUFWriter):
    def add_array(self, key: str, val: Sequence[Any]) -> None:
        if isinstance(val, uint32_list):
            self.add_key_value(
                key, list(val), gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32
            )
        else:
            super().add_array(key, val)


def adapter_writer(path: Path, *, arch: str = "llama") -> _Writer:
    """A writer with an adapter's usual metadata, alpha and invocation left out."""
    writer = _Writer(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    return writer


def random_weights(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape, np.float32)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
