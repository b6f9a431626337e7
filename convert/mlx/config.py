"""mlx-lm's adapter_config.json: the options of a training, of which a few decide the numbers.

The format is that of mlx-lm's lora.py and tuner/utils.py; its `scale` multiplies x·a·b directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alora_gguf.convert.peft.config import PeftConfig, is_number, is_rank, show

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.files import read_json

MLX_WEIGHTS: Final = "adapters.safetensors"
_NO_EFFECT: Final = ("dropout", "keys")  # on a trained adapter; the weights show the modules
_TRAIN: Final = "only a LoRA converts exactly: train with --fine-tune-type lora"
_REFUSED: Final = {
    "dora": f"is DoRA, whose magnitudes an adapter GGUF cannot hold; {_TRAIN}, or merge it into "
    "the base with mlx_lm.fuse",
    "full": f"is a whole fine-tuning, not an adapter; {_TRAIN}, or convert the model that "
    "mlx_lm.fuse writes",
}


def is_mlx(fields: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is mlx-lm's, which says nothing of PEFT's types."""
    return "peft_type" not in fields and not {"lora_parameters", "fine_tune_type"}.isdisjoint(
        fields
    )


def read_mlx_config(path: Path) -> PeftConfig:
    """What of mlx-lm's adapter_config.json decides the numbers, as a LoRA of PEFT's would say it:
    scale = lora_alpha / r.

    Raises FileFormatError for fields that are not what mlx-lm writes, UnsupportedAdapterError,
    naming the way out, for what is not a plain LoRA.
    """
    fields = read_json(path)
    kind = fields.get("fine_tune_type", "lora")
    if kind != "lora":
        why = _REFUSED.get(kind if isinstance(kind, str) else "", f"is not known here; {_TRAIN}")
        raise UnsupportedAdapterError(f"{path}: fine_tune_type = {show(kind)} {why}")
    options = fields.get("lora_parameters")
    if not isinstance(options, dict):
        raise FileFormatError(
            f"{path}: lora_parameters is {show(options)}, expected an object with rank and scale, "
            "as mlx_lm.lora writes it"
        )
    rank = _option(path, options, "rank", is_rank(options.get("rank")), "a positive integer")
    scale = _option(path, options, "scale", is_number(options.get("scale")), "a finite number")
    _check_options(path, fields, options, rank)
    if scale == 0:
        raise UnsupportedAdapterError(
            f"{path}: lora_parameters.scale = 0 makes the adapter change nothing; set the scale "
            "that it was trained with"
        )
    if not is_number(scale * rank):
        raise FileFormatError(
            f"{path}: lora_parameters.scale times rank is {scale * rank:g}, which no float32 holds"
        )
    model = fields.get("model")
    named = model if isinstance(model, str) and model else None
    return PeftConfig.scaled(path, rank, float(scale), base_model=named)


def _option(path: Path, options: Mapping[str, Any], name: str, sound: bool, expected: str) -> Any:
    if not sound:
        found = show(options.get(name))
        raise FileFormatError(f"{path}: lora_parameters.{name} is {found}, expected {expected}")
    return options[name]


def _check_options(
    path: Path, fields: Mapping[str, Any], options: Mapping[str, Any], rank: int
) -> None:
    """Refuses options that may change what the adapter computes.

    mlx-lm multiplied by alpha/rank besides until June 2024, and has ignored `alpha` since; only
    `num_layers`, which replaced lora_layers that September, tells which of them wrote a file.
    """
    alpha = options.get("alpha")
    if alpha is not None and alpha != rank and "num_layers" not in fields:
        raise UnsupportedAdapterError(
            f"{path}: lora_parameters.alpha = {show(alpha)} was a factor alpha/rank of the scale "
            "in mlx-lm until June 2024, and later was not, and the file does not say which wrote "
            "it; make scale the product if it was, and remove alpha"
        )
    for name, value in options.items():
        if value and name not in ("rank", "scale", "alpha", *_NO_EFFECT):
            raise UnsupportedAdapterError(
                f"{path}: lora_parameters.{name} = {show(value)} is unknown to this converter, so "
                "it may change what the adapter computes; if you know that it does not, remove it"
            )
