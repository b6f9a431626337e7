"""Adapters as PEFT saved them under transformers 4, and what they compute.

Each expert was a module of linear layers then. PEFT 0.21 with transformers 5 is not an oracle for
them: it forgets the square root in the scale of fused rsLoRA pairs, drops granitemoe's routers
without a word and refuses qwen2moe's. So the reference here merges every change into the weights
of transformers' model, in float64. All of it agreed with transformers 4.57.1 and PEFT 0.18.1 to
1e-6; where PEFT 0.21 is right, tests/parity/test_transformers4.py compares with it.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .peft_oracle import TinyAdapter, activation_point, choose
from .tiny_models import TinyModel

if TYPE_CHECKING:
    import torch

OLD_FAMILIES = ("mixtral", "qwen2moe", "qwen3moe", "granitemoe", "granitemoe-square")
_ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]


@dataclass(frozen=True)
class _Place:
    """Where a module of transformers 4 is in transformers 5: which rows of which parameter.

    `expert` is None for a parameter without experts, or, with `fused`, for all of them at once.
    """

    parameter: str
    expert: int | None = None
    half: int | None = None  # of the rows: 0 the gate's, 1 the up projection's
    fused: bool = False

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """A view [.., out, in] of that part of the parameter."""
        part = weight if self.expert is None else weight[self.expert]
        return part if self.half is None else part.chunk(2)[self.half]


def _block(family: str, n_experts: int) -> dict[str, _Place]:
    """The modules of a block that transformers 4 and PEFT could adapt."""
    places = {name: _Place(f"{name}.weight") for name in _ATTENTION}
    if family.startswith("granitemoe"):
        sparse = "block_sparse_moe"
        places[f"{sparse}.router.layer"] = _Place(f"{sparse}.router.weight")
        for old, new in (("input_linear", "gate_up_proj"), ("output_linear", "down_proj")):
            places[f"{sparse}.{old}"] = _Place(f"{sparse}.experts.{new}", fused=True)
        return places
    sparse, gate, up, down = "mlp", "gate_proj", "up_proj", "down_proj"
    if family == "mixtral":
        sparse, gate, up, down = "block_sparse_moe", "w1", "w3", "w2"
    places[f"{sparse}.gate"] = _Place("mlp.gate.weight")
    for i in range(n_experts):
        expert = f"{sparse}.experts.{i}"
        places[f"{expert}.{gate}"] = _Place("mlp.experts.gate_up_proj", i, half=0)
        places[f"{expert}.{up}"] = _Place("mlp.experts.gate_up_proj", i, half=1)
        places[f"{expert}.{down}"] = _Place("mlp.experts.down_proj", i)
    if family == "qwen2moe":
        for name in ("shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj"):
            places[f"mlp.{name}"] = _Place(f"mlp.{name}.weight")
        places["mlp.shared_expert_gate"] = _Place("mlp.shared_expert_gate.weight")
    return places


def make_old_adapter(
    model: TinyModel,
    directory: Path,
    *,
    invocation: Sequence[int] | None = None,
    rank: int = 4,
    alpha: int = 8,
    seed: int = 0,
    size: float = 0.2,
    without: str | None = None,
    **options: Any,
) -> TinyAdapter:
    """Writes a random adapter of all linear layers of a block, and of granitemoe's experts.

    without     a regular expression: modules of a block that it matches are left out
    options     further fields of peft.LoraConfig; rank_pattern and alpha_pattern are honoured
    """
    from peft import LoraConfig
    from safetensors.numpy import save_file

    torch_model = model.load()
    weights = dict(torch_model.named_parameters())
    places = _block(model.family, _n_experts(torch_model.config))
    names = [m for m in places if without is None or not re.search(without, m)]
    parameters = [f"{m}.weight" for m in names if places[m].fused]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(model.directory),
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted({m.rsplit(".", 1)[1] for m in names if not places[m].fused}),
        target_parameters=parameters or None,
        alora_invocation_tokens=None if invocation is None or parameters else list(invocation),
        **options,
    )
    config.save_pretrained(str(directory))
    path = directory / "adapter_config.json"
    fields = {**json.loads(path.read_text()), "peft_version": "0.18.1"}
    path.write_text(json.dumps(fields, indent=2))

    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(torch_model.config.num_hidden_layers):
        for module in names:
            place = places[module]
            shape = place.of(weights[f"model.layers.{layer}.{place.parameter}"]).shape
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            r = _pattern(fields["rank_pattern"], prefix, place, rank)
            a, b = (r, shape[-1]), (shape[-2], r)
            if place.fused:  # old PEFT took [expert, out, in] for [expert, in, out]
                a, b = (r * shape[0], shape[1]), (shape[2], r * shape[0])
            tensors[f"{prefix}.lora_A.weight"] = _noise(random, a, 1.0)
            tensors[f"{prefix}.lora_B.weight"] = _noise(random, b, size)
    save_file(tensors, directory / "adapter_model.safetensors")
    return TinyAdapter(model, directory, None if invocation is None else tuple(invocation))


def old_reference_logits(
    adapter: TinyAdapter, tokens: Sequence[int], *, first: int | None = None
) -> NDArray[np.float32]:
    """As peft_oracle.reference_logits(), for an adapter of make_old_adapter()."""
    import torch

    if first is None:
        first = 0 if adapter.invocation is None else activation_point(adapter, tokens)
    on = (torch.arange(len(tokens)) >= first)[:, None]
    base, merged, changed = _models(adapter)
    modules = {name: base.get_submodule(name) for name in changed}
    for name, module in modules.items():
        module.forward = _both(module.forward, merged.get_submodule(name).forward, on)
    try:
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
    finally:
        for module in modules.values():
            del module.forward
    return np.asarray(logits[0].numpy(), dtype=np.float32)


def _both(base: Any, adapted: Any, on: torch.Tensor) -> Any:
    return lambda *args: choose(on, adapted(*args), base(*args))


@functools.lru_cache(maxsize=4)
def _models(adapter: TinyAdapter) -> tuple[Any, Any, frozenset[str]]:
    """The base, the base with the adapter merged, and the modules whose parameters differ."""
    import torch
    from safetensors.torch import load_file

    base, merged = adapter.model.load(), adapter.model.load()
    fields = json.loads((adapter.directory / "adapter_config.json").read_text())
    tensors = load_file(adapter.directory / "adapter_model.safetensors")
    places = _block(adapter.model.family, _n_experts(base.config))
    weights = {name: p.detach().double() for name, p in base.named_parameters()}
    changed = set()
    for name in tensors:
        found = re.fullmatch(r"base_model\.model\.(model\.layers\.\d+)\.(.+)\.lora_A\.weight", name)
        if found:
            layer, module = found.groups()
            place, full = places[module], f"{layer}.{module}"
            ab = tensors[name].double(), tensors[name.replace("lora_A", "lora_B")].double()
            parameter = f"{layer}.{place.parameter}"
            place.of(weights[parameter]).add_(_delta(fields, place, full, *ab))
            changed.add(parameter.rsplit(".", 1)[0])
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.copy_(weights[name])
    return base, merged, frozenset(changed)


def _delta(
    fields: dict[str, Any], place: _Place, module: str, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """What a pair adds to its part of a parameter, [.., out, in]."""
    import torch

    r = _pattern(fields["rank_pattern"], module, place, fields["r"])
    alpha = _pattern(fields["alpha_pattern"], module, place, fields["lora_alpha"])
    scale = alpha / math.sqrt(r) if fields["use_rslora"] else alpha / r
    if not place.fused:
        return scale * b @ a
    n = a.shape[0] // r
    per_expert = a.reshape(n, r, -1), b.reshape(b.shape[0], r, n)
    return scale * torch.einsum("ero,ire->eoi", *per_expert)


def _n_experts(config: Any) -> int:
    return int(getattr(config, "num_local_experts", None) or config.num_experts)


def _pattern(patterns: dict[str, int], module: str, place: _Place, otherwise: int) -> int:
    """A rank or alpha as PEFT finds it: by the name of what was adapted, module or parameter."""
    name = f"{module}.weight" if place.fused else module
    matching = (v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(matching, otherwise)


def _noise(random: np.random.Generator, shape: tuple[int, ...], gain: float) -> NDArray[np.float32]:
    out = random.standard_normal(shape, dtype=np.float32)
    out *= gain * shape[-1] ** -0.5
    return out
