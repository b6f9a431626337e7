"""A model's config.json: its fields, checked when they are asked for, and what families make of it.

The table of model types is at the end. Its tensors are those that llama.cpp's own converter writes
unless it is told otherwise: query, key and value apart, and experts' gate and up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.files import read_json

from .families import supported_names

CONFIG_NAME: Final = "config.json"
_MAX_SIZE: Final = 2**31 - 1

# the weights of a block, each with the names of its dimensions in ggml order
ATTENTION: Final = {
    "attn_q": ("embd", "q"),
    "attn_k": ("embd", "kv"),
    "attn_v": ("embd", "kv"),
    "attn_output": ("q", "embd"),
}
FUSED_ATTENTION: Final = {"attn_qkv": ("embd", "qkv"), "attn_output": ("q", "embd")}
MAMBA: Final = {"ssm_in": ("embd", "ssm_in"), "ssm_out": ("ssm", "embd")}
MLP: Final = {"ffn_gate": ("embd", "ff"), "ffn_up": ("embd", "up"), "ffn_down": ("ff", "embd")}
EXPERTS: Final = {
    "ffn_gate_inp": ("embd", "experts"),
    "ffn_gate_exps": ("embd", "ff_exp", "experts"),
    "ffn_up_exps": ("embd", "ff_exp", "experts"),
    "ffn_down_exps": ("ff_exp", "embd", "experts"),
    "ffn_gate_shexp": ("embd", "ff_shared"),
    "ffn_up_shexp": ("embd", "ff_shared"),
    "ffn_down_shexp": ("ff_shared", "embd"),
    "ffn_gate_inp_shexp": ("embd", "one"),
}


@dataclass(frozen=True)
class Kind:
    """What a `model_type` makes of its configuration.

    architecture  the GGUF's; a granitehybrid without state space layers becomes another one
    experts       whether it may have any
    fused         whether query, key and value are one tensor
    fields        of the sizes that have other names than those of _FIELDS, the names they can have
    defaults      what transformers takes for a field that is left out
    """

    architecture: str
    experts: bool = False
    fused: bool = False
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


class HFConfig:
    """The fields of a config.json, and the kind of model it says it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields = read_json(path)
        self.kind = Kind("")  # which names no fields in another way
        name = self._fields.get("model_type")
        if not isinstance(name, str):
            raise self.wrong("model_type", "the family's name")
        if name not in KINDS:
            raise UnsupportedAdapterError(
                f"{self.path}: the tensors of a {name[:60]!r} are not known from its "
                "configuration; give the base as a GGUF, if it is one of the supported families: "
                f"{supported_names()}"
            )
        if name == "gemma3":  # a language model inside a multimodal one
            inner = self._fields.get("text_config")
            if not isinstance(inner, dict):
                raise self.wrong("text_config", "the language model's fields")
            self._fields = {**self._fields, **inner}
        self.kind = KINDS[name]

    def get(self, name: str) -> Any:
        """A field as it is, unchecked; None if it is left out."""
        return self._fields.get(name)

    def number(
        self, size: str, default: int | None = None, *, least: int = 1, most: int = _MAX_SIZE
    ) -> int:
        """The integer, from `least` to `most`, of a size of _FIELDS or another field. It must be
        there unless there is a default, ours or the family's.
        """
        name = self._name(size)
        value = self._fields.get(name, self.kind.defaults.get(name))
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, f"an integer from {least} to {most}")
        return value

    def flag(self, name: str) -> bool:
        """A field that must be true or false; false if it is left out without a default."""
        value = self._fields.get(name, self.kind.defaults.get(name))
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def wrong(self, size: str, expected: str) -> FileFormatError:
        """The error of a field that is missing, or is not what it must be."""
        name = self._name(size)
        value = self._fields.get(name)
        found = "is missing" if value is None else f"is {json.dumps(value)[:60]}"
        return FileFormatError(
            f"{self.path}: {name} {found}, expected {expected}; use the file that the model was "
            "published with, or give the base as a GGUF"
        )

    def _name(self, size: str) -> str:
        """The field that holds a size: the first of its names that is there."""
        names = self.kind.fields.get(size) or _FIELDS.get(size, (size,))
        return next((name for name in names if name in self._fields), names[0])


_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers",),
    "embd": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "ff": ("intermediate_size",),
    "ff_exp": ("intermediate_size",),
    "experts": ("num_local_experts",),
}
_TIED: Final[Mapping[str, Any]] = {"tie_word_embeddings": True}
_GEMMA: Final[Mapping[str, Any]] = {**_TIED, "num_key_value_heads": 4, "head_dim": 256}
# the published multimodal ones state only where they differ from the class's defaults
GEMMA3: Final = Kind("gemma3", defaults={**_GEMMA, "num_attention_heads": 8, "vocab_size": 262208})
_QWEN_EXPERTS: Final[Mapping[str, tuple[str, ...]]] = {
    "experts": ("num_experts", "num_local_experts"),  # before and since transformers 5
    "ff_exp": ("moe_intermediate_size",),
}

# by model_type; the defaults are those of the configuration classes of transformers 5.23
KINDS: Final[Mapping[str, Kind]] = {
    "llama": Kind("llama"),
    "mistral": Kind("llama", defaults={"num_key_value_heads": 8}),
    "mixtral": Kind("llama", experts=True, defaults={"num_key_value_heads": 8}),
    "granite": Kind("granite"),
    "granitemoe": Kind("granitemoe", experts=True),
    "granitemoehybrid": Kind(
        "granitehybrid",
        experts=True,
        # without experts, the shared MLP is the only one
        fields={"ff": ("shared_intermediate_size",), "ff_shared": ("shared_intermediate_size",)},
    ),
    "qwen2": Kind("qwen2", defaults={"num_key_value_heads": 32}),
    "qwen2_moe": Kind(
        "qwen2moe",
        experts=True,
        fields={**_QWEN_EXPERTS, "ff_shared": ("shared_expert_intermediate_size",)},
        defaults={"num_key_value_heads": 16},
    ),
    "qwen3": Kind("qwen3", defaults={"num_key_value_heads": 32, "head_dim": 128}),
    "qwen3_moe": Kind(
        "qwen3moe", experts=True, fields=_QWEN_EXPERTS, defaults={"num_key_value_heads": 4}
    ),
    "gemma2": Kind("gemma2", defaults=_GEMMA),
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
    "phi3": Kind("phi3", fused=True),
    "olmo2": Kind("olmo2"),
    "smollm3": Kind("smollm3", defaults={**_TIED, "num_key_value_heads": 4}),
    "starcoder2": Kind("starcoder2", defaults={**_TIED, "num_key_value_heads": 2}),
    "gpt2": Kind(
        "gpt2",
        fused=True,
        fields={
            "layers": ("n_layer",),
            "embd": ("n_embd",),
            "heads": ("n_head",),
            "kv_heads": ("n_head",),
            "head_dim": ("n_embd_head",),  # there is none: always the hidden size over the heads
            "ff": ("n_inner",),
        },
        defaults=_TIED,
    ),
}
