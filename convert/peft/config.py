"""adapter_config.json: every field is honoured exactly, is known to change nothing, or refused.

Which field is which stands in peft_fields. A field that is not there is refused if it is set.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.files import read_json

from .fields import HARMLESS, HONOURED, PLAIN_INITS, REFUSED, REMOVE
from .patterns import PatternTable

FILE_NAME: Final = "adapter_config.json"


@dataclass(frozen=True)
class PeftConfig:
    """What of an adapter's configuration decides its numbers.

    `alpha` over `rank` (or over its square root, `rslora`) is a module's scale; the patterns map a
    regular expression on module names to another value. `invocation` is None for a plain LoRA.
    `parameters` are the target_parameters, such as "mlp.experts.gate_up_proj" or "mlp.gate.weight".
    """

    path: Path
    rank: int
    alpha: float
    rank_pattern: PatternTable[int]
    alpha_pattern: PatternTable[float]
    rslora: bool
    invocation: tuple[int, ...] | None
    invocation_text: str | None
    base_model: str | None
    peft_version: str | None
    ties_weights: bool
    parameters: tuple[str, ...]

    @property
    def names_invocation(self) -> bool:
        """Whether it says, in the one way or the older one, that the adapter is an aLoRA."""
        return self.invocation is not None or self.invocation_text is not None

    @property
    def swaps_experts(self) -> bool:
        """Whether the PEFT that saved it took parameters for [experts, in, out], as before 0.19.

        Configurations name their PEFT since 0.18.
        """
        numbers = re.match(r"(\d+)\.(\d+)", self.peft_version or "")
        return numbers is None or (int(numbers[1]), int(numbers[2])) < (0, 19)

    def pattern_name(self, name: str) -> str:
        """What the patterns call a module: with `.weight`, if PEFT adapted it as a parameter."""
        parameter = f"{name}.weight"
        targeted = any(f".{parameter}".endswith(f".{target}") for target in self.parameters)
        return parameter if targeted else name

    def rank_of(self, module: str) -> int:
        """The rank that the configuration gives a module, such as "model.layers.0.mlp.up_proj"."""
        return self.rank_pattern.find(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What PEFT multiplies a module's B·A with."""
        alpha = self.alpha_pattern.find(module, self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_config(path: Path) -> PeftConfig:
    """Reads and checks an adapter_config.json.

    Raises FileFormatError if it is not sound JSON with fields of the right types, and
    UnsupportedAdapterError, naming the field and the way out, for what would not convert exactly.
    """
    fields = read_json(path)
    refuse = _Refuser(path)
    _check_type(fields, path)
    for name, value in fields.items():
        if name in REFUSED and value not in REFUSED[name].unset:
            refuse(name, value, REFUSED[name].reason, REFUSED[name].way_out)
        if name not in REFUSED and name not in HONOURED and name not in HARMLESS and value:
            refuse(
                name,
                value,
                "is unknown to this converter, so it may change what the adapter computes",
                f"if you know that it does not, remove it from {FILE_NAME}",
            )
    _check_init(fields.get("init_lora_weights", True), refuse)
    if fields.get("lora_alpha") in (0, 0.0):
        refuse("lora_alpha", 0, "makes the adapter change nothing", "set the alpha it was made for")
    ranks = _pattern(fields, "rank_pattern", path, _is_rank, "positive integers")
    alphas = _pattern(fields, "alpha_pattern", path, _is_number, "finite numbers")
    if 0 in alphas.values():
        refuse("alpha_pattern", alphas, "holds an alpha of 0, which switches modules off", REMOVE)
    text = _typed(fields, "invocation_string", None, lambda v: isinstance(v, str), "a string", path)
    return PeftConfig(
        path=path,
        rank=_typed(fields, "r", 8, _is_rank, "a positive integer", path),
        alpha=float(_typed(fields, "lora_alpha", 8, _is_number, "a finite number", path)),
        rank_pattern=PatternTable(ranks, f"{path}: rank_pattern"),
        alpha_pattern=PatternTable(
            {key: float(value) for key, value in alphas.items()}, f"{path}: alpha_pattern"
        ),
        rslora=_typed(fields, "use_rslora", False, _is_bool, "true or false", path),
        invocation=_invocation(fields, path, refuse),
        invocation_text=text or None,
        base_model=_text(fields.get("base_model_name_or_path")),
        peft_version=_text(fields.get("peft_version")),
        ties_weights=bool(fields.get("ensure_weight_tying")),
        parameters=_parameters(fields, path),
    )


class _Refuser:
    """Raises UnsupportedAdapterError in one form for every field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, field: str, value: Any, reason: str, way_out: str) -> NoReturn:
        raise UnsupportedAdapterError(f"{self.path}: {field} = {_show(value)} {reason}; {way_out}")


def _check_type(fields: dict[str, Any], path: Path) -> None:
    if fields.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(
            f"{path}: peft_type = {_show(fields.get('peft_type'))} is not a LoRA; only "
            '"LORA" can be converted'
        )
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        raise UnsupportedAdapterError(
            f"{path}: task_type = {_show(fields['task_type'])} trains more than a language "
            'model computes; only "CAUSAL_LM" can be converted'
        )


def _check_init(init: Any, refuse: _Refuser) -> None:
    """Refuses initialisations that changed the base, or of which that is not known."""
    if isinstance(init, bool) or init is None or init in PLAIN_INITS:
        return
    refuse(
        "init_lora_weights",
        init,
        "belongs to an initialisation that changes the base model's weights too",
        "save it as a plain LoRA, with save_pretrained(..., "
        "path_initial_model_for_weight_conversion=...)",
    )


def _invocation(fields: dict[str, Any], path: Path, refuse: _Refuser) -> tuple[int, ...] | None:
    ids = fields.get("alora_invocation_tokens")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise _wrong(path, "alora_invocation_tokens", ids, "a list of token ids")
    if not ids:
        refuse(
            "alora_invocation_tokens",
            ids,
            "is empty, so nothing could ever switch the adapter on",
            "give the ids it was trained with, or null if it is a plain LoRA",
        )
    return tuple(ids)


def _parameters(fields: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = fields.get("target_parameters") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong(path, "target_parameters", names, "a list of parameter names")
    return tuple(names)


def _pattern(
    fields: dict[str, Any], name: str, path: Path, check: Callable[[Any], bool], expected: str
) -> dict[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict) or not all(check(v) for v in value.values()):
        raise _wrong(path, name, value, f"module names with {expected}")
    return value


def _typed(
    fields: dict[str, Any],
    name: str,
    default: Any,
    check: Callable[[Any], bool],
    expected: str,
    path: Path,
) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not check(value):
        raise _wrong(path, name, value, expected)
    return value


def _wrong(path: Path, name: str, value: Any, expected: str) -> FileFormatError:
    return FileFormatError(f"{path}: {name} is {_show(value)}, expected {expected}")


def _show(value: Any) -> str:
    """A value as the file has it, at a length that a message can bear."""
    try:
        shown = json.dumps(value)
    except RecursionError:  # nested almost too deeply to be read, and now we are deeper
        return "something nested too deeply"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it fits the float32 that an adapter GGUF keeps its alpha in."""
    return type(value) in (int, float) and (value == 0 or 1e-37 < abs(value) < 3e38)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0
