"""The transformers configuration of a base's GGUF: the model that llama.cpp's graph computes.

What llama.cpp does not read of the metadata is not read here either, and what it leaves out has the
value that it takes. Tensors: hf_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from alora_gguf.convert.base.gguf import GGUFBase
from alora_gguf.errors import ModelError
from alora_gguf.gguf.parser import ArrayRef

_Options = dict[str, Any]
_Built = tuple[str, _Options]
# the two whose attention llama.cpp scales by the width of a layer: Gemma 2 27B and Gemma 3 27B
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}
_GEMMA_PATTERN: Final = {"gemma2": 2, "gemma3": 6}  # every which layer attends to everything
_NO_ROPE_INTERVAL: Final = 4  # SmolLM3: every which layer has no rotary embedding


class _Metadata:
    """A base's metadata and tensors, asked for without "<architecture>."."""

    def __init__(self, base: GGUFBase) -> None:
        self.base = base
        self.header = base.header
        self.name = base.architecture

    def fail(self, problem: str, way_out: str) -> ModelError:
        return ModelError(f"{self.base.label}: {problem}; {way_out}")

    def has(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.header.metadata

    def value(self, key: str, default: Any, kinds: tuple[type, ...], words: str) -> Any:
        full = f"{self.name}.{key}"
        if full not in self.header.metadata:
            if default is None:
                raise self.fail(f"the metadata key '{full}' is missing", "convert the model again")
            return default
        value = self.header.metadata[full]
        if isinstance(value, ArrayRef) and value.count and len(set(self.header.array(full))) == 1:
            value = self.header.array(full)[0]  # of each layer, the same
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            shown = self.header.type_of(full)
            raise self.fail(f"'{full}' is {shown}, expected {words}", "convert the model again")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.value(key, default, (int,), "an integer, the same in all layers"))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self.value(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.value(key, default, (bool,), "true or false"))

    def string(self, key: str, default: str) -> str:
        return str(self.value(key, default, (str,), "a string"))

    def layers(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """A number of each layer, of which there may be one for all."""
        full, n = f"{self.name}.{key}", self.base.n_layers
        value = self.header.metadata.get(full)
        if not isinstance(value, ArrayRef):
            return (self.integer(key, default),) * n
        found = self.header.array(full)
        if len(found) < n or not all(isinstance(each, int) for each in found[:n]):
            shown = self.header.type_of(full)
            raise self.fail(
                f"'{full}' is {shown}, expected {n} integers", "convert the model again"
            )
        return tuple(map(int, found[:n]))

    def bias(self, *weights: str) -> bool:
        """Whether a block has a bias of one of these."""
        ends = tuple(f".{weight}.bias" for weight in weights)
        return any(name.endswith(ends) for name in self.header.tensors)

    @property
    def head_size(self) -> int:
        default = self.integer("embedding_length") // max(self.integer("attention.head_count"), 1)
        size = self.integer("attention.key_length", default)
        if size < 1:
            raise self.fail(f"its attention heads have {size} values", "convert the model again")
        return size


def planned(base: GGUFBase, dtype: str) -> Any:
    """A base's model as transformers has it, but with no memory for its weights; `config` of it is
    the configuration.

    Raises ModelError for what transformers cannot compute as llama.cpp does, and for metadata that
    is missing, of another type, or of no model.
    """
    import torch
    import transformers

    metadata = _Metadata(base)
    name, own = TRAINABLE[base.architecture](metadata)
    options = {**_common(metadata), **own}
    kind: Any = getattr(transformers, name)
    auto: Any = transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            plan = auto.from_config(kind(**options), dtype=getattr(torch, dtype))
            plan.tie_weights()
    except Exception as error:  # sizes that no model has, told by several libraries
        reason = " ".join(str(error).split())
        raise metadata.fail(
            f"transformers' {name} refuses what its metadata says: {reason}",
            "was it converted by llama.cpp's own converter?",
        ) from error
    return plan


def _common(m: _Metadata) -> _Options:
    heads = m.integer("attention.head_count")
    options: _Options = {
        "vocab_size": m.base.n_vocab,
        "hidden_size": m.integer("embedding_length"),
        "num_hidden_layers": m.base.n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(m.layers("attention.head_count_kv", heads)),
        "head_dim": m.head_size,
        "max_position_embeddings": m.integer("context_length"),
        "tie_word_embeddings": m.base.tied,
        "attention_bias": m.bias("attn_q", "attn_qkv"),
        "pad_token_id": None,  # which transformers would give no gradient
        **{f"{kind}_token_id": _token(m, kind) for kind in ("bos", "eos")},
    }
    if m.name not in ("starcoder2", "gpt2"):
        options["rms_norm_eps"] = m.number("attention.layer_norm_rms_epsilon")
    if m.has("feed_forward_length"):
        options["intermediate_size"] = m.integer("feed_forward_length")
    if m.name != "gpt2":
        options["rope_parameters"] = _rope(m)
    return options


def _token(m: _Metadata, kind: str) -> int | None:
    found = m.header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
    return found if isinstance(found, int) and 0 <= found < m.base.n_vocab else None


def _rope(m: _Metadata) -> _Options:
    """What llama.cpp takes for the rotary embedding; of YaRN it reads no more than this."""
    kind = m.string("rope.scaling.type", "linear")
    old = m.number("rope.scale_linear", 0.0)
    factor = m.number("rope.scaling.factor", old) or 1.0
    amplitude = m.number("rope.scaling.attn_factor", 1.0)
    rope: _Options = {"rope_type": "default", "rope_theta": m.number("rope.freq_base", 10000.0)}
    if kind not in ("none", "linear", "yarn"):
        raise m.fail(
            f"'{m.name}.rope.scaling.type' is '{kind}', of which transformers computes another "
            "model than llama.cpp",
            "train on a base whose positions are scaled by none, linear or yarn",
        )
    if kind == "yarn":
        trained = m.integer("context_length")
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": m.integer(
                "rope.scaling.original_context_length", trained
            ),
            "attention_factor": amplitude * (1 + 0.1 * math.log(max(factor, 1.0))),
        }
    elif amplitude != 1:
        raise m.fail(
            f"'{m.name}.rope.scaling.attn_factor' is {amplitude} with a scaling of type '{kind}', "
            "which transformers does not know",
            "train on another conversion of the model",
        )
    elif kind == "linear" and factor != 1:
        rope |= {"rope_type": "linear", "factor": factor}
    return rope | _partial(m)


def _partial(m: _Metadata) -> _Options:
    rotated = m.integer("rope.dimension_count", m.head_size)
    if m.name == "phi3" and rotated <= m.head_size:
        return {"partial_rotary_factor": rotated / m.head_size}
    if rotated != m.head_size:
        raise m.fail(
            f"'{m.name}.rope.dimension_count' is {rotated}, expected the {m.head_size} of a head, "
            "of which transformers rotates all",
            "convert the model again",
        )
    return {}


def _llama(m: _Metadata) -> _Built:
    experts = m.integer("expert_count", 0)
    if experts:
        used = m.integer("expert_used_count")
        return "MixtralConfig", {"num_local_experts": experts, "num_experts_per_tok": used}
    return "LlamaConfig", {"mlp_bias": m.bias("ffn_gate", "ffn_up", "ffn_down")}


def _granite(m: _Metadata) -> _Built:
    """Granite 3's dense and sparse models, or those of the hybrid's kind, all of attention too."""
    scalars = {
        "attention_multiplier": m.number("attention.scale", 0.0) or m.head_size**-0.5,
        "embedding_multiplier": m.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": m.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": m.number("logit_scale", 0.0) or 1.0,
        "mlp_bias": m.bias("ffn_gate", "ffn_up", "ffn_down"),
    }
    experts = {
        "num_local_experts": m.integer("expert_count", 0),
        "num_experts_per_tok": m.integer("expert_used_count", 0),
    }
    rotary = m.flag("rope.scaling.finetuned", True)
    shared = m.integer("expert_shared_feed_forward_length", 0)
    if m.name != "granitehybrid" and rotary and not shared:
        if experts["num_local_experts"]:
            return "GraniteMoeConfig", {**scalars, **experts}
        return "GraniteConfig", scalars
    kinds = {True: "full_attention", False: "linear_attention"}
    return "GraniteMoeHybridConfig", {
        **scalars,
        **experts,
        **_mamba(m),
        "shared_intermediate_size": shared or m.integer("feed_forward_length"),
        "layer_types": [kinds[n > 0] for n in m.layers("attention.head_count_kv")],
        "position_embedding_type": "rope" if rotary else None,
    }


def _mamba(m: _Metadata) -> _Options:
    if not m.has("ssm.inner_size"):
        return {"mamba_n_heads": 1}  # there are no such layers; transformers divides by it
    inner, heads = m.integer("ssm.inner_size"), m.integer("ssm.time_step_rank")
    return {
        "mamba_expand": inner // m.integer("embedding_length"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // max(heads, 1),
        "mamba_n_groups": m.integer("ssm.group_count"),
        "mamba_d_state": m.integer("ssm.state_size"),
        "mamba_d_conv": m.integer("ssm.conv_kernel"),
        "mamba_conv_bias": m.bias("ssm_conv1d"),
    }


def _qwen_experts(m: _Metadata) -> _Options:
    """llama.cpp takes the experts' sizes from its tensors' shapes, and norms by architecture."""
    options: _Options = {
        "num_experts": m.integer("expert_count"),
        "num_experts_per_tok": m.integer("expert_used_count"),
        "moe_intermediate_size": _width(m, "ffn_down_exps"),
        "norm_topk_prob": m.name == "qwen3moe",
        "qkv_bias": m.bias("attn_q", "attn_qkv"),
    }
    if m.name == "qwen2moe":
        options["shared_expert_intermediate_size"] = _width(m, "ffn_down_shexp")
    return options


def _width(m: _Metadata, weight: str) -> int:
    name = f"blk.0.{weight}.weight"
    shape = m.base.shape(name)
    if shape is None:
        raise m.fail(f"there is no tensor '{name}'", "convert the model again")
    return shape[0]


def _gemma(m: _Metadata) -> _Built:
    heads, width = m.integer("attention.head_count"), m.integer("embedding_length")
    large = m.base.n_layers == _GEMMA_27B_LAYERS[m.name]
    window = m.integer("attention.sliding_window", 4096 if m.name == "gemma2" else 0)
    kinds = {True: "sliding_attention", False: "full_attention"}
    sliding = _sliding(m) if window else [False] * m.base.n_layers
    options: _Options = {
        "query_pre_attn_scalar": width // heads if large else m.head_size,
        "layer_types": [kinds[each] for each in sliding],
        "sliding_window": window or 1,  # transformers wants one, also where no layer has it
    }
    usual = m.number("rope.freq_base", 10000.0)
    theta = m.number("rope.freq_base_swa", usual if m.name == "gemma2" else 10000.0)
    if m.name == "gemma2":
        if theta != usual:
            raise m.fail(
                f"'gemma2.rope.freq_base_swa' is {theta}, unlike its other layers' base, which "
                "transformers does not know",
                "convert the model again",
            )
        options["attn_logit_softcapping"] = m.number("attn_logit_softcapping", 50.0)
        options["final_logit_softcapping"] = m.number("final_logit_softcapping", 30.0) or None
        return "Gemma2Config", options
    options["final_logit_softcapping"] = m.number("final_logit_softcapping", 0.0) or None
    options["rope_parameters"] = {
        "full_attention": _rope(m),
        "sliding_attention": {"rope_type": "default", "rope_theta": theta},
    }
    return "Gemma3TextConfig", options


def _sliding(m: _Metadata) -> list[bool]:
    """Which layers attend to a window alone."""
    key = f"{m.name}.attention.sliding_window_pattern"
    found = m.header.metadata.get(key)
    if isinstance(found, ArrayRef):
        return [bool(each) for each in m.layers("attention.sliding_window_pattern")]
    period = m.integer("attention.sliding_window_pattern", _GEMMA_PATTERN[m.name])
    return [not period or i % period < period - 1 for i in range(m.base.n_layers)]


def _olmo2(m: _Metadata) -> _Built:
    window = m.integer("attention.sliding_window", 0)
    if window:
        raise m.fail(
            f"'olmo2.attention.sliding_window' is {window}, as in Olmo 3, which cannot be trained "
            "on yet",
            "train on an Olmo 2",
        )
    return "Olmo2Config", {}


def _phi3(m: _Metadata) -> _Built:
    # llama.cpp ignores the window (see gguf/soundness.py: departures)
    return "Phi3Config", {
        "sliding_window": None,
        "original_max_position_embeddings": m.integer("context_length"),
    }


def _starcoder2(m: _Metadata) -> _Built:
    return "Starcoder2Config", {
        "norm_epsilon": m.number("attention.layer_norm_epsilon"),
        "use_bias": m.bias("attn_q", "attn_qkv"),
        "sliding_window": None,
    }


def _gpt2(m: _Metadata) -> _Built:
    return "GPT2Config", {
        "layer_norm_epsilon": m.number("attention.layer_norm_epsilon"),
        "n_inner": m.integer("feed_forward_length"),
    }


def _plain(name: str, **options: Any) -> Callable[[_Metadata], _Built]:
    return lambda _: (name, options)


# by architecture
TRAINABLE: Final[Mapping[str, Callable[[_Metadata], _Built]]] = {
    "llama": _llama,
    "granite": _granite,
    "granitemoe": _granite,
    "granitehybrid": _granite,
    "qwen2": _plain("Qwen2Config"),
    "qwen2moe": lambda m: ("Qwen2MoeConfig", _qwen_experts(m)),
    "qwen3": _plain("Qwen3Config"),
    "qwen3moe": lambda m: ("Qwen3MoeConfig", _qwen_experts(m)),
    "gemma2": _gemma,
    "gemma3": _gemma,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "smollm3": _plain("SmolLM3Config", no_rope_layer_interval=_NO_ROPE_INTERVAL),
    "starcoder2": _starcoder2,
    "gpt2": _gpt2,
}
