"""What becomes of each of PEFT's tuners (0.21) that is not LoRA: read as one, or refused by name.

VeRA and AdaLoRA multiply with two factors and a diagonal, so that they are LoRAs with the diagonal
multiplied in. What the others compute is in their layer.py and config.py below PEFT's tuners/.
"""

from __future__ import annotations

from typing import Final

from .fields import INSTEAD, REFUSED, Refusal

# of adapters whose change of a weight PEFT can compute
_APPROXIMATE: Final = (
    "approximate it by a LoRA with PEFT's save_as_lora(), or merge it into the base"
)
_TRAIN: Final = "train a LoRA"


_AT_ITS_RANK: Final = (
    "write it as a LoRA of its own rank with PEFT's save_as_lora(), and convert that"
)


def _low_rank(what: str) -> Refusal:
    return Refusal(f"{what}, which is not read here", _AT_ITS_RANK)


def _delta(what: str) -> Refusal:
    return Refusal(f"{what}, which no small rank holds exactly", _APPROXIMATE)


def _whole(what: str) -> Refusal:
    return Refusal(f"{what}, which two factors cannot hold", INSTEAD)


def _prompt(what: str) -> Refusal:
    return Refusal(f"{what}, and changes no weights", _TRAIN)


READ_AS_LORA: Final = ("LORA", "ADALORA", "VERA")

REFUSED_TUNERS: Final[dict[str, Refusal]] = {
    # tokens that nobody wrote
    "CARTRIDGE": _prompt("keeps cells of the KV cache"),
    "CPT": _prompt("puts virtual tokens before the prompt"),
    "MULTITASK_PROMPT_TUNING": _prompt("puts virtual tokens before the prompt"),
    "PREFIX_TUNING": _prompt("puts virtual cells before the prompt"),
    "PROMPT_TUNING": _prompt("puts virtual tokens before the prompt"),
    "P_TUNING": _prompt("puts virtual tokens before the prompt"),
    "ADAPTION_PROMPT": _prompt("adds virtual tokens to attention, through a gate"),
    # a change of the weights that is of full rank, or of the sum of many
    "C3A": _delta("adds circular convolutions"),
    "DELORA": _low_rank("scales its factors by the norms of the base's weights"),
    "GRALORA": _delta("adds a pair of factors for each block of the weight"),
    "LOHA": _delta("multiplies two pairs of factors element by element"),
    "LOKR": _delta("adds a Kronecker product"),
    "MISS": _low_rank("repeats one factor over the inputs"),
    "PSOFT": _low_rank("takes its factors from the SVD of the base's weights"),
    "RANDLORA": _delta("adds up random factors to full rank"),
    "TINYLORA": _low_rank("takes its factors from the SVD of the base's weights"),
    "UNILORA": _low_rank("takes its factors' values from one shared vector"),
    "VBLORA": _low_rank("mixes its factors of a shared bank of vectors"),
    "FOURIERFT": _whole("adds a spectrum of full rank"),
    "WAVEFT": _whole("adds wavelets of full rank"),
    "SHIRA": _whole("adds a sparse matrix"),
    "SUPERTUNING": _whole("adds a sparse matrix"),
    "ADAMSS": _whole("replaces the weights by clusters of their SVD"),
    "FROD": _whole("replaces the weights"),
    "OSF": _whole("trains the SVD of the whole weights"),
    "DEFT": _whole("projects the base's weights"),
    "HIRA": _whole("multiplies the base's weights element by element"),
    "PEANUT": _whole("computes its change from the base's weights by a network"),
    "BOFT": _whole("rotates the base's weights"),
    "HRA": _whole("reflects the base's weights"),
    "OFT": _whole("rotates the base's weights"),
    "ROAD": _whole("rotates what the base's weights compute"),
    "IA3": _whole("scales what the base's weights compute"),
    "GLORA": _whole("scales and shifts weights and biases"),
    "BEFT": _whole("trains biases"),
    "LN_TUNING": _whole("trains norms"),
    "TRAINABLE_TOKENS": _whole("changes rows of the base's embeddings"),
    # a change that depends on the input
    "LILY": Refusal("routes every batch over several factors", _TRAIN),
    "POLY": Refusal("mixes several adapters by task", _TRAIN),
    "PVERA": Refusal("samples its weights", _TRAIN),
    "SHADOW": Refusal("adds a network beside the base's", _TRAIN),
    "XLORA": Refusal(
        "routes every token over several LoRAs", "convert each of the LoRAs on its own"
    ),
}

_EVERY: Final = {  # fields of all tuners, of no effect on a trained adapter; see fields.py
    "auto_mapping",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "revision",
    "target_modules",
}
_STATED: Final = {"base_model_name_or_path", "peft_type", "peft_version", "task_type"}
TUNER_HONOURED: Final = {
    "VERA": frozenset({*_STATED, "r", "save_projection"}),
    "ADALORA": frozenset({*_STATED, "init_r", "lora_alpha", "rank_pattern", "init_lora_weights"}),
}
TUNER_HARMLESS: Final = {
    # the seed is that of the two factors, which are in the file
    "VERA": frozenset(
        {*_EVERY, "d_initial", "init_weights", "projection_prng_key", "vera_dropout"}
    ),
    # PEFT sets `r` aside for init_r, and its layers do not ask for the others of LoRA's
    "ADALORA": frozenset(
        {
            *_EVERY,
            "beta1",
            "beta2",
            "corda_config",
            "deltaT",
            "eva_config",
            "exclude_modules",
            "lora_dropout",
            "lora_ga_config",
            "megatron_core",
            "orth_reg_weight",
            "qalora_group_size",
            "r",
            "runtime_config",
            "target_r",
            "tfinal",
            "tinit",
            "total_step",
            "velora_config",
        }
    ),
}
_IGNORED: Final = Refusal("is nothing that PEFT's AdaLoRA computes", "remove it")
TUNER_REFUSED: Final[dict[str, dict[str, Refusal]]] = {
    "VERA": {name: REFUSED[name] for name in ("bias", "modules_to_save")},
    "ADALORA": {
        **REFUSED,
        **dict.fromkeys(
            (
                "alora_invocation_tokens",
                "alpha_pattern",
                "ensure_weight_tying",
                "loftq_config",
                "target_parameters",
                "use_rslora",
            ),
            _IGNORED,
        ),
    },
}
