"""Adapter GGUFs whose tensors are named by hand, for families that `convert/` cannot do yet.

Written with gguf's own writer and from PEFT's files, so they share no code with the converter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .peft_oracle import TinyAdapter

Array = NDArray[np.float32]

# module inside a block -> tensor inside a block; where there are two, B's rows are shared out
_COMMON = {
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
}
_BY_FAMILY: dict[str, dict[str, tuple[str, ...]]] = {
    "phi3": {"self_attn.qkv_proj": ("attn_qkv",), "mlp.gate_up_proj": ("ffn_up",)},
    "granitemoehybrid": {
        "mamba.in_proj": ("ssm_in",),
        "mamba.out_proj": ("ssm_out",),
        "shared_mlp.input_linear": ("ffn_gate", "ffn_up"),
        "shared_mlp.output_linear": ("ffn_down",),
    },
    # PEFT nests the wrappers of two parameters of one module: the first target is inside
    "granitemoe": {
        "block_sparse_moe.experts.base_layer": ("ffn_gate_exps", "ffn_up_exps"),
        "block_sparse_moe.experts": ("ffn_down_exps",),
        "block_sparse_moe.router": ("ffn_gate_inp",),
    },
}
_ROTATED = {"llama", "mistral", "granite", "granitemoe", "granitemoehybrid"}


def hand_adapter(adapter: TinyAdapter, path: Path) -> Path:
    """Writes an F32 adapter GGUF for any family of FAMILIES; returns `path`."""
    import gguf
    from gguf import GGUFReader

    family = adapter.model.family
    fields = json.loads((adapter.directory / "adapter_config.json").read_text())
    base = GGUFReader(adapter.model.gguf)
    arch = bytes(base.fields["general.architecture"].parts[-1]).decode()
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", fields["lora_alpha"])
    if adapter.invocation:
        key = gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS
        kind = gguf.GGUFValueType
        writer.add_key_value(key, list(adapter.invocation), kind.ARRAY, kind.UINT32)
    for name, a, b in _pairs(adapter, family):
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pairs(adapter: TinyAdapter, family: str) -> Iterator[tuple[str, Array, Array]]:
    """Tensor name, A [.., r, in] and B [.., out, r], for every target."""
    from safetensors.numpy import load_file

    tensors: dict[str, Array] = load_file(adapter.directory / "adapter_model.safetensors")
    config = json.loads((adapter.model.directory / "config.json").read_text())
    table = {**_COMMON, **_BY_FAMILY.get(family, {})}
    for key in sorted(tensors):
        found = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_A\.weight", key)
        if found is None:
            continue
        layer, module = found.groups()
        a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        if "experts" in module:
            a, b = _per_expert(a, b, config["num_local_experts"])
        elif family in _ROTATED and module.endswith(("q_proj", "k_proj")):
            which = "num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"
            b = _interleave(b, config[which])
        names = table[module]
        for name, rows in zip(names, np.split(b, len(names), axis=-2), strict=True):
            yield f"blk.{layer}.{name}", a, rows


def _per_expert(a: Array, b: Array, n_experts: int) -> tuple[Array, Array]:
    """[experts·r, in] and [out, r·experts] as [experts, r, in] and [experts, out, r].

    PEFT keeps A expert by expert and B rank by rank (ParamWrapper.get_delta_weight).
    """
    rank = a.shape[0] // n_experts
    return (
        a.reshape(n_experts, rank, a.shape[1]),
        b.reshape(b.shape[0], rank, n_experts).transpose(2, 0, 1),
    )


def _interleave(b: Array, heads: int) -> Array:
    """Row i of a head's first half to 2i, of its second half to 2i + 1."""
    out: Any = np.empty_like(b)
    size = b.shape[0] // heads
    for head in range(heads):
        block = b[head * size : (head + 1) * size]
        out[head * size : (head + 1) * size : 2] = block[: size // 2]
        out[head * size + 1 : (head + 1) * size : 2] = block[size // 2 :]
    return out  # type: ignore[no-any-return]
