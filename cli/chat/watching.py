"""What is asked at every turn: which intrinsics, when, and which of them a reply has to pass."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from alora_gguf.errors import InputError

from .badges import badges_of, high_is_good, judges_answer, judges_question, number_in

Place = Literal["question", "answer"]
Sign = Literal["", "!", "<", ">"]
_FORM: Final = re.compile(
    r"(?P<name>[^@<>!]+)(@(?P<place>question|answer))?((?P<sign>[<>])(?P<bound>.*)|(?P<good>!))?"
)


@dataclass(frozen=True, slots=True)
class Watched:
    """An intrinsic that is asked at every turn.

    place  about the user's question, while the reply begins; or about the answer
    sign   what makes it a guard, which the reply has to pass or is withheld: "!" if its verdict
           must be a good one, "<" or ">" if its number must be below or above `bound`
    """

    name: str
    place: Place
    sign: Sign = ""
    bound: float = 0.0

    @property
    def is_guard(self) -> bool:
        """Whether a reply has to pass it."""
        return bool(self.sign)

    def passes(self, value: Any) -> bool:
        """Whether a guard's verdict lets a reply pass. One that says nothing does not."""
        if self.sign == "!":
            judged = [badge.good for badge in badges_of(self.name, value) if badge.good is not None]
            return bool(judged) and all(judged)
        number = number_in(value)
        if number is None:
            return False
        return number < self.bound if self.sign == "<" else number > self.bound

    def __str__(self) -> str:
        bound = f"{self.bound:g}" if self.sign in ("<", ">") else ""
        return f"{self.name}{self.sign}{bound}"


def in_words(watched: Sequence[Watched]) -> str:
    """What is asked when."""
    groups = {
        place: " ".join(str(each) for each in watched if each.place == place)
        for place in ("question", "answer")
    }
    parts = ", ".join(f"{names} at each {place}" for place, names in groups.items() if names)
    return f"watching {parts or 'nothing'}"


def parse_all(texts: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[Watched]:
    """parse_watched() of each. Raises InputError, also for one that is there twice."""
    found: list[Watched] = []
    for text in texts:
        watched = parse_watched(text, known)
        if any((each.name, each.place) == (watched.name, watched.place) for each in found):
            raise InputError(
                f"'{text}': '{watched.name}' is asked about the {watched.place} already; name it "
                "once"
            )
        found.append(watched)
    return found


def parse_watched(text: str, known: Mapping[str, Sequence[str]]) -> Watched:
    """NAME, NAME@question, NAME@answer, or a guard: NAME! where a good verdict is needed, NAME<0.5
    or NAME>0.5 for a number. `known` has the fields of each intrinsic's answer. Raises InputError.
    """
    match = _FORM.fullmatch(text)
    if match is None or match["name"] not in known:
        raise InputError(
            f"'{text}': expected NAME, NAME@question, NAME@answer or a guard such as NAME! or "
            f"NAME<0.5, with NAME one of the intrinsics that are loaded: {', '.join(known)}"
        )
    name, place = match["name"], match["place"]
    if not (match["sign"] or match["good"]):
        if place is None:
            place = "question" if judges_question(name) else "answer"
        return Watched(name, "question" if place == "question" else "answer")
    if place == "answer" or (place is None and judges_answer(name)):
        raise InputError(
            f"'{text}': a guard is asked about the question, before the reply is shown, and this "
            f"one judges the answer; ask it afterwards: {name}@answer"
        )
    if match["good"]:
        _check_tells(text, name, known[name])
        return Watched(name, "question", "!")
    return Watched(name, "question", "<" if match["sign"] == "<" else ">", _bound(text, match))


def _check_tells(text: str, name: str, fields: Sequence[str]) -> None:
    if all(high_is_good(field) is None for field in (name, *fields)):
        raise InputError(
            f"'{text}': its name does not tell which verdicts are good; write {name}<0.5 if low "
            f"numbers are, {name}>0.5 if high ones are"
        )


def _bound(text: str, match: re.Match[str]) -> float:
    try:
        bound = float(match["bound"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise InputError(
            f"'{text}': expected a number behind {match['sign']}, found '{match['bound']}'"
        )
    return bound
