"""The parameters of a request that a contract may set, and what values they may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from .json_offsets import JsonValue
from .yaml_file import Item

_Check = Callable[[Item], JsonValue]
_MAX_INT: Final = 2**31 - 1


def read_parameters(item: Item) -> dict[str, JsonValue]:
    """The parameters of a contract by name; one that is null is left out, as if it were not there.

    Raises ContractError for unknown ones and for values out of range.
    """
    found = _read(item, _CHECKS)
    tokens = [found[name] for name in ("max_completion_tokens", "max_tokens") if name in found]
    if len(set(map(str, tokens))) > 1:
        raise item.error(
            "max_completion_tokens or max_tokens, which mean the same",
            "remove one of them",
            found=f"{tokens[0]} and {tokens[1]}",
        )
    return found


def _read(item: Item, checks: Mapping[str, _Check]) -> dict[str, JsonValue]:
    known = ", ".join(checks)
    out: dict[str, JsonValue] = {}
    for key, value in item.entries("a mapping from parameters to values, or null", "write `~`"):
        check = checks.get(key.value) if isinstance(key.value, str) else None
        if check is None:
            raise key.error(f"one of {known}", "remove it")
        if not value.is_null:
            out[str(key.value)] = check(value)
    return out


def _number(low: float, high: float, *, above: bool = False) -> _Check:
    if math.isinf(high):
        wanted = f"a number {'above' if above else 'of at least'} {low:g}"
    else:
        wanted = f"a number from {low:g} to {high:g}" + (", but not 0" if above else "")

    def check(item: Item) -> JsonValue:
        value = item.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise item.error(wanted, "write it as a number, without quotes")
        fits = low <= value <= high and math.isfinite(value) and not (above and value == low)
        if not fits:
            raise item.error(wanted, "correct it")
        return value

    return check


def _integer(low: int, high: int = _MAX_INT) -> _Check:
    wanted = (
        f"an integer of at least {low}" if high == _MAX_INT else f"an integer from {low} to {high}"
    )

    def check(item: Item) -> JsonValue:
        value = item.value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise item.error(wanted, "correct it")
        return value

    return check


def _flag(item: Item) -> JsonValue:
    if not isinstance(item.value, bool):
        raise item.error("true or false", "correct it")
    return item.value


def _only(value: JsonValue, why: str) -> _Check:
    def check(item: Item) -> JsonValue:
        if item.value != value or type(item.value) is not type(value):
            raise item.error(str(value).lower(), why)
        return value

    return check


def _stop(item: Item) -> JsonValue:
    wanted, fix = (
        "a text, or a list of texts",
        "put each in quotes; an empty one would stop at once",
    )
    if isinstance(item.value, str) and item.value:
        return item.value
    return [part.text(fix) for part in item.elements(wanted, fix)]


def _mapping(item: Item) -> JsonValue:
    item.entries("a mapping", "write `~` if there is nothing in it")
    return item.plain()


_SAMPLING: Final[Mapping[str, _Check]] = {
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, math.inf, above=True),
    "seed": _integer(0, 2**32 - 1),
    "stop": _stop,
}
_EXTRA: Final[Mapping[str, _Check]] = {
    **_SAMPLING,
    "chat_template_kwargs": _mapping,
    "add_generation_prompt": _flag,
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
}
_ONE = "an intrinsic has one reply, and rules need all of it: remove it"
_CHECKS: Final[Mapping[str, _Check]] = {
    "temperature": _number(0, math.inf),
    "top_p": _number(0, 1, above=True),
    **_SAMPLING,
    "max_completion_tokens": _integer(1),
    "max_tokens": _integer(1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "n": _only(1, _ONE),
    "stream": _only(False, _ONE),
    "logprobs": _flag,
    "top_logprobs": _integer(0, 20),
    "extra_body": lambda item: dict(_read(item, _EXTRA)),
}
