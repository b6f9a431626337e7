"""The table of modules names the tensors that upstream's own table names."""

from __future__ import annotations

import pytest
from alora_gguf.convert.base.families import FAMILIES

from tests.support.upstream import upstream_gguf

# modules whose rows are several tensors, and those that gguf knows by another path
EXPERTS = ("mlp.experts.gate_proj", "mlp.experts.up_proj")
JOINED = {
    "experts.gate_up_proj": EXPERTS,
    "feed_forward.experts.gate_up_proj": EXPERTS,
    "feed_forward.experts.down_proj": ("mlp.experts.down_proj",),
    "feed_forward.experts.w1": ("mlp.experts.gate_proj",),
    "feed_forward.experts.w2": ("mlp.experts.down_proj",),
    "feed_forward.experts.w3": ("mlp.experts.up_proj",),
    "linear_attn.in_proj_qkvz": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    "mlp.experts.gate_up_proj": EXPERTS,
    "block_sparse_moe.experts.gate_up_proj": EXPERTS,
    "block_sparse_moe.experts.down_proj": ("mlp.experts.down_proj",),
    "block_sparse_moe.input_linear": EXPERTS,
    "block_sparse_moe.output_linear": ("mlp.experts.down_proj",),
    "block_sparse_moe.router": ("block_sparse_moe.router.layer",),
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "shared_mlp.input_linear": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    "shared_mlp.output_linear": ("mlp.shared_expert.down_proj",),
}
# what these are in a granite without experts
DENSE = {
    "shared_mlp.input_linear": ("mlp.gate_proj", "mlp.up_proj"),
    "shared_mlp.output_linear": ("mlp.down_proj",),
}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_names_are_ggufs(architecture: str) -> None:
    family = FAMILIES[architecture]
    architectures = upstream_gguf("constants").MODEL_ARCH_NAMES
    kind = next(k for k, name in architectures.items() if name == architecture)
    names = upstream_gguf("tensor_mapping").get_tensor_name_map(kind, 1)

    def named(paths: tuple[str, ...]) -> list[str | None]:
        return [names.get_name(f"{family.block}.0.{path}") for path in paths]

    assert names.get_name(family.embedding) == "token_embd"
    for module, readings in family.modules.items():
        paths = [JOINED.get(module, (module,)), *([DENSE[module]] if module in DENSE else [])]
        known = [found for found in map(named, paths) if None not in found]
        assert [[f"blk.0.{tensor}" for tensor in tensors] for tensors in readings] == known, module
        assert known, module
