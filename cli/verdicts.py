"""What an intrinsic says in a word or two, for any JSON value, and whether that is good.

Which end of its number is the good one is for the contract to say, never for a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import alora_gguf as ag

from .render import plural

Good = Literal["high", "low"]

_LONGEST: Final = 60  # of a text within a badge
SURE: Final = 0.5

# field -> what a high number means, and a low one
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "answerability": ("answerable", "not answerable"),
    "answerable": ("answerable", "not answerable"),
    "faithful": ("faithful", "not faithful"),
    "grounded": ("grounded", "not grounded"),
    "jailbreak": ("jailbreak attempt", "no jailbreak attempt"),
    "requirements_satisfied": ("requirement met", "requirement not met"),
}
_YES_NO: Final = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in short; `good` None is neither."""

    text: str
    good: bool | None = None


def number_in(value: Any) -> float | None:
    """The one number that a value comes to: itself (yes is 1 and no is 0), or that of an object's
    first field that has one, of texts only where there is no other: those explain it. An
    object around an object is passed over.
    """
    value = _yes_or_no(_unnested(value))
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, dict):
        single = [each for each in value.values() if not isinstance(each, (dict, list))]
        single.sort(key=lambda each: isinstance(each, str))
        return next((each for each in map(number_in, single) if each is not None), None)
    return None


def is_good(value: Any, good: Good | None) -> bool | None:
    """Whether a verdict is a good one; None if its contract or its number does not say."""
    number = number_in(value)
    if good is None or number is None or number != number:  # NaN
        return None
    return (number >= SURE) == (good == "high")


_ANY: Final = (-math.inf, math.inf)
_DEPTH: Final = 4  # objects within objects that a contract's schema is followed into
_UNCLEAR: Final = {"$ref", "allOf", "anyOf", "oneOf", "pattern"}  # of a schema: may be any number


def numbers_of(contract: ag.Contract) -> tuple[float, float] | None:
    """The least and the greatest number that a verdict can come to, as far as the contract tells;
    None where it tells that none comes of it.
    """
    if contract.free_text:
        return None
    shape = _shape(contract.response_format, _DEPTH)
    for rule in contract.transformations:
        change = _CHANGES.get(rule.name)
        if change is not None:
            shape = _changed(shape, rule.input_path, vars(rule), change)
        elif rule.name == "decode_sentences" and isinstance(shape, dict):
            return _ANY  # its numbers of sentences, documents and places
    return _range_of(shape)


# what is known of a value: the numbers it can be, None if it is none, and of an object, each field
_Shape = Any


def _shape(schema: Any, depth: int) -> _Shape:
    if not isinstance(schema, Mapping) or schema.keys() & _UNCLEAR:
        return _ANY
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        numbers = [number for each in values if (number := number_in(each)) is not None]
        return (min(numbers), max(numbers)) if numbers else None
    if schema.get("type") in ("string", "array", "null"):
        return None
    if schema.get("type") == "boolean":
        return 0.0, 1.0
    if schema.get("type") in ("number", "integer"):
        return schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if schema.get("type") == "object" and schema.get("properties") and depth:
        return {name: _shape(each, depth - 1) for name, each in schema["properties"].items()}
    return _ANY


def _range_of(shape: _Shape) -> tuple[float, float] | None:
    shape = _unnested(shape)
    if not isinstance(shape, dict):
        return shape  # type: ignore[no-any-return]
    known = [each for each in shape.values() if isinstance(each, tuple)]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _changed(
    shape: _Shape, path: Any, said: Mapping[str, Any], change: Callable[[_Shape, Any], _Shape]
) -> _Shape:
    if not path:
        return change(shape, said)
    if not isinstance(shape, dict):
        return shape
    return {
        name: _changed(each, path[1:], said, change) if path[0] in (None, name) else each
        for name, each in shape.items()
    }


def _weighed(_: _Shape, said: Mapping[str, Any]) -> _Shape:
    numbers = [number for _, number in said["categories_to_values"]]
    return min(numbers), max(numbers)


def _nested(shape: _Shape, said: Mapping[str, Any]) -> _Shape:
    return {said["field_name"]: shape}


def _projected(shape: _Shape, said: Mapping[str, Any]) -> _Shape:
    if not isinstance(shape, dict):
        return shape
    return {new: shape.get(old) for old, new in said["retained_fields"]}


_CHANGES: Final = {"likelihood": _weighed, "nest": _nested, "project": _projected}


def badges_of(name: str, value: Any, good: Good | None = None) -> list[Badge]:
    """Badges for the value of the intrinsic `name`; an object's texts count only where it has no
    numbers, for they explain those. The first number is the one that is good or bad.
    """
    if not isinstance(value, dict) or not value:
        return [_badge(name, _yes_or_no(value), is_good(value, good))]
    around = "" if (held := _unnested(value)) is value else f"{next(iter(value))} "
    fields = {f"{around}{field}": _yes_or_no(inner) for field, inner in held.items()}
    numbers = {k: v for k, v in fields.items() if isinstance(v, (bool, int, float))}
    texts = {f"{around}{field}" for field, inner in held.items() if isinstance(inner, str)}
    numbers = {k: v for k, v in numbers.items() if k not in texts} or numbers
    judged = next(iter(numbers), None)
    return [
        _badge(field, inner, is_good(inner, good) if field == judged else None)
        for field, inner in (numbers or fields).items()
    ]


def _unnested(value: Any) -> Any:
    """What is within objects that hold nothing but an object, as the rule `nest` makes them."""
    while isinstance(value, dict) and len(value) == 1:
        (inner,) = value.values()
        if not isinstance(inner, dict) or not inner:
            break
        value = inner
    return value


def _yes_or_no(value: Any) -> Any:
    return _YES_NO.get(value.strip().lower(), value) if isinstance(value, str) else value


def _badge(field: str, value: Any, good: bool | None) -> Badge:
    label = field.replace("_", " ")
    if isinstance(value, bool):
        words = _WORDS.get(field, (f"{label} yes", f"{label} no"))
        return Badge(words[not value], good)
    if isinstance(value, float) and 0 <= value <= 1:
        if field not in _WORDS:
            return Badge(f"{label} {value:.0%}", good)
        words, low = _WORDS[field], value < SURE
        return Badge(f"{words[low]} {max(value, 1 - value):.0%}", good)
    if isinstance(value, (int, float)):
        return Badge(f"{label} {value:g}", good)
    if isinstance(value, str):
        return Badge(f'{label} "{_shortened(value)}"' if value.strip() else f"{label} is empty")
    if value is None:
        return Badge(f"{label}: none")
    return Badge(f"{label}: {plural(len(value), 'item' if isinstance(value, list) else 'field')}")


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
