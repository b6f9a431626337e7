"""Which modules of a Hugging Face model become which tensors of the GGUF, family by family.

One more family is one more entry of FAMILIES and one more parity test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# A module's parts: paths inside a block that gguf's TensorNameMap can translate, one for each
# tensor that the module's output rows are shared out to, in their order.
Parts = tuple[str, ...]
# A module may have several readings; the first one whose tensors the base has is right.
Modules = Mapping[str, tuple[Parts, ...]]


def _plain(*paths: str) -> Modules:
    """Modules that are one tensor each, under a name that gguf knows."""
    return {path: ((path,),) for path in paths}


_GATE_UP: Final = ("mlp.gate_proj", "mlp.up_proj")
_EXPERTS_GATE_UP: Final = ("mlp.experts.gate_proj", "mlp.experts.up_proj")
_EXPERTS_DOWN: Final = ("mlp.experts.down_proj",)
_SHARED_GATE_UP: Final = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")

_ATTENTION: Final = _plain(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"
)
_MLP: Final = _plain("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# as transformers 5 has them: two parameters with the experts as first dimension, and a router
_EXPERTS: Final[Modules] = {
    "mlp.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "mlp.experts.down_proj": (_EXPERTS_DOWN,),
    "mlp.gate": (("mlp.gate",),),
}
# as transformers 4 had them: a module for every projection of every expert
_SINGLE_EXPERTS: Final = _plain(*_EXPERTS_GATE_UP)
_MIXTRAL: Final[Modules] = {
    **_EXPERTS,
    **_plain(
        *(f"block_sparse_moe.{m}" for m in ("experts.w1", "experts.w2", "experts.w3", "gate"))
    ),
}
_GRANITE_SHARED: Final[Modules] = {
    "shared_mlp.input_linear": (_SHARED_GATE_UP, _GATE_UP),
    "shared_mlp.output_linear": (("mlp.shared_expert.down_proj",), ("mlp.down_proj",)),
}
_GRANITE_EXPERTS: Final[Modules] = {
    "block_sparse_moe.experts.gate_up_proj": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.experts.down_proj": (_EXPERTS_DOWN,),
    "block_sparse_moe.input_linear": (_EXPERTS_GATE_UP,),
    "block_sparse_moe.output_linear": (_EXPERTS_DOWN,),
    "block_sparse_moe.router": (("block_sparse_moe.router.layer",),),
    "block_sparse_moe.router.layer": (("block_sparse_moe.router.layer",),),
    **_GRANITE_SHARED,
}
_MAMBA: Final = _plain("mamba.in_proj", "mamba.out_proj")
_SHARED_EXPERT: Final = _plain(
    *_SHARED_GATE_UP, "mlp.shared_expert.down_proj", "mlp.shared_expert_gate"
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
    Family("granite", ("granite",), {**_ATTENTION, **_MLP, **_GRANITE_SHARED}, True),
    Family("granitemoe", ("granitemoe",), {**_ATTENTION, **_GRANITE_EXPERTS}, True),
    Family(
        "granitehybrid",
        ("granitemoehybrid",),
        {**_ATTENTION, **_MAMBA, **_GRANITE_EXPERTS},
        True,
    ),
    Family("qwen2", ("qwen2", "qwen2.5"), {**_ATTENTION, **_MLP}),
    Family(
        "qwen2moe",
        ("qwen2moe",),
        {**_ATTENTION, **_MLP, **_EXPERTS, **_SINGLE_EXPERTS, **_SHARED_EXPERT},
    ),
    Family("qwen3", ("qwen3",), {**_ATTENTION, **_MLP}),
    Family("qwen3moe", ("qwen3moe",), {**_ATTENTION, **_MLP, **_EXPERTS, **_SINGLE_EXPERTS}),
    Family("gemma2", ("gemma2",), {**_ATTENTION, **_MLP}),
    Family("gemma3", ("gemma3",), {**_ATTENTION, **_MLP}),
    Family(
        "phi3",
        ("phi3",),
        {
            "self_attn.qkv_proj": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),),
            **_plain("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        },
    ),
    Family("olmo2", ("olmo2",), {**_ATTENTION, **_MLP}),
    Family("smollm3", ("smollm3",), {**_ATTENTION, **_MLP}, True),
    Family("starcoder2", ("starcoder2",), {**_ATTENTION, **_plain("mlp.c_fc", "mlp.c_proj")}),
    Family(
        "gpt2",
        ("gpt2",),
        _plain("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
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
    return ", ".join(_names())


def _names() -> Iterator[str]:
    for family in FAMILIES.values():
        yield from family.names
