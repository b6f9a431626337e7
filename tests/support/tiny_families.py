"""The tiny models' shapes: what of transformers' configuration each family has its own.

Sizes are odd where they may be, so that no two dimensions that could be mixed up are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

N_VOCAB = 320
HIDDEN = 128
_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 32

COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.25,
}


_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HYBRID: dict[str, Any] = {
    **_GRANITE,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 192,  # upstream wants it equal to intermediate_size where dense
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
}
# Granite 4 without state space layers: upstream makes it a granite or granitemoe
_ATTENTION_ONLY: dict[str, Any] = {
    **_HYBRID,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention"] * 3,
    "position_embedding_type": "rope",
}


@dataclass(frozen=True)
class Family:
    """A transformers configuration class and what of it differs from the common shape."""

    config: str
    options: dict[str, Any]


# graphs that differ from each other in what concerns the runtime: its tests go over all of them
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", {}),
    "mistral": Family("MistralConfig", {"head_dim": 64, "sliding_window": None}),
    "granite": Family("GraniteConfig", {**_GRANITE, "tie_word_embeddings": True}),
    "qwen2": Family("Qwen2Config", {}),
    "qwen3": Family("Qwen3Config", {"head_dim": 64}),
    # upstream: every sixth layer attends to everything, the others to a window
    "gemma3": Family(
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 6,
            "head_dim": _HEAD_DIM,
            "query_pre_attn_scalar": _HEAD_DIM,
            "sliding_window": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "phi3": Family("Phi3Config", {"pad_token_id": 0, "sliding_window": None}),
    "granitemoe": Family(
        "GraniteMoeConfig",
        {**_GRANITE, **_EXPERTS, "intermediate_size": 96},
    ),
    "granitemoehybrid": Family("GraniteMoeHybridConfig", _HYBRID),
}

# further ones, which the converter's tests need
MORE_FAMILIES: dict[str, Family] = {
    # gate and up projections together are square, as in Granite 3.1 1B A400M: a shape does not tell
    # which side is the input
    "granitemoe-square": Family(
        "GraniteMoeConfig", {**_GRANITE, **_EXPERTS, "intermediate_size": HIDDEN // 2}
    ),
    "mixtral": Family("MixtralConfig", {**_EXPERTS, "intermediate_size": 96}),
    "qwen2moe": Family(
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 160,
        },
    ),
    "qwen3moe": Family(
        "Qwen3MoeConfig",
        {
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,  # as in all published ones, and in upstream's graph
        },
    ),
    # every other layer attends to a window
    "gemma2": Family(
        "Gemma2Config",
        {
            "num_hidden_layers": 4,
            "head_dim": _HEAD_DIM,
            "query_pre_attn_scalar": _HEAD_DIM,
            "sliding_window": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "olmo2": Family("Olmo2Config", {}),
    # every fourth layer has no rotary embedding
    "smollm3": Family("SmolLM3Config", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "starcoder2": Family("Starcoder2Config", {"tie_word_embeddings": True}),
    "gpt2": Family("GPT2Config", {"n_positions": 2048, "tie_word_embeddings": True}),
    "granitemoehybrid-moe": Family(
        "GraniteMoeHybridConfig", {**_HYBRID, **_EXPERTS, "intermediate_size": 96}
    ),
    "granitemoehybrid-attention": Family("GraniteMoeHybridConfig", _ATTENTION_ONLY),
    "granitemoehybrid-attention-moe": Family(
        "GraniteMoeHybridConfig", {**_ATTENTION_ONLY, **_EXPERTS, "intermediate_size": 96}
    ),
}
ALL_FAMILIES = {**FAMILIES, **MORE_FAMILIES}
# those with a second GGUF, in which query, key and value projections are one tensor
FUSED_FAMILIES = ("llama", "qwen2")

_SLIDING = {"num_hidden_layers": 4, "sliding_window": 16}
# as many value heads as three times the keys; llama.cpp wants both equally wide
_DELTA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "head_dim": _HEAD_DIM,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_conv_kernel_dim": 4,
}
_SPARSE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": _HEAD_DIM,
}
_SHORT_CONVOLUTION: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention"] * 2,
    "tie_word_embeddings": True,
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "head_dim": _HEAD_DIM,
    "global_head_dim": 64,
    "sliding_window": 16,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "vocab_size_per_layer_input": N_VOCAB,
    "final_logit_softcapping": 30.0,  # as in all published ones, and without a key in llama.cpp
}
_GPT_OSS: dict[str, Any] = {
    **_SLIDING,
    **_EXPERTS,
    "head_dim": _HEAD_DIM,
    # of YaRN, llama.cpp computes another table (see docs/convert.md)
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

# whose adapters are converted, but which cannot be trained on
CONVERTED_FAMILIES: dict[str, Family] = {
    "qwen35": Family("Qwen3_5TextConfig", _DELTA),
    "qwen35moe": Family(
        "Qwen3_5MoeTextConfig", {**_DELTA, **_SPARSE, "shared_expert_intermediate_size": 160}
    ),
    "qwen3next": Family(
        "Qwen3NextConfig", {**_DELTA, **_SPARSE, "shared_expert_intermediate_size": 160}
    ),
    "gemma4": Family(
        "Gemma4TextConfig",
        {**_GEMMA4, "hidden_size_per_layer_input": 24, "num_kv_shared_layers": 2},
    ),
    # no value projection, other heads where attention is not to a window
    "gemma4-moe": Family(
        "Gemma4TextConfig",
        {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 4,  # all: near a tie, GELU's table may choose another one
            "moe_intermediate_size": 96,
        },
    ),
    "lfm2": Family("Lfm2Config", _SHORT_CONVOLUTION),
    "lfm2moe": Family("Lfm2MoeConfig", {**_SHORT_CONVOLUTION, **_SPARSE, "num_dense_layers": 1}),
    "gpt-oss": Family("GptOssConfig", _GPT_OSS),
    # the published ones' experts are square
    "gpt-oss-square": Family("GptOssConfig", {**_GPT_OSS, "intermediate_size": HIDDEN}),
    "llama4": Family(
        "Llama4TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": _HEAD_DIM,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size": 96,
            "intermediate_size_mlp": 192,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 1024,
        },
    ),
    "granite_swa": Family("GraniteSWAConfig", {**_GRANITE, **_SLIDING}),
    "granitemoe_swa": Family(
        "GraniteMoeSWAConfig", {**_GRANITE, **_SLIDING, **_EXPERTS, "intermediate_size": 96}
    ),
    "granitemoeshared": Family(
        "GraniteMoeSharedConfig",
        {**_GRANITE, **_EXPERTS, "intermediate_size": 96, "shared_intermediate_size": 160},
    ),
    "gemma": Family(
        "GemmaConfig", {"head_dim": _HEAD_DIM, "tie_word_embeddings": True, "pad_token_id": 0}
    ),
    "olmo": Family("OlmoConfig", {}),
    "olmo3": Family("Olmo3Config", _SLIDING),
    "olmoe": Family(
        "OlmoeConfig",
        {
            "num_key_value_heads": _HEADS,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 96,
        },
    ),
    # in a model of other than 64 layers, llama.cpp has no window
    "exaone4": Family(
        "Exaone4Config", {"sliding_window": None, "layer_types": ["full_attention"] * 3}
    ),
    "glm": Family("GlmConfig", {"head_dim": _HEAD_DIM, "rms_norm_eps": 1e-5}),
    "glm4": Family("Glm4Config", {"head_dim": _HEAD_DIM}),
    "glm4moe": Family("Glm4MoeConfig", _ROUTED),
    "hy_v3": Family("HYV3Config", {**_SPARSE, "head_dim": _HEAD_DIM}),
    "seed_oss": Family("SeedOssConfig", {}),
    "cohere": Family("CohereConfig", {"tie_word_embeddings": True}),
    "cohere2": Family("Cohere2Config", {**_SLIDING, "tie_word_embeddings": True}),
    "ernie4_5": Family("Ernie4_5Config", {}),
    "ernie4_5moe": Family(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 96,
            "moe_num_shared_experts": 1,
        },
    ),
    "hunyuan": Family("HunYuanDenseV1Config", {"head_dim": _HEAD_DIM}),
    "internlm3": Family("InternLM3Config", {"head_dim": _HEAD_DIM}),
    "arcee": Family("ArceeConfig", {}),
    "apertus": Family("ApertusConfig", {}),
    "nemotron": Family("NemotronConfig", {"head_dim": _HEAD_DIM}),
    "jais2": Family("Jais2Config", {}),
    "stablelm": Family("StableLmConfig", {}),
    "phi": Family("PhiConfig", {"num_key_value_heads": _HEADS, "intermediate_size": 4 * HIDDEN}),
    "gpt_bigcode": Family(
        "GPTBigCodeConfig",
        {
            "n_embd": HIDDEN,
            "n_head": _HEADS,
            "n_layer": 3,
            "n_positions": 2048,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_neox": Family("GPTNeoXConfig", {"rotary_pct": 0.25}),
    "bloom": Family("BloomConfig", {"n_head": _HEADS, "n_layer": 3, "tie_word_embeddings": True}),
}
