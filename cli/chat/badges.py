"""What an intrinsic says, in a word or two: for any JSON value, in better words for known ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

_LONGEST: Final = 60  # of a text within a badge
_SURE: Final = 0.5

# field -> (what a high number means, what a low one means, whether high is good)
_WORDS: Final[dict[str, tuple[str, str, bool]]] = {
    "answerable": ("answerable", "not answerable", True),
    "faithful": ("faithful", "not faithful", True),
    "grounded": ("grounded", "not grounded", True),
    "jailbreak": ("jailbreak attempt", "harmless", False),
    "requirements_satisfied": ("requirement met", "requirement not met", True),
}
_NEGATED: Final = re.compile("(^|_)(un|in|non|not)|less")  # neither "uncertain" nor "harmless"
_GOOD_IF_HIGH: Final = re.compile(
    "certain|confiden|likel|answerab|faithful|ground|satisf|support|safe"
)
_BAD_IF_HIGH: Final = re.compile("jailbreak|guard|harm|risk|toxic|hallucinat|violat")
_OF_THE_QUESTION: Final = re.compile("answerab|rewrit|clarif|jailbreak|guard|harm|query")
_OF_THE_ANSWER: Final = re.compile("certain|confiden|faithful|hallucinat|ground|citation|satisf")
_YES_NO: Final = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in short; `good` None is neither."""

    text: str
    good: bool | None = None


def judges_question(name: str) -> bool:
    """Whether an intrinsic of that name is about what the user said, and not about the answer."""
    return _OF_THE_QUESTION.search(name.lower()) is not None


def judges_answer(name: str) -> bool:
    """Whether it is about the answer; of most names neither is known."""
    return _OF_THE_ANSWER.search(name.lower()) is not None and not judges_question(name)


def high_is_good(field: str) -> bool | None:
    """Whether a high number is the good one in a field of that name, None if that does not tell."""
    if field in _WORDS:
        return _WORDS[field][2]
    lower = field.lower()
    if _NEGATED.search(lower):
        return None
    if _BAD_IF_HIGH.search(lower):
        return False
    return True if _GOOD_IF_HIGH.search(lower) else None


def number_in(value: Any) -> float | None:
    """The one number that a value comes to: itself (yes is 1 and no is 0), or that of an object's
    first field that has one.
    """
    value = _yes_or_no(value)
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, dict):
        found = (
            number_in(inner) for inner in value.values() if not isinstance(inner, (dict, list))
        )
        return next((number for number in found if number is not None), None)
    return None


def badges_of(name: str, value: Any) -> list[Badge]:
    """Badges for the value of the intrinsic `name`; an object's texts count only where it has no
    numbers, for they explain those.
    """
    if isinstance(value, dict) and value:
        fields = {str(field): _yes_or_no(inner) for field, inner in value.items()}
        numbers = {k: v for k, v in fields.items() if isinstance(v, (bool, int, float))}
        return [_badge(field, inner) for field, inner in (numbers or fields).items()]
    return [_badge(name, _yes_or_no(value))]


def _yes_or_no(value: Any) -> Any:
    return _YES_NO.get(value.strip().lower(), value) if isinstance(value, str) else value


def _badge(field: str, value: Any) -> Badge:
    label = field.replace("_", " ")
    if isinstance(value, bool):
        return _judged(field, value)
    if isinstance(value, float) and 0 <= value <= 1:
        return _judged(field, value >= _SURE, max(value, 1 - value))
    if isinstance(value, (int, float)):
        return Badge(f"{label} {value:g}")
    if isinstance(value, str):
        return Badge(f'{label} "{_shortened(value)}"' if value.strip() else f"{label} is empty")
    if isinstance(value, list):
        return Badge(f"{label}: {len(value)} {'item' if len(value) == 1 else 'items'}")
    if value is None:
        return Badge(f"{label}: none")
    return Badge(f"{label}: {len(value)} {'field' if len(value) == 1 else 'fields'}")


def _judged(field: str, high: bool, sure: float | None = None) -> Badge:
    """A yes or no, with a probability of at least a half if it is known."""
    good_if_high = high_is_good(field)
    good = None if good_if_high is None else high == good_if_high
    label = field.replace("_", " ")
    if field in _WORDS:
        words = _WORDS[field][0] if high else _WORDS[field][1]
        return Badge(words if sure is None else f"{words} {sure:.0%}", good)
    if sure is None:
        return Badge(f"{label} {'yes' if high else 'no'}", good)
    return Badge(f"{label} {sure if high else 1 - sure:.0%}", good)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
