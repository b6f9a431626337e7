"""Which modules of a Hugging Face model become which tensors of the GGUF, family by family.

One more family is one more entry of FAMILIES and one more parity test.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

# The tensors of a block that a module's output rows are shared out to, in their order, without
# "blk.<n>." and ".weight".
Tensors = tuple[str, ...]
# A module may have several readings; the first one whose tensors the base has is right.
Modules = Mapping[str, tuple[Tensors, ...]]


class Rows(Enum):
    """How the rows of a module lie that are not simply those of its tensors, one after another."""

    DELTA_BY_KEY = "queries, keys, values and gates of each key head of a delta net together"
    QUERY_KEY_VALUE_BY_HEAD = "query, key and value of each head together"
    IN_TURNS = "the gate's and the up projection's in turns"


class Experts(Enum):
    """The dimensions of a parameter that holds all experts, and what PEFT takes them for: what it
    takes for [experts, in, out] it has in A and B as we have it, anything else the other way round.
    """

    OUT_IN = "[experts, out, in]: PEFT knows since 0.19"
    IN_OUT = "[experts, in, out]: PEFT takes them for [experts, out, in] since 0.19"
    IN_OUT_MARKED = "[experts, in, out]: the module tells PEFT"


def _plain(names: Mapping[str, str]) -> Modules:
    """Modules that are one tensor each."""
    return {path: ((tensor,),) for path, tensor in names.items()}


_ATTENTION: Final = _plain(
    {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
    }
)
_MLP: Final = _plain(
    {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
)
_GATE_UP: Final = ("ffn_gate", "ffn_up")
_EXPERTS_GATE_UP: Final = ("ffn_gate_exps", "ffn_up_exps")
_EXPERTS_DOWN: Final = ("ffn_down_exps",)
_SHARED_GATE_UP: Final = ("ffn_gate_shexp", "ffn_up_shexp")
# as transformers 5 has them: two parameters with the experts as first dimension, and a router
_EXPERTS: Final[Modules] = {
    "mlp.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "mlp.experts.down_proj": (_EXPERTS_DOWN,),
    "mlp.gate": (("ffn_gate_inp",),),
}
# as transformers 4 had them: a module for every projection of every expert
_SINGLE_EXPERTS: Final = _plain(
    {"mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps"}
)
_MIXTRAL: Final[Modules] = {
    **_EXPERTS,
    **_plain(
        {
            "block_sparse_moe.experts.w1": "ffn_gate_exps",
            "block_sparse_moe.experts.w2": "ffn_down_exps",
            "block_sparse_moe.experts.w3": "ffn_up_exps",
            "block_sparse_moe.gate": "ffn_gate_inp",
        }
    ),
}
_GRANITE_MLP: Final[Modules] = {
    "shared_mlp.input_linear": (_GATE_UP,),
    "shared_mlp.output_linear": (("ffn_down",),),
}
_GRANITE_ROUTED: Final[Modules] = {
    "block_sparse_moe.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.experts.down_proj": (_EXPERTS_DOWN,),
    "block_sparse_moe.input_linear": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.output_linear": (_EXPERTS_DOWN,),
    "block_sparse_moe.router": (("ffn_gate_inp",),),
    "block_sparse_moe.router.layer": (("ffn_gate_inp",),),
}
_GRANITE_EXPERTS: Final[Modules] = {
    **_GRANITE_ROUTED,
    "shared_mlp.input_linear": (_SHARED_GATE_UP,),
    "shared_mlp.output_linear": (("ffn_down_shexp",),),
}
# without experts, the shared MLP is the only one
_GRANITE_EITHER: Final[Modules] = {
    module: (*_GRANITE_EXPERTS[module], *readings) for module, readings in _GRANITE_MLP.items()
}
_UP_DOWN: Final = _plain({"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"})
_GATE_UP_DOWN: Final = _plain({"mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"})
_SHARED_EXPERTS: Final = _plain(
    {f"mlp.shared_experts.{name}_proj": f"ffn_{name}_shexp" for name in ("gate", "up", "down")}
)
_DELTA: Final = _plain(
    {
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.out_proj": "ssm_out",
    }
)
_DELTA_JOINED: Final[Modules] = {
    "linear_attn.in_proj_qkvz": (("attn_qkv", "attn_gate"),),
    "linear_attn.in_proj_ba": (("ssm_ba",),),
    "linear_attn.out_proj": (("ssm_out",),),
}
_SHORT_CONVOLUTION: Final = _plain(
    {
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
    }
)
_GEMMA4: Final[Modules] = {
    "per_layer_input_gate": (("inp_gate",),),
    "per_layer_projection": (("proj",),),
    "router.proj": (("ffn_gate_inp",),),
    "experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "experts.down_proj": (_EXPERTS_DOWN,),
}
_GPT_MLP: Final = _plain({"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"})
_MAMBA: Final = _plain({"mamba.in_proj": "ssm_in", "mamba.out_proj": "ssm_out"})
_SHARED_EXPERT: Final = _plain(
    {
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    }
)


@dataclass(frozen=True)
class Family:
    """Models that share a `general.architecture`.

    names      the families' common names
    modules    what a module inside a transformer block becomes. A path that ends in a parameter's
               name (experts.gate_up_proj) also stands for that parameter of the module before it
    rotated    llama.cpp keeps query and key heads in another order (orders.rotary_order), because
               its rotary embedding for this architecture turns neighbours
    tiled      and the value heads of gated delta nets (orders.DeltaHeads.tiled)
    rows       of modules whose rows do not lie tensor after tensor, how they do
    experts    how parameters that hold all experts are stored
    block      the path of the blocks, and of the token embedding, in the causal language model
    others     modules outside blocks, and the tensors they become
    refused    modules with which llama.cpp computes something else, and why
    """

    architecture: str
    names: tuple[str, ...]
    modules: Modules
    rotated: bool = False
    tiled: bool = False
    rows: Mapping[str, Rows] = field(default_factory=dict)
    experts: Experts = Experts.OUT_IN
    block: str = "model.layers"
    embedding: str = "model.embed_tokens"
    others: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


_FAMILIES: Final = (
    Family("llama", ("llama", "mistral", "mixtral"), {**_ATTENTION, **_MLP, **_MIXTRAL}, True),
    Family("granite", ("granite",), {**_ATTENTION, **_MLP, **_GRANITE_MLP}, True),
    Family("granitemoe", ("granitemoe",), {**_ATTENTION, **_GRANITE_EXPERTS}, True),
    Family(
        "granitehybrid",
        ("granitemoehybrid",),
        {**_ATTENTION, **_MAMBA, **_GRANITE_EXPERTS, **_GRANITE_EITHER},
        True,
    ),
    Family(
        "granite_swa",
        ("granite_swa", "granitemoe_swa"),
        {**_ATTENTION, **_MLP, **_GRANITE_ROUTED},
        True,
    ),
    Family("qwen2", ("qwen2", "qwen2.5"), {**_ATTENTION, **_MLP}),
    Family(
        "qwen2moe", ("qwen2moe",), {**_ATTENTION, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERT}
    ),
    Family("qwen3", ("qwen3",), {**_ATTENTION, **_MLP}),
    Family("qwen3moe", ("qwen3moe",), {**_ATTENTION, **_EXPERTS, **_SINGLE_EXPERTS}),
    Family(
        "qwen3next",
        ("qwen3next",),
        {**_ATTENTION, **_DELTA_JOINED, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERT},
        rows={"linear_attn.in_proj_qkvz": Rows.DELTA_BY_KEY},
    ),
    Family("qwen35", ("qwen3.5",), {**_ATTENTION, **_DELTA, **_MLP}, tiled=True),
    Family(
        "qwen35moe",
        ("qwen3.5moe",),
        {**_ATTENTION, **_DELTA, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERT},
        tiled=True,
    ),
    Family("gemma", ("gemma",), {**_ATTENTION, **_MLP}),
    Family("gemma2", ("gemma2",), {**_ATTENTION, **_MLP}),
    Family("gemma3", ("gemma3",), {**_ATTENTION, **_MLP}),
    Family(
        "gemma4",
        ("gemma4",),
        {**_ATTENTION, **_MLP, **_GEMMA4},
        others={"model.per_layer_model_projection": "per_layer_model_proj"},
        refused={
            "experts.down_proj": "llama.cpp multiplies with the router's per_expert_scale before "
            "it adds the adapter's part, transformers afterwards"
        },
    ),
    Family(
        "llama4",
        ("llama4",),
        {
            **_ATTENTION,
            **_plain(
                {
                    "feed_forward.gate_proj": "ffn_gate",
                    "feed_forward.up_proj": "ffn_up",
                    "feed_forward.down_proj": "ffn_down",
                    "feed_forward.router": "ffn_gate_inp",
                    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
                    "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
                    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
                }
            ),
            "feed_forward.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
            "feed_forward.experts.down_proj": (_EXPERTS_DOWN,),
        },
        experts=Experts.IN_OUT,
    ),
    Family(
        "gpt-oss",
        ("gpt-oss",),
        {
            **_ATTENTION,
            "mlp.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
            "mlp.experts.down_proj": (_EXPERTS_DOWN,),
            "mlp.router": (("ffn_gate_inp",),),
        },
        rows={"mlp.experts.gate_up_proj": Rows.IN_TURNS},
        experts=Experts.IN_OUT_MARKED,
    ),
    Family("lfm2", ("lfm2",), _SHORT_CONVOLUTION),
    Family(
        "lfm2moe",
        ("lfm2moe",),
        {
            **_SHORT_CONVOLUTION,
            "feed_forward.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
            "feed_forward.experts.down_proj": (_EXPERTS_DOWN,),
            **_plain(
                {
                    "feed_forward.experts.w1": "ffn_gate_exps",
                    "feed_forward.experts.w2": "ffn_down_exps",
                    "feed_forward.experts.w3": "ffn_up_exps",
                    "feed_forward.gate": "ffn_gate_inp",
                }
            ),
        },
    ),
    Family(
        "phi3",
        ("phi3",),
        {
            "self_attn.qkv_proj": (("attn_q", "attn_k", "attn_v"),),
            "self_attn.o_proj": (("attn_output",),),
            **_GATE_UP_DOWN,
        },
    ),
    Family(
        "phi2",
        ("phi",),
        _plain(
            {
                "self_attn.q_proj": "attn_q",
                "self_attn.k_proj": "attn_k",
                "self_attn.v_proj": "attn_v",
                "self_attn.dense": "attn_output",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
            }
        ),
    ),
    Family("olmo", ("olmo",), {**_ATTENTION, **_MLP}, True),
    Family("olmo2", ("olmo2", "olmo3"), {**_ATTENTION, **_MLP}),
    Family("olmoe", ("olmoe",), {**_ATTENTION, **_EXPERTS, **_SINGLE_EXPERTS}),
    Family("smollm3", ("smollm3",), {**_ATTENTION, **_MLP}, True),
    Family("exaone4", ("exaone4",), {**_ATTENTION, **_MLP}),
    Family("glm4", ("glm4",), {**_ATTENTION, **_GATE_UP_DOWN}),
    Family("chatglm", ("glm",), {**_ATTENTION, **_GATE_UP_DOWN}),
    Family(
        "glm4moe",
        ("glm4moe",),
        {**_ATTENTION, **_MLP, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERTS},
    ),
    Family("seed_oss", ("seed_oss",), {**_ATTENTION, **_MLP}),
    Family("command-r", ("cohere",), {**_ATTENTION, **_MLP}),
    Family("cohere2", ("cohere2",), {**_ATTENTION, **_MLP}),
    Family("ernie4_5", ("ernie4_5",), {**_ATTENTION, **_MLP}),
    Family(
        "ernie4_5-moe",
        ("ernie4_5moe",),
        {**_ATTENTION, **_MLP, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERTS},
    ),
    Family(
        "hy_v3",
        ("hy_v3",),
        {**_ATTENTION, **_MLP, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERTS},
    ),
    Family("hunyuan-dense", ("hunyuan_v1_dense",), {**_ATTENTION, **_MLP}),
    Family("arcee", ("arcee",), {**_ATTENTION, **_UP_DOWN}, True),
    Family("apertus", ("apertus",), {**_ATTENTION, **_UP_DOWN}),
    Family("nemotron", ("nemotron",), {**_ATTENTION, **_UP_DOWN}),
    Family("jais2", ("jais2",), {**_ATTENTION, **_UP_DOWN}),
    Family("stablelm", ("stablelm",), {**_ATTENTION, **_MLP}),
    Family("starcoder2", ("starcoder2",), {**_ATTENTION, **_GPT_MLP}),
    Family(
        "starcoder",
        ("gpt_bigcode",),
        {**_plain({"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}), **_GPT_MLP},
        block="transformer.h",
        embedding="transformer.wte",
    ),
    Family(
        "gpt2",
        ("gpt2",),
        {**_plain({"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}), **_GPT_MLP},
        block="transformer.h",
        embedding="transformer.wte",
    ),
    Family(
        "gptneox",
        ("gpt_neox",),
        _plain(
            {
                "attention.query_key_value": "attn_qkv",
                "attention.dense": "attn_output",
                "mlp.dense_h_to_4h": "ffn_up",
                "mlp.dense_4h_to_h": "ffn_down",
            }
        ),
        rows={"attention.query_key_value": Rows.QUERY_KEY_VALUE_BY_HEAD},
        block="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
    ),
    Family(
        "bloom",
        ("bloom",),
        _plain(
            {
                "self_attention.query_key_value": "attn_qkv",
                "self_attention.dense": "attn_output",
                "mlp.dense_h_to_4h": "ffn_up",
                "mlp.dense_4h_to_h": "ffn_down",
            }
        ),
        rows={"self_attention.query_key_value": Rows.QUERY_KEY_VALUE_BY_HEAD},
        block="transformer.h",
        embedding="transformer.word_embeddings",
    ),
)

FAMILIES: Final[Mapping[str, Family]] = {family.architecture: family for family in _FAMILIES}

# Tensors that a base may hold as one, and the weights whose rows it holds one after another
# (upstream's converter joins them with --fuse-qkv and --fuse-gate-up-exps; phi3 always).
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}


def supported_names(architectures: Container[str] = FAMILIES) -> str:
    """The common names of the families of these architectures, for messages and documentation."""
    families = [family for family in _FAMILIES if family.architecture in architectures]
    return ", ".join(name for family in families for name in family.names)
