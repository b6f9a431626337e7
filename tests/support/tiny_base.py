"""Writes tiny random models and adapters as GGUF: seeded, without torch, in milliseconds.

The vocabulary is a real byte-level BPE one (256 bytes, a few merges, control tokens), so text goes
in and out. Weights are scaled so that tokens matter: neighbouring logits differ by about 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .make_gguf import Array, adapter_keys, make_gguf, token_ids

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
D_INNER, D_CONV, D_STATE, DT_RANK = 2 * N_EMBD, 4, 8, 4  # of recurrent layers
_CONTEXT, _EPSILON = 1024, 1e-5


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
    markers: Mapping[str, gguf.TokenType] | None = None,
    more: Mapping[str, Any] | None = None,
    replace: dict[str, tuple[Array, gguf.GGMLQuantizationType | None]] | None = None,
) -> Path:
    """A random base model; without `text` it has no vocabulary (and the same number of tokens).
    `template` is its chat template; `markers` are more tokens, with their types, `more` is more
    metadata. `replace` puts other data, of the raw type given, in the place of a weight's.
    """
    rng = np.random.default_rng(seed)
    n_vocab = N_VOCAB + len(markers or {})
    keys = {"general.name": "tiny", **_sizes("llama", N_LAYER), "llama.vocab_size": n_vocab}
    keys |= vocabulary_keys(template) if text else {"tokenizer.ggml.model": "none"}
    keys |= more or {}
    for marker, kind in (markers or {}).items():
        keys["tokenizer.ggml.tokens"].append(marker)
        keys["tokenizer.ggml.token_type"].append(int(kind))
    if experts:
        keys |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    tensors: dict[str, Any] = {"token_embd.weight": _random(rng, n_vocab, N_EMBD)}
    if not tied:
        tensors["output.weight"] = 0.5 * _random(rng, n_vocab, N_EMBD)
    tensors["output_norm.weight"] = _ones(N_EMBD)
    for i in range(N_LAYER):
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{norm}.weight"] = _ones(N_EMBD)
        if experts:
            tensors[f"blk.{i}.ffn_gate_inp.weight"] = _random(rng, experts, N_EMBD)
        for name, (n_in, n_out) in TARGETS.items():
            stacked = experts and name.startswith("ffn")
            shape = (experts, n_out, n_in) if stacked else (n_out, n_in)
            full = f"blk.{i}.{name}{'_exps' if stacked else ''}.weight"
            tensors[full] = _weight(rng, *shape)
    return make_gguf(path, keys, {**tensors, **(replace or {})})


def write_swa(path: Path, *, window: int = 8, seed: int = 1) -> Path:
    """A random olmo2 without a vocabulary: three layers see `window` tokens, the fourth all."""
    rng, n_layer = np.random.default_rng(seed), 4
    keys = {
        **_sizes("olmo2", n_layer),
        "olmo2.attention.sliding_window": window,
        "olmo2.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "none",
    }
    tensors = {f"{name}.weight": _random(rng, N_VOCAB, N_EMBD) for name in ("token_embd", "output")}
    norms = {"attn_q_norm": N_EMBD, "attn_k_norm": N_KV}
    norms |= {"post_attention_norm": N_EMBD, "post_ffw_norm": N_EMBD}
    tensors["output_norm.weight"] = _ones(N_EMBD)
    for i in range(n_layer):
        for name, (n_in, n_out) in TARGETS.items():
            tensors[f"blk.{i}.{name}.weight"] = _weight(rng, n_out, n_in)
        for name, n in norms.items():
            tensors[f"blk.{i}.{name}.weight"] = _ones(n)
    return make_gguf(path, keys, tensors, architecture="olmo2")


def write_recurrent(path: Path, *, seed: int = 1) -> Path:
    """A random mamba with a vocabulary: its memory cannot rewind."""
    rng = np.random.default_rng(seed)
    keys = {
        "mamba.context_length": _CONTEXT,
        "mamba.embedding_length": N_EMBD,
        "mamba.block_count": 2,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.attention.layer_norm_rms_epsilon": _EPSILON,
        **_ssm_sizes("mamba"),
        "mamba.vocab_size": N_VOCAB,
        **vocabulary_keys(),
    }
    tensors = {f"{name}.weight": _random(rng, N_VOCAB, N_EMBD) for name in ("token_embd", "output")}
    tensors["output_norm.weight"] = _ones(N_EMBD)
    for i in range(2):
        tensors |= {f"blk.{i}.attn_norm.weight": _ones(N_EMBD), **_ssm(rng, i)}
    return make_gguf(path, keys, tensors, architecture="mamba")


def _ssm_sizes(architecture: str) -> dict[str, Any]:
    sizes = {"conv_kernel": D_CONV, "inner_size": D_INNER, "state_size": D_STATE}
    sizes["time_step_rank"] = DT_RANK
    return {f"{architecture}.ssm.{name}": size for name, size in sizes.items()}


def _ssm(rng: np.random.Generator, i: int) -> dict[str, Any]:
    """The weights of a recurrent layer."""
    return {
        f"blk.{i}.ssm_in.weight": _weight(rng, 2 * D_INNER, N_EMBD),
        f"blk.{i}.ssm_conv1d.weight": _weight(rng, D_INNER, D_CONV),
        f"blk.{i}.ssm_conv1d.bias": 0.1 * _ones(D_INNER),
        f"blk.{i}.ssm_x.weight": _weight(rng, DT_RANK + 2 * D_STATE, D_INNER),
        f"blk.{i}.ssm_dt.weight": _weight(rng, D_INNER, DT_RANK),
        f"blk.{i}.ssm_dt.bias": 0.1 * _ones(D_INNER),
        f"blk.{i}.ssm_a": -0.5 * _ones(D_INNER, D_STATE),
        f"blk.{i}.ssm_d": _ones(D_INNER),
        f"blk.{i}.ssm_out.weight": _weight(rng, N_EMBD, D_INNER),
    }


def write_hybrid(path: Path, *, seed: int = 1, text: bool = False) -> Path:
    """A random jamba, without a vocabulary unless `text`: a recurrent (mamba) layer, then an
    attention layer. Its memory cannot rewind, which is what it is for.
    """
    rng = np.random.default_rng(seed)
    keys = {
        "jamba.context_length": _CONTEXT,
        "jamba.embedding_length": N_EMBD,
        "jamba.block_count": 2,
        "jamba.feed_forward_length": N_FF,
        "jamba.attention.head_count": N_HEAD,
        "jamba.attention.head_count_kv": [0, N_HEAD_KV],
        "jamba.attention.layer_norm_rms_epsilon": _EPSILON,
        **_ssm_sizes("jamba"),
        "jamba.vocab_size": N_VOCAB,
        **(vocabulary_keys() if text else {"tokenizer.ggml.model": "none"}),
    }
    tensors = {
        "token_embd.weight": _random(rng, N_VOCAB, N_EMBD),
        "output_norm.weight": _ones(N_EMBD),
        **_ssm(rng, 0),
        "blk.0.ssm_dt_norm.weight": _ones(DT_RANK),
        "blk.0.ssm_b_norm.weight": _ones(D_STATE),
        "blk.0.ssm_c_norm.weight": _ones(D_STATE),
        "blk.1.attn_q.weight": _weight(rng, N_EMBD, N_EMBD),
        "blk.1.attn_k.weight": _weight(rng, N_KV, N_EMBD),
        "blk.1.attn_v.weight": _weight(rng, N_KV, N_EMBD),
        "blk.1.attn_output.weight": _weight(rng, N_EMBD, N_EMBD),
    }
    for i in range(2):
        tensors[f"blk.{i}.attn_norm.weight"] = _ones(N_EMBD)
        tensors[f"blk.{i}.ffn_norm.weight"] = _ones(N_EMBD)
        tensors[f"blk.{i}.ffn_gate.weight"] = _weight(rng, N_FF, N_EMBD)
        tensors[f"blk.{i}.ffn_up.weight"] = _weight(rng, N_FF, N_EMBD)
        tensors[f"blk.{i}.ffn_down.weight"] = _weight(rng, N_EMBD, N_FF)
    return make_gguf(path, keys, tensors, architecture="jamba")


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
    keys: Mapping[str, Any] | None = None,
    architecture: str = "llama",
    layers: Sequence[int] = range(N_LAYER),
) -> Path:
    """A random adapter: an aLoRA, or a plain LoRA if `invocation` is None or empty. `keys` is
    further metadata.
    """
    rng = np.random.default_rng(seed)
    entries = {**adapter_keys(alpha), **(keys or {})}
    if invocation:
        entries["adapter.alora.invocation_tokens"] = token_ids(invocation)
    if invocation_text is not None:
        entries["alora.invocation_text"] = invocation_text
    tensors = {}
    for i in layers:
        for name in targets:
            n_in, n_out = TARGETS[name]
            a = _random(rng, rank, n_in) / np.float32(n_in**0.5)
            b = strength * _random(rng, n_out, rank) / np.float32(rank**0.5)
            tensors[f"blk.{i}.{name}.weight.lora_a"] = a.astype(dtype)
            tensors[f"blk.{i}.{name}.weight.lora_b"] = b.astype(dtype)
    return make_gguf(path, entries, tensors, architecture=architecture)


def vocabulary_keys(template: str | None = None) -> dict[str, Any]:
    """The vocabulary, and a chat template if there is one, as a base's metadata."""
    tokens, types, merges = vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": template,
    }


def _sizes(architecture: str, n_layer: int) -> dict[str, Any]:
    """What a model of attention layers says of its shape."""
    sizes = {
        "context_length": _CONTEXT,
        "embedding_length": N_EMBD,
        "block_count": n_layer,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "rope.dimension_count": N_EMBD // N_HEAD,
        "attention.layer_norm_rms_epsilon": _EPSILON,
    }
    return {f"{architecture}.{name}": size for name, size in sizes.items()}


def _random(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal(shape, np.float32)


def _weight(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scaled, so that activations keep their size."""
    return _random(rng, *shape) / np.float32(shape[-1] ** 0.5)


def _ones(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)
