"""Writes a tiny random olmo2 model: three layers see a sliding window, the fourth everything."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from .tiny_base import N_EMBD, N_KV, N_VOCAB, TARGETS, add_sizes, finish, random_weights

N_LAYER = 4


def write_swa(path: Path, *, window: int = 8, seed: int = 1) -> Path:
    """A model without a vocabulary whose windows are of `window` tokens."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "olmo2")
    add_sizes(writer, N_LAYER)
    writer.add_sliding_window(window)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("none")
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", random_weights(rng, N_VOCAB, N_EMBD))
    norms = {"attn_q_norm": N_EMBD, "attn_k_norm": N_KV}
    norms |= {"post_attention_norm": N_EMBD, "post_ffw_norm": N_EMBD}
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    for i in range(N_LAYER):
        for name, (n_in, n_out) in TARGETS.items():
            weight = random_weights(rng, n_out, n_in) / np.float32(n_in**0.5)
            writer.add_tensor(f"blk.{i}.{name}.weight", weight)
        for name, n in norms.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(n, np.float32))
    return finish(writer, path)
