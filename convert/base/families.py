"""Which modules of a Hugging Face model become which tensors of the GGUF, family by family.

One more family is one more entry of FAMILIES and one more parity test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# The tensors of a block that a module's output rows are shared out to, in their order, without
# "blk.<n>." and ".weight".
Tensors = tuple[str, ...]
# A module may have several readings; the first one whose tensors the base has is right.
Modules = Mapping[str, tuple[Tensors, ...]]


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
_GRANITE_EXPERTS: Final[Modules] = {
    "block_sparse_moe.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.experts.down_proj": (_EXPERTS_DOWN,),
    "block_sparse_moe.input_linear": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.output_linear": (_EXPERTS_DOWN,),
    "block_sparse_moe.router": (("ffn_gate_inp",),),
    "block_sparse_moe.router.layer": (("ffn_gate_inp",),),
    "shared_mlp.input_linear": (_SHARED_GATE_UP,),
    "shared_mlp.output_linear": (("ffn_down_shexp",),),
}
# without experts, the shared MLP is the only one
_GRANITE_EITHER: Final[Modules] = {
    module: (*_GRANITE_EXPERTS[module], *readings) for module, readings in _GRANITE_MLP.items()
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
    rotated    llama.cpp keeps query and key heads in another order (see values.head_order), because
               its rotary embedding for this architecture turns neighbours
    block      the path of the blocks, and of the token embedding, in the causal language model
    """

    architecture: str
    names: tuple[str, ...]
    modules: Modules
    rotated: bool = False
    block: str = "model.layers"
    embedding: str = "model.embed_tokens"


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
    Family("qwen2", ("qwen2", "qwen2.5"), {**_ATTENTION, **_MLP}),
    Family(
        "qwen2moe", ("qwen2moe",), {**_ATTENTION, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERT}
    ),
    Family("qwen3", ("qwen3",), {**_ATTENTION, **_MLP}),
    Family("qwen3moe", ("qwen3moe",), {**_ATTENTION, **_EXPERTS, **_SINGLE_EXPERTS}),
    Family("gemma2", ("gemma2",), {**_ATTENTION, **_MLP}),
    Family("gemma3", ("gemma3",), {**_ATTENTION, **_MLP}),
    Family(
        "phi3",
        ("phi3",),
        {
            "self_attn.qkv_proj": (("attn_q", "attn_k", "attn_v"),),
            **_plain(
                {
                    "self_attn.o_proj": "attn_output",
                    "mlp.gate_up_proj": "ffn_up",
                    "mlp.down_proj": "ffn_down",
                }
            ),
        },
    ),
    Family("olmo2", ("olmo2",), {**_ATTENTION, **_MLP}),
    Family("smollm3", ("smollm3",), {**_ATTENTION, **_MLP}, True),
    Family("starcoder2", ("starcoder2",), {**_ATTENTION, **_GPT_MLP}),
    Family(
        "gpt2",
        ("gpt2",),
        {**_plain({"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}), **_GPT_MLP},
        block="transformer.h",
        embedding="transformer.wte",
    ),
)

FAMILIES: Final[Mapping[str, Family]] = {family.architecture: family for family in _FAMILIES}

# Tensors that a base may hold as one, and the weights whose rows it holds one after another
# (upstream's converter joins them with --fuse-qkv and --fuse-gate-up-exps; phi3 always).
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}


def supported_names() -> str:
    """The families' common names, for messages and documentation."""
    return ", ".join(name for family in _FAMILIES for name in family.names)
