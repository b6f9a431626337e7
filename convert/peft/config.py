"""adapter_config.json: every field is honoured exactly, is known to change nothing, or refused.

Which field is which stands in fields.py, for LoRA, and in tuners.py. A field that is not there is
refused if it is set.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from alora_gguf.convert.base.families import Experts

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from alora_gguf.files import read_json

from .fields import HARMLESS, HONOURED, PLAIN_INITS, REFUSED, REMOVE
from .patterns import PatternTable
from .tuners import READ_AS_LORA, REFUSED_TUNERS, TUNER_HARMLESS, TUNER_HONOURED, TUNER_REFUSED

FILE_NAME: Final = "adapter_config.json"
_UNKNOWN_TUNER: Final = (
    "is not a LoRA",
    f"what can be converted is {', '.join(READ_AS_LORA)}; train a LoRA",
)

Check = Callable[[Any], bool]
T = TypeVar("T")

_CLASSIFIER: Final = "SEQ_CLS"  # task_type
# modules_to_save: what PEFT saves of every classifier, whatever its head is called, or just that
_HEADS: Final = (["classifier", "score"], ["score"])


@dataclass(frozen=True)
class PeftConfig:
    """What of an adapter's configuration decides its numbers.

    `alpha` over `rank` (or over its square root, `rslora`) is a module's scale; the patterns map a
    regular expression on module names to another value. A `scale` is that of every module instead,
    of the kinds of adapter that have one. `tuner` is PEFT's peft_type. `invocation` is None for a
    plain LoRA.
    `parameters` are the target_parameters, such as "mlp.experts.gate_up_proj" or "mlp.gate.weight".
    It `classifies` where a head on the last state was trained with it (task_type SEQ_CLS).
    `targets`, `layers` (layers_to_transform) and `layers_pattern` are lists of what PEFT adapts; ()
    where the file has none or something else, such as an expression.
    """

    path: Path
    rank: int
    alpha: float
    rank_pattern: PatternTable[int]
    alpha_pattern: PatternTable[float]
    rslora: bool = False
    scale: float | None = None
    tuner: str = "LORA"
    invocation: tuple[int, ...] | None = None
    invocation_text: str | None = None
    base_model: str | None = None
    peft_version: str | None = None
    ties_weights: bool = False
    parameters: tuple[str, ...] = ()
    classifies: bool = False
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    @classmethod
    def scaled(
        cls,
        path: Path,
        rank: int,
        scale: float,
        *,
        ranks: Mapping[str, int] | None = None,
        tuner: str = "LORA",
        base_model: str | None,
        peft_version: str | None = None,
    ) -> PeftConfig:
        """A plain LoRA whose modules all have one scale; `ranks` are those of modules with others
        than `rank`.
        """
        return cls(
            path=path,
            rank=rank,
            alpha=scale * rank,
            rank_pattern=PatternTable(ranks or {}, f"{path}: rank_pattern"),
            alpha_pattern=PatternTable[float]({}, f"{path}: alpha_pattern"),
            scale=scale,
            tuner=tuner,
            base_model=base_model,
            peft_version=peft_version,
        )

    @property
    def names_invocation(self) -> bool:
        """Whether it says, in the one way or the older one, that the adapter is an aLoRA."""
        return self.invocation is not None or self.invocation_text is not None

    def swaps_experts(self, stored: Experts) -> bool:
        """Whether the PEFT that saved it took parameters that are `stored` so for the other way
        round. Before 0.19, it took all of them for [experts, in, out].

        Configurations name their PEFT since 0.18.
        """
        new = writes_new_experts(self.peft_version)
        return new if stored is Experts.IN_OUT else not new and stored is Experts.OUT_IN

    def pattern_name(self, name: str) -> str:
        """What the patterns call a module: with `.weight`, if PEFT adapted it as a parameter."""
        parameter = f"{name}.weight"
        targeted = any(f".{parameter}".endswith(f".{target}") for target in self.parameters)
        return parameter if targeted else name

    def leaves_out(self, module: str) -> bool:
        """Whether PEFT would not load weights of a module, as far as lists of names and numbers
        say.
        """
        if self.parameters:
            return False
        if self.targets and not any(f".{module}".endswith(f".{name}") for name in self.targets):
            return True
        names = "|".join(map(re.escape, self.layers_pattern)) or r"[^.]*"
        layer = re.search(rf"(?:^|\.)(?:{names})\.(\d+)\.", module)
        return bool(self.layers) and (layer is None or int(layer[1]) not in self.layers)

    def rank_of(self, module: str) -> int:
        """The rank that the configuration gives a module, such as "model.layers.0.mlp.up_proj"."""
        return self.rank_pattern.find(module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """What PEFT multiplies a module's B·A with."""
        if self.scale is not None:
            return self.scale
        alpha = self.alpha_pattern.find(module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def writes_new_experts(peft_version: str | None) -> bool:
    """Whether that PEFT takes parameters for [experts, out, in], as since 0.19."""
    numbers = re.match(r"(\d+)\.(\d+)", peft_version or "")
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (0, 19)


def read_config(path: Path) -> PeftConfig:
    """Reads and checks an adapter_config.json.

    Raises FileFormatError if it is not sound JSON with fields of the right types, and
    UnsupportedAdapterError, naming the field and the way out, for what would not convert exactly.
    """
    fields = _Fields(path)
    fields.check_known()
    if fields.tuner == "VERA":
        return _read_vera(fields)
    if fields.tuner == "ADALORA":
        return _read_adalora(fields)
    ranks = fields.get("rank_pattern", {}, _all(is_rank), "module names with positive integers")
    alphas = fields.get("alpha_pattern", {}, _all(is_number), "module names with finite numbers")
    if 0 in alphas.values():
        fields.refuse("alpha_pattern", "holds an alpha of 0, which switches modules off", REMOVE)
    alpha = fields.get("lora_alpha", 8, is_number, "a finite number")
    if alpha == 0:
        fields.refuse(
            "lora_alpha", "makes the adapter change nothing", "set the alpha it was made for"
        )
    ids = fields.get(
        "alora_invocation_tokens", None, _all(_is_integer, list), "a list of token ids"
    )
    if ids == []:
        fields.refuse(
            "alora_invocation_tokens",
            "is empty, so nothing could ever switch the adapter on",
            "give the ids it was trained with, or null if it is a plain LoRA",
        )
    names = isinstance(fields.values.get("target_modules"), list)  # and no expression
    return PeftConfig(
        path=path,
        rank=fields.get("r", 8, is_rank, "a positive integer"),
        alpha=float(alpha),
        rank_pattern=PatternTable(ranks, f"{path}: rank_pattern"),
        alpha_pattern=PatternTable(alphas, f"{path}: alpha_pattern"),
        rslora=fields.get("use_rslora", False, _is_a(bool), "true or false"),
        invocation=None if ids is None else tuple(ids),
        invocation_text=fields.get("invocation_string", None, _is_a(str), "a string") or None,
        base_model=fields.text("base_model_name_or_path"),
        peft_version=fields.text("peft_version"),
        ties_weights=bool(fields.values.get("ensure_weight_tying")),
        classifies=fields.classifies,
        parameters=tuple(
            fields.get("target_parameters", (), _all(_is_a(str), list), "a list of parameter names")
        ),
        targets=fields.listed("target_modules", str) if names else (),
        layers=fields.listed("layers_to_transform", int),
        layers_pattern=fields.listed("layers_pattern", str),
    )


def _read_vera(fields: _Fields) -> PeftConfig:
    """VeRA's: diag(b)·B·diag(d)·A, which nothing scales."""
    if fields.values.get("save_projection") is False:
        fields.refuse(
            "save_projection",
            "leaves out vera_A and vera_B, which only PyTorch's random numbers could tell",
            "load the adapter with PEFT, set save_projection = True and save it again",
        )
    return PeftConfig.scaled(
        fields.path,
        fields.get("r", 256, is_rank, "a positive integer"),
        1.0,
        tuner=fields.tuner,
        base_model=fields.text("base_model_name_or_path"),
        peft_version=fields.text("peft_version"),
    )


def _read_adalora(fields: _Fields) -> PeftConfig:
    """AdaLoRA's: B·diag(E)·A·alpha / (init_r + 1e-5), whatever ranks are left (SVDLinear in
    PEFT's tuners/adalora/layer.py, and resize_modules_by_rank_pattern() in model.py there).
    Without a positive alpha PEFT takes the rank for it, one before ranks were removed and another
    after.
    """
    rank = fields.get("init_r", 12, is_rank, "a positive integer")
    alpha = fields.get("lora_alpha", 8, is_number, "a finite number")
    kept = fields.get(
        "rank_pattern",
        {},
        _all(_all(_is_a(bool), list)),
        "module names with lists of true and false",
    )
    ranks = {name.removesuffix(".lora_E"): sum(mask) for name, mask in kept.items()}
    if ranks and alpha <= 0:
        raise UnsupportedAdapterError(
            f"{fields.path}: 'lora_alpha' is {alpha:g} and ranks were removed ('rank_pattern'), so "
            "that the scale depends on which were there; save it with a positive lora_alpha"
        )
    return PeftConfig.scaled(
        fields.path,
        rank,
        (alpha if alpha > 0 else float(rank)) / (rank + 1e-5),
        ranks=ranks,
        tuner=fields.tuner,
        base_model=fields.text("base_model_name_or_path"),
        peft_version=fields.text("peft_version"),
    )


class _Fields:
    """What the file says, and one form for every complaint about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = read_json(path)

    def get(self, name: str, default: Any, check: Check, expected: str) -> Any:
        """A field's value, `default` if it is null or left out. Raises FileFormatError."""
        value = self.values.get(name)
        if value is None:
            return default
        if not check(value):
            raise FileFormatError(f"{self.path}: {name} is {show(value)}, expected {expected}")
        return value

    @property
    def tuner(self) -> str:
        """PEFT's peft_type."""
        return str(self.values.get("peft_type"))

    @property
    def classifies(self) -> bool:
        """Whether it is a plain LoRA with a classifier's head."""
        is_plain = self.tuner == "LORA" and not self.values.get("alora_invocation_tokens")
        return is_plain and self.values.get("task_type") == _CLASSIFIER

    def text(self, name: str) -> str | None:
        """A field on which nothing depends; None if it is not text."""
        value = self.values.get(name)
        return value if isinstance(value, str) and value else None

    def listed(self, name: str, kind: type[T]) -> tuple[T, ...]:
        """A list, or the one thing of it, of a field on which only warnings depend."""
        value = self.values.get(name)
        several: list[Any] = value if isinstance(value, list) else [value]
        return tuple(several) if all(type(each) is kind for each in several) else ()

    def refuse(self, name: str, reason: str, way_out: str) -> NoReturn:
        raise UnsupportedAdapterError(
            f"{self.path}: {name} = {show(self.values.get(name))} {reason}; {way_out}"
        )

    def check_known(self) -> None:
        """Refuses what is not a language model's LoRA, and fields that are not honoured."""
        kind = self.values.get("peft_type")
        if kind not in READ_AS_LORA:
            why = REFUSED_TUNERS.get(kind) if isinstance(kind, str) else None
            self.refuse("peft_type", *(why or _UNKNOWN_TUNER))
        if self.values.get("task_type") not in (None, "CAUSAL_LM") and not self.classifies:
            reason = "trains more than a language model computes"
            way_out = f'only "CAUSAL_LM", and "{_CLASSIFIER}" of a plain LoRA, can be converted'
            self.refuse("task_type", reason, way_out)
        refused = TUNER_REFUSED.get(self.tuner, REFUSED)
        known = TUNER_HONOURED.get(self.tuner, HONOURED) | TUNER_HARMLESS.get(self.tuner, HARMLESS)
        for name, value in self.values.items():
            if not value or (name, value) == ("bias", "none"):
                continue
            if name == "modules_to_save" and self.classifies and value in _HEADS:
                continue
            if name in refused:
                self.refuse(name, *refused[name])
            if name not in known:
                self.refuse(
                    name,
                    "is unknown to this converter, so it may change what the adapter computes",
                    f"if you know that it does not, remove it from {FILE_NAME}",
                )
        init = self.values.get("init_lora_weights")
        if not isinstance(init, bool) and init is not None and init not in PLAIN_INITS:
            self.refuse(
                "init_lora_weights",
                "belongs to an initialisation that changes the base model's weights too",
                "save it as a plain LoRA, with save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...)",
            )


def show(value: Any) -> str:
    """A value as the file has it, at a length that a message can bear."""
    try:
        shown = json.dumps(value)
    except RecursionError:  # nested almost too deeply to be read, and now we are deeper
        return "something nested too deeply"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is_a(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _all(check: Check, kind: type = dict) -> Check:
    """Whether a value is a list, or an object, of what passes the check."""

    def checks(value: Any) -> bool:
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind) and all(map(check, items))

    return checks


def _is_integer(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    """Whether it fits the float32 that an adapter GGUF keeps its alpha in."""
    return type(value) in (int, float) and (value == 0 or 1e-37 < abs(value) < 3e38)


def is_rank(value: Any) -> bool:
    """Whether it can be the rank of a module."""
    return type(value) is int and value > 0
