"""Which modules of a Hugging Face model become which tensors of the GGUF, family by family.

One more family is one more entry of FAMILIES and one more parity test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

# What a module's rows need besides their new name: nothing, or the order in which llama.cpp keeps
# the query and key heads of models with Llama's rotary embedding (see plan.head_order).
Layout = Literal["plain", "query heads", "key heads"]

_MLP: Final[Mapping[str, Layout]] = {
    "mlp.gate_proj": "plain",
    "mlp.up_proj": "plain",
    "mlp.down_proj": "plain",
}
_ATTENTION: Final[Mapping[str, Layout]] = {
    "self_attn.q_proj": "plain",
    "self_attn.k_proj": "plain",
    "self_attn.v_proj": "plain",
    "self_attn.o_proj": "plain",
}
_ROTATED: Final[Mapping[str, Layout]] = {
    **_ATTENTION,
    "self_attn.q_proj": "query heads",
    "self_attn.k_proj": "key heads",
}


@dataclass(frozen=True)
class Family:
    """Models that share a `general.architecture`.

    `blocks` maps a module's path inside a transformer block ("model.layers.<n>.") to its layout;
    its GGUF name is gguf's TensorNameMap's business. `names` are the families' common names.
    """

    architecture: str
    names: tuple[str, ...]
    blocks: Mapping[str, Layout]


FAMILIES: Final[Mapping[str, Family]] = {
    family.architecture: family
    for family in (
        Family("llama", ("llama", "mistral"), {**_ROTATED, **_MLP}),
        Family("granite", ("granite",), {**_ROTATED, **_MLP}),
        Family("qwen2", ("qwen2", "qwen2.5"), {**_ATTENTION, **_MLP}),
        Family("qwen3", ("qwen3",), {**_ATTENTION, **_MLP}),
    )
}


def supported_names() -> str:
    """The families' common names, for messages and documentation."""
    return ", ".join(name for family in FAMILIES.values() for name in family.names)
