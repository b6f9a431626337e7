"""What the demo's intrinsics answer, in plain words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Value = bool | float | str


@dataclass(frozen=True)
class Reading:
    """What a verdict says.

    value  what a program would go on with: whether the question is answerable, the answer faithful,
           the user on a jailbreak; the certainty, 0 to 1; the question on its own. None if the
           answer cannot be understood.
    badge  in a word or two
    words  in a sentence
    good   False for what an application should act on, None where nothing is good or bad
    """

    value: Value | None
    badge: str
    words: str
    good: bool | None = None


def read_verdict(name: str, text: str) -> Reading:
    """Reads the answer `text` of the intrinsic `name`."""
    try:
        reading = _READERS[name](json.loads(text))
    except (ValueError, RecursionError):  # brackets upon brackets
        reading = None
    return reading or Reading(None, "not understood", "this answer cannot be understood", False)


def _answerability(said: object) -> Reading | None:
    answerable = _yes(_field(said, "answerable"))
    if answerable is None:
        return None
    if answerable:
        return Reading(True, "answerable", "the documents answer the question", True)
    return Reading(False, "not in the documents", "the documents do not answer it", False)


def _uncertainty(said: object) -> Reading | None:
    """A digit d stands for a certainty of (d + 0.5) / 10."""
    digit = _field(said, "certainty")
    if not isinstance(digit, str) or digit not in tuple("0123456789"):
        return None
    certainty = (int(digit) + 0.5) / 10
    return Reading(
        certainty,
        f"{certainty:.0%} certain",
        f"the answer is right with {certainty:.0%} certainty",
        certainty > 0.5,
    )


def _query_rewrite(said: object) -> Reading | None:
    question = _field(said, "rewritten_question")
    if not isinstance(question, str):
        return None
    return Reading(question, f'means "{question}"', "on its own the question reads")


def _hallucination(said: object) -> Reading | None:
    faithful = _yes(_field(said, "faithful"))
    if faithful is None:
        return None
    if faithful:
        return Reading(True, "supported by the documents", "the documents support the answer", True)
    return Reading(False, "not supported", "the documents do not support the answer", False)


def _jailbreak(said: object) -> Reading | None:
    attempt = _yes(_field(said, "jailbreak"))
    if attempt is None:
        return None
    if attempt:
        return Reading(True, "jailbreak attempt", "the user tries to break the rules", False)
    return Reading(False, "harmless", "the user keeps to the rules", True)


def _field(said: object, name: str) -> object:
    return said.get(name) if isinstance(said, dict) else None


def _yes(said: object) -> bool | None:
    return {"yes": True, "no": False}.get(said) if isinstance(said, str) else None


_READERS: Final[dict[str, Callable[[object], Reading | None]]] = {
    "answerability": _answerability,
    "uncertainty": _uncertainty,
    "query_rewrite": _query_rewrite,
    "hallucination": _hallucination,
    "jailbreak": _jailbreak,
}
