"""What an intrinsic says in a word or two, for any JSON value, and whether that is good.

Which end of its number is the good one is for the contract to say, never for a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from .render import plural

Good = Literal["high", "low"]

_LONGEST: Final = 60  # of a text within a badge
SURE: Final = 0.5

# field -> what a high number means, and a low one
_WORDS: Final[dict[str, tuple[str, str]]] = {
    "answerable": ("answerable", "not answerable"),
    "faithful": ("faithful", "not faithful"),
    "grounded": ("grounded", "not grounded"),
    "jailbreak": ("jailbreak attempt", "harmless"),
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
    first field that has one.
    """
    value = _yes_or_no(value)
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, dict):
        inner = (number_in(each) for each in value.values() if not isinstance(each, (dict, list)))
        return next((number for number in inner if number is not None), None)
    return None


def is_good(value: Any, good: Good | None) -> bool | None:
    """Whether a verdict is a good one; None if its contract or its number does not say."""
    number = number_in(value)
    if good is None or number is None or number != number:  # NaN
        return None
    return (number >= SURE) == (good == "high")


def badges_of(name: str, value: Any, good: Good | None = None) -> list[Badge]:
    """Badges for the value of the intrinsic `name`; an object's texts count only where it has no
    numbers, for they explain those. The first number is the one that is good or bad.
    """
    if not isinstance(value, dict) or not value:
        return [_badge(name, _yes_or_no(value), is_good(value, good))]
    fields = {str(field): _yes_or_no(inner) for field, inner in value.items()}
    numbers = {k: v for k, v in fields.items() if isinstance(v, (bool, int, float))}
    judged = next(iter(numbers), None)
    return [
        _badge(field, inner, is_good(inner, good) if field == judged else None)
        for field, inner in (numbers or fields).items()
    ]


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
