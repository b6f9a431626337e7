"""Writes a tiny random jamba model: a recurrent (mamba) layer, then an attention layer. Its memory
cannot rewind, which is what it is for.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from .tiny_base import N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_KV, N_VOCAB, finish, random_weights

D_CONV, D_INNER, D_STATE, DT_RANK = 4, 2 * N_EMBD, 8, 4


def write_hybrid(path: Path, *, seed: int = 1) -> Path:
    """Layer 0 is mamba, layer 1 attention; no vocabulary."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "jamba")
    writer.add_context_length(1024)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(2)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv([0, N_HEAD_KV])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(D_CONV)
    writer.add_ssm_inner_size(D_INNER)
    writer.add_ssm_state_size(D_STATE)
    writer.add_ssm_time_step_rank(DT_RANK)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("none")

    def weight(name: str, n_in: int, *shape: int) -> None:
        writer.add_tensor(name, random_weights(rng, *shape, n_in) / np.float32(n_in**0.5))

    def constant(name: str, value: float, *shape: int) -> None:
        writer.add_tensor(name, np.full(shape, value, np.float32))

    writer.add_tensor("token_embd.weight", random_weights(rng, N_VOCAB, N_EMBD))
    constant("output_norm.weight", 1, N_EMBD)
    weight("blk.0.ssm_in.weight", N_EMBD, 2 * D_INNER)
    weight("blk.0.ssm_conv1d.weight", D_CONV, D_INNER)
    constant("blk.0.ssm_conv1d.bias", 0.1, D_INNER)
    weight("blk.0.ssm_x.weight", D_INNER, DT_RANK + 2 * D_STATE)
    constant("blk.0.ssm_dt_norm.weight", 1, DT_RANK)
    weight("blk.0.ssm_dt.weight", DT_RANK, D_INNER)
    constant("blk.0.ssm_dt.bias", 0.1, D_INNER)
    constant("blk.0.ssm_b_norm.weight", 1, D_STATE)
    constant("blk.0.ssm_c_norm.weight", 1, D_STATE)
    constant("blk.0.ssm_a", -0.5, D_INNER, D_STATE)
    constant("blk.0.ssm_d", 1, D_INNER)
    weight("blk.0.ssm_out.weight", D_INNER, N_EMBD)
    weight("blk.1.attn_q.weight", N_EMBD, N_EMBD)
    weight("blk.1.attn_k.weight", N_EMBD, N_KV)
    weight("blk.1.attn_v.weight", N_EMBD, N_KV)
    weight("blk.1.attn_output.weight", N_EMBD, N_EMBD)
    for i in range(2):
        constant(f"blk.{i}.attn_norm.weight", 1, N_EMBD)
        constant(f"blk.{i}.ffn_norm.weight", 1, N_EMBD)
        weight(f"blk.{i}.ffn_gate.weight", N_EMBD, N_FF)
        weight(f"blk.{i}.ffn_up.weight", N_EMBD, N_FF)
        weight(f"blk.{i}.ffn_down.weight", N_FF, N_EMBD)
    return finish(writer, path)
