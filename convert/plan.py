"""Matches an adapter's tensors with the base's: what will be written is decided here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import (
    AdapterMismatchError,
    ConvertError,
    FileFormatError,
    UnsupportedAdapterError,
)

from .base_model import BaseModel
from .peft_config import PeftConfig
from .safetensors_file import SafetensorsFile, StoredTensor

if TYPE_CHECKING:
    from gguf import TensorNameMap

_PREFIX: Final = "base_model.model."
_SUFFIXES: Final = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
_EMBEDDING: Final = "model.embed_tokens"
_HEAD: Final = "lm_head"
_BLOCK: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Pair:
    """One adapted weight.

    target   the base's tensor, such as "blk.0.attn_q.weight"
    module   the adapted module, such as "model.layers.0.self_attn.q_proj"
    a, b     its factors: [rank, n_in] and [n_out, rank] in torch's order
    heads    B's rows go into llama.cpp's order for so many heads; 0 leaves them as they are
    flip_a   an embedding's A is written transposed, as llama.cpp reads its columns
    scale    what PEFT multiplies B·A with
    """

    target: str
    module: str
    a: StoredTensor
    b: StoredTensor
    scale: float
    heads: int = 0
    flip_a: bool = False

    @property
    def rank(self) -> int:
        """The inner dimension of B·A."""
        return self.a.shape[0]


@dataclass
class _Half:
    a: StoredTensor | None = None
    b: StoredTensor | None = None


@dataclass
class Plan:
    """All pairs, in the order of their names with layers counted as numbers, and remarks."""

    pairs: list[Pair] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(config: PeftConfig, weights: SafetensorsFile, base: BaseModel) -> Plan:
    """Finds a base tensor for every pair of adapter tensors and checks all shapes.

    Raises UnsupportedAdapterError for tensors that cannot be converted, AdapterMismatchError where
    the base has no such tensor or another shape, FileFormatError for half a pair.
    """
    plan = Plan()
    halves = _collect(weights, base, plan)
    if not halves:
        raise ConvertError(f"{weights.path}: holds no LoRA tensors (lora_A, lora_B)")
    names = _name_map(base)
    for module, half in halves.items():
        if half.a is None or half.b is None:
            missing, present = ("B", "A") if half.b is None else ("A", "B")
            raise FileFormatError(
                f"{weights.path}: module '{module}' has a lora_{present} but no lora_{missing}"
            )
        plan.pairs.append(_pair(module, half.a, half.b, config, weights, base, names))
    plan.pairs.sort(key=lambda pair: _sort_key(pair.target))
    return plan


def _collect(weights: SafetensorsFile, base: BaseModel, plan: Plan) -> dict[str, _Half]:
    halves: dict[str, _Half] = {}
    for name, info in weights.tensors.items():
        suffix = next((s for s in _SUFFIXES if name.endswith(s)), None)
        if suffix is None or not name.startswith(_PREFIX):
            _refuse_stranger(name, info, weights, base, plan)
            continue
        half = halves.setdefault(name[len(_PREFIX) : -len(suffix)], _Half())
        if _SUFFIXES[suffix] == "A":
            half.a = info
        else:
            half.b = info
    return halves


def _refuse_stranger(
    name: str, info: StoredTensor, weights: SafetensorsFile, base: BaseModel, plan: Plan
) -> None:
    """Passes over copies of the base's own embeddings; refuses every other tensor, with a reason.

    PEFT saves the embeddings along when they are targets, or when it cannot tell whether they
    changed; with the vocabulary's size unchanged, the base has them already.
    """
    copies = {
        f"{_PREFIX}{_EMBEDDING}.base_layer.weight": "token_embd.weight",
        f"{_PREFIX}{_HEAD}.base_layer.weight": "output.weight",
    }
    if name in copies:
        target = "token_embd.weight" if base.tied else copies[name]
        if base.shape(target) == info.shape[::-1]:
            plan.warnings.append(f"'{name}' is taken to equal the base's {target}; not converted")
            return
        raise UnsupportedAdapterError(
            f"{weights.path}: '{name}' has the shape {list(info.shape)}, but the base's {target} "
            f"has {list((base.shape(target) or ())[::-1])}: the adapter's vocabulary was resized; "
            "convert it with a base GGUF made from the resized model"
        )
    if "lora_magnitude_vector" in name:
        reason = "belongs to DoRA, whose magnitudes an adapter GGUF cannot hold"
    elif name.endswith((".lora_B.bias", ".lora_A.bias")):
        reason = "is a bias, which an adapter GGUF cannot hold"
    elif ".lora_" in name:
        reason = "is not one of PEFT's lora_A.weight and lora_B.weight tensors"
    else:
        reason = "is a whole weight (modules_to_save), not a low-rank change"
    raise UnsupportedAdapterError(
        f"{weights.path}: '{name}' {reason}; train without it, or merge it into the base"
    )


def _pair(
    module: str,
    a: StoredTensor,
    b: StoredTensor,
    config: PeftConfig,
    weights: SafetensorsFile,
    base: BaseModel,
    names: TensorNameMap,
) -> Pair:
    target, heads = _target(module, config, weights, base, names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise FileFormatError(
            f"{weights.path}: module '{module}' has lora_A {list(a.shape)} and lora_B "
            f"{list(b.shape)}, expected [r, in] and [out, r]"
        )
    rank = config.rank_of(module)
    if rank != a.shape[0]:
        raise FileFormatError(
            f"{weights.path}: module '{module}' has the rank {a.shape[0]}, but {config.path.name} "
            f"(r, rank_pattern) says {rank}"
        )
    embeds = module == _EMBEDDING
    # an embedding's weight is stored [vocab, dim], transposed to what a linear layer's would be
    found = (b.shape[0], a.shape[1]) if embeds else (a.shape[1], b.shape[0])
    shape = base.shape(target)
    if shape is None:
        raise AdapterMismatchError(
            f"{base.path}: has no tensor '{target}', which the adapter's '{module}' changes; "
            "was the adapter trained on another base?"
        )
    if found != shape:
        raise AdapterMismatchError(
            f"{base.path}: '{target}' maps {shape[0]} to {shape[1] if len(shape) > 1 else 1} "
            f"values, but the adapter's module '{module}' maps {found[0]} to {found[1]}; is it "
            "another base than the adapter was trained on?"
        )
    if heads and b.shape[0] % (2 * heads):
        raise FileFormatError(
            f"{base.path}: '{target}' has {b.shape[0]} rows, which {heads} heads cannot share"
        )
    return Pair(target, module, a, b, config.scale_of(module), heads, flip_a=embeds)


def _target(
    module: str,
    config: PeftConfig,
    weights: SafetensorsFile,
    base: BaseModel,
    names: TensorNameMap,
) -> tuple[str, int]:
    """The base's tensor for a module, and the heads its rows are ordered by (0: as they are)."""
    if module in (_EMBEDDING, _HEAD):
        _check_embedding(module, config, weights, base)
        return ("token_embd.weight" if module == _EMBEDDING else "output.weight"), 0
    block = _BLOCK.fullmatch(module)
    layout = base.family.blocks.get(block[2]) if block else None
    layer = int(block[1]) if block else 0
    if layout and layer >= base.n_layers:
        raise AdapterMismatchError(
            f"{base.path}: has {base.n_layers} layers, but the adapter changes '{module}'; "
            "was the adapter trained on another base?"
        )
    name = names.get_name(module)
    if layout is None or name is None:
        known = ", ".join(sorted(base.family.blocks))
        raise UnsupportedAdapterError(
            f"{weights.path}: module '{module}' cannot be converted for {base.architecture}; "
            f"what can: {known} of model.layers.<n>, {_EMBEDDING} and {_HEAD}"
        )
    heads = 0 if layout == "plain" else base.n_heads(layer, keys=layout == "key heads")
    return f"{name}.weight", heads


def _check_embedding(
    module: str, config: PeftConfig, weights: SafetensorsFile, base: BaseModel
) -> None:
    if base.tied or config.ties_weights:
        raise UnsupportedAdapterError(
            f"{weights.path}: module '{module}' cannot be converted: {base.path.name} uses one "
            "tensor as embedding and as output, so changing the one would change the other; leave "
            "embed_tokens and lm_head out of target_modules"
        )
    if module == _EMBEDDING and config.invocation is not None:
        raise UnsupportedAdapterError(
            f"{weights.path}: module '{module}' cannot be converted for an aLoRA: PEFT does not "
            "define what activation means for an embedding; leave it out of target_modules"
        )


def _name_map(base: BaseModel) -> TensorNameMap:
    import gguf

    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == base.architecture)
    return gguf.get_tensor_name_map(arch, base.n_layers)


def _sort_key(name: str) -> tuple[str | int, ...]:
    # split() with a group alternates text and digits, so equal places compare equal kinds
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
