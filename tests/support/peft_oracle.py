"""PEFT as the oracle: makes adapters, saves them as users have them, and says what they compute."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .tiny_models import TinyModel

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_DELTA = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "in_proj_qkvz", "in_proj_ba"),
]
# what a target set means for a family, as PEFT's target_modules ...
_TARGETS: dict[str, dict[str, list[str] | str]] = {
    "attention": {
        "*": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "phi3": ["qkv_proj", "o_proj"],
        "gpt2": ["c_attn", "attn.c_proj"],
        "gpt_bigcode": ["c_attn", "attn.c_proj"],
        "gpt_neox": ["query_key_value", "attention.dense"],
        "bloom": ["query_key_value", "self_attention.dense"],
        "phi": ["q_proj", "k_proj", "v_proj", "dense"],
        "lfm2": ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj"],
        "lfm2moe": ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj"],
        "qwen35": _DELTA,
        "qwen35moe": _DELTA,
        "qwen3next": _DELTA,
    },
    "all-linear": {"*": "all-linear"},
    "experts": {"*": []},
}
# ... and its target_parameters: the routed experts and their router are no linear layers
_GRANITE_MOE = [
    f"block_sparse_moe.{name}"
    for name in ("experts.gate_up_proj", "experts.down_proj", "router.weight")
]
_MIXTRAL_MOE = [
    f"mlp.{name}" for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
]
_LFM2_MOE = [
    f"feed_forward.{name}" for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
]
_GPT_OSS = [
    f"mlp.{name}" for name in ("experts.gate_up_proj", "experts.down_proj", "router.weight")
]
_LLAMA4 = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
_GEMMA4 = ["experts.gate_up_proj"]  # see tests/convert/test_refusals.py
_PARAMETERS: dict[str, list[str]] = {
    "mixtral": _MIXTRAL_MOE,
    "qwen2moe": _MIXTRAL_MOE,
    "qwen3moe": _MIXTRAL_MOE,
    "granitemoe": _GRANITE_MOE,
    "granitemoe-square": _GRANITE_MOE,
    "granitemoehybrid-moe": _GRANITE_MOE,
    "granitemoehybrid-attention-moe": _GRANITE_MOE,
    "granitemoe_swa": _GRANITE_MOE,
    "granitemoeshared": _GRANITE_MOE,
    "qwen35moe": _MIXTRAL_MOE,
    "qwen3next": _MIXTRAL_MOE,
    "olmoe": _MIXTRAL_MOE,
    "hy_v3": _MIXTRAL_MOE,
    "glm4moe": _MIXTRAL_MOE,
    "ernie4_5moe": _MIXTRAL_MOE,
    "lfm2moe": _LFM2_MOE,
    "gpt-oss": _GPT_OSS,
    "gpt-oss-square": _GPT_OSS,
    "llama4": _LLAMA4,
    "gemma4-moe": _GEMMA4,
}
# here PEFT itself takes "all-linear" as it was in transformers 4, where experts were linear layers
PEFT_ADDS_EXPERTS = ("mixtral", "qwen3moe", "qwen3next", "olmoe", "glm4moe", "ernie4_5moe")


@dataclass(frozen=True)
class TinyAdapter:
    """An adapter directory as PEFT's save_pretrained wrote it; `invocation` is None for a LoRA."""

    model: TinyModel
    directory: Path
    invocation: tuple[int, ...] | None


def has_experts(family: str) -> bool:
    """Whether the target set "experts" exists for a family."""
    return family in _PARAMETERS


def make_adapter(
    model: TinyModel,
    directory: Path,
    *,
    targets: str = "attention",
    invocation: Sequence[int] | None = None,
    rank: int = 8,
    alpha: int = 16,
    seed: int = 0,
    size: float = 0.1,
    **options: Any,
) -> TinyAdapter:
    """Writes a random adapter for `model` into `directory`.

    PEFT (0.21) refuses an aLoRA on fused expert parameters; such an adapter is saved as a LoRA, and
    only the returned record, and with it the functions below, know its invocation.

    targets     "attention"; "experts", for families that have some: all that is routed, and the
                router (through PEFT's target_parameters); or "all-linear": all linear layers, and
                experts as well
    invocation  token ids of an aLoRA; None makes a plain LoRA
    size        how large the adapter's output is, relative to its input and before alpha/rank
    options     further fields of peft.LoraConfig
    """
    import torch
    from peft import LoraConfig, get_peft_model

    modules = _TARGETS[targets].get(model.family, _TARGETS[targets]["*"])
    experts = targets != "attention" and has_experts(model.family)
    if targets == "experts" or (experts and model.family not in PEFT_ADDS_EXPERTS):
        options.setdefault("target_parameters", _PARAMETERS[model.family])
    if model.family == "llama4" and modules == "all-linear":
        # its router is a linear layer by its class, but returns scores as well
        options.setdefault("exclude_modules", r".*\.router")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=options.pop("target_modules", modules),
        alora_invocation_tokens=None if invocation is None or experts else list(invocation),
        init_lora_weights=False,
        **options,
    )
    peft_model = get_peft_model(model.load(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                gain = size if "lora_B" in name or "embedding_B" in name else 1.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * gain * parameter.shape[-1] ** -0.5)
    peft_model.save_pretrained(str(directory))
    return TinyAdapter(model, directory, None if invocation is None else tuple(invocation))


def with_invocation(
    adapter: TinyAdapter, directory: Path, invocation: Sequence[int]
) -> TinyAdapter:
    """A copy in `directory` of an aLoRA with another invocation."""
    shutil.copytree(adapter.directory, directory)
    path = directory / "adapter_config.json"
    fields = {**json.loads(path.read_text()), "alora_invocation_tokens": list(invocation)}
    path.write_text(json.dumps(fields))
    return TinyAdapter(adapter.model, directory, tuple(invocation))


def reference_logits(
    model: TinyModel,
    adapter: TinyAdapter | None,
    tokens: Sequence[int],
    *,
    first: int | None = None,
) -> NDArray[np.float32]:
    """Logits [n_tokens, n_vocab] of `tokens`; without an adapter, the base's.

    An aLoRA is on from the first token of the last occurrence of its invocation, as PEFT finds it,
    or from position `first`. Where the invocation does not occur, PEFT computes the base.
    """
    import torch

    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        if adapter is None:
            logits = _base(model)(input_ids=ids, use_cache=False).logits
        elif adapter.invocation is None:
            logits = _with_adapter(adapter)(input_ids=ids, use_cache=False).logits
        else:
            start = activation_point(adapter, tokens) if first is None else first
            logits = _activated(adapter, ids, start)
    return np.asarray(logits[0].numpy(), dtype=np.float32)


def reference_together(
    adapters: Sequence[tuple[TinyAdapter, float]], tokens: Sequence[int]
) -> NDArray[np.float32]:
    """Logits [n_tokens, n_vocab] with several adapters active in PEFT at once, each at its scale;
    an aLoRA from its invocation on. Experts' parameters take one adapter only there.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    (first, _), *others = adapters
    peft_model = PeftModel.from_pretrained(
        first.model.load(), str(first.directory), adapter_name="0"
    ).eval()
    for i, (adapter, _) in enumerate(others, start=1):
        peft_model.load_adapter(str(adapter.directory), adapter_name=str(i))
    peft_model.base_model.set_adapter([str(i) for i in range(len(adapters))])
    for module in peft_model.modules():
        if isinstance(module, LoraLayer):
            for i, (_, scale) in enumerate(adapters):
                if str(i) in module.scaling:
                    module.scaling[str(i)] *= scale
    begun = [activation_point(each, tokens) for each, _ in adapters if each.invocation]
    options: dict[str, Any] = {}
    if begun:
        options["alora_offsets"] = [len(tokens) - begun[0] or None]
    with torch.no_grad():
        output = peft_model(input_ids=torch.tensor([list(tokens)]), use_cache=False, **options)
    return np.asarray(output.logits[0].numpy(), dtype=np.float32)


def reference_greedy(
    model: TinyModel, adapter: TinyAdapter | None, tokens: Sequence[int], n: int
) -> list[int]:
    """The `n` most likely next tokens, one after another.

    Everything is computed afresh for each, without a cache. The activation point is that of
    `tokens`: what is generated cannot move it.
    """
    first = None
    if adapter is not None and adapter.invocation is not None:
        first = activation_point(adapter, tokens)
    sequence = list(tokens)
    for _ in range(n):
        logits = reference_logits(model, adapter, sequence, first=first)
        sequence.append(int(logits[-1].argmax()))
    return sequence[len(tokens) :]


def activation_point(adapter: TinyAdapter, tokens: Sequence[int]) -> int:
    """The position PEFT activates an aLoRA at; len(tokens) if its invocation does not occur."""
    import torch
    from peft.tuners.lora.variants import calculate_alora_offsets

    config = SimpleNamespace(alora_invocation_tokens=adapter.invocation)
    configs: Any = {"default": config}
    offsets = calculate_alora_offsets(configs, "default", torch.tensor([list(tokens)]))
    return len(tokens) - (offsets[0] or 0)


@functools.lru_cache(maxsize=16)
def _base(model: TinyModel) -> Any:
    return model.load()


@functools.lru_cache(maxsize=16)
def _with_adapter(adapter: TinyAdapter) -> PeftModel:
    from peft import PeftModel

    return PeftModel.from_pretrained(adapter.model.load(), str(adapter.directory)).eval()


def _activated(adapter: TinyAdapter, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Logits [1, n_tokens, n_vocab] with an aLoRA on from `first`."""
    peft_model = _with_adapter(adapter)
    n_tokens = ids.shape[1]
    options: dict[str, Any] = {}
    masked = []
    if peft_model.active_peft_config.alora_invocation_tokens:
        options["alora_offsets"] = [n_tokens - first or None]
    else:
        masked = _mask(peft_model, n_tokens, first)
    try:
        output = peft_model(input_ids=ids, use_cache=False, **options)
    finally:
        for module in masked:
            del module.forward  # what _mask set on the instance; the class's own is back
    return output.logits  # type: ignore[no-any-return]


def _mask(peft_model: PeftModel, n_tokens: int, first: int) -> list[Any]:
    """Makes a LoRA an activated one: each token takes a layer's adapted or base output.

    Works for any layer whose output has a row per token. Returns the modules it changed.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    layers = [m for m in peft_model.modules() if isinstance(m, LoraLayer)]
    nested = {id(m.base_layer) for m in layers}  # a second expert parameter wraps the first
    on = (torch.arange(n_tokens) >= first)[:, None]

    def masked(layer: Any) -> Any:
        adapted, base = layer.forward, layer.get_base_layer()
        return lambda x, *rest: choose(on, adapted(x, *rest), base(x, *rest))

    outer = [m for m in layers if id(m) not in nested]
    for layer in outer:
        layer.forward = masked(layer)
    return outer


def choose(on: torch.Tensor, adapted: Any, base: Any) -> Any:
    """Each token's row of what a layer returns, adapted where `on` [n_tokens, 1] says so.

    A router returns several tensors, all with a row per token.
    """
    import torch

    if isinstance(adapted, tuple):
        return tuple(choose(on, one, other) for one, other in zip(adapted, base, strict=True))
    if adapted.dim() == 2:  # llama4 gives each expert all tokens
        on = on.repeat(len(adapted) // len(on), 1)
    return torch.where(on, adapted, base)
