"""The fields of PEFT's LoraConfig (0.21): what becomes of each. What PEFT does with them is in its
tuners/lora/config.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Refusal(NamedTuple):
    """Why a field that is set cannot be converted, and what to do instead."""

    reason: str
    way_out: str


REMOVE: Final = "leave those modules out of target_modules"
INSTEAD: Final = "train without it, or merge it into the base (PEFT merges no aLoRA)"
_TRAIN: Final = f"only a plain LoRA converts exactly: {INSTEAD}"

# by field; null, false, 0, "" and what is empty do not set it, and "none" is no bias
REFUSED: Final[dict[str, Refusal]] = {
    "use_dora": Refusal("is DoRA, whose magnitudes an adapter GGUF cannot hold", _TRAIN),
    "lora_bias": Refusal("adds biases, which an adapter GGUF cannot hold", _TRAIN),
    "bias": Refusal("trained the base's biases too", _TRAIN),
    "modules_to_save": Refusal("replaces whole modules of the base", INSTEAD),
    "trainable_token_indices": Refusal("changes rows of the base's embeddings", INSTEAD),
    "layer_replication": Refusal(
        "builds a model with repeated layers, which is not the base", _TRAIN
    ),
    "use_qalora": Refusal("is QA-LoRA, whose pooled inputs a GGUF cannot express", _TRAIN),
    "megatron_config": Refusal("belongs to Megatron's parallel layers", _TRAIN),
    "use_bdlora": Refusal("is BD-LoRA, with block-diagonal factors", _TRAIN),
    "arrow_config": Refusal("is Arrow, which routes between adapters", _TRAIN),
    "kasa_config": Refusal("is KaSA, which changes the base's weights", _TRAIN),
    "monteclora_config": Refusal("is MonteCLoRA, which samples its weights", _TRAIN),
    "cross_stream": Refusal("adds a residual stream that the base does not have", _TRAIN),
}

# initialisations that leave the base's weights as they are
PLAIN_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")

# read_config() puts these into a PeftConfig, or checks them
HONOURED: Final = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "init_lora_weights",
        "invocation_string",
        "lora_alpha",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "target_parameters",
        "task_type",
        "use_rslora",
    }
)

# Of no effect on a trained adapter's numbers: they steered training, or chose the modules that the
# weights now show, or (fan_in_fan_out) describe how the base stores its weight, which a low-rank
# pair does not depend on. VeLoRA compresses activations for the backward pass only.
HARMLESS: Final = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "velora_config",
    }
)
