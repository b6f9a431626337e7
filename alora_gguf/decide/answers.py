"""Answers to typed questions, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

from alora_gguf.errors import AloraError
from alora_gguf.options import Timings

from .questions import Content


@dataclass(frozen=True, kw_only=True)
class _Answer:
    type: ClassVar[str] = ""

    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class PredicateAnswer(_Answer):
    """How likely it is that the answer is yes, 0 to 1. `timings` are those of its forks: tokens of
    the state that were reused, and those of the question that were read, in all orders.
    """

    type: ClassVar[str] = "noul"

    probability: float


@dataclass(frozen=True)
class ChoiceAnswer(_Answer):
    """The likeliest option, all options with their probabilities, in the question's order, and the
    confidence, 0 to 1, by choice_confidence(). `timings` are as PredicateAnswer's.
    """

    type: ClassVar[str] = "choice"

    choice: Any  # the option as it was given: text, or a boolean
    probabilities: Mapping[Any, float]
    confidence: float


@dataclass(frozen=True)
class ScoreAnswer(_Answer):
    """The expected level, from 0 to the number of levels less 1; what the levels say, their
    probabilities, and the confidence, 0 to 1, by score_confidence(). `timings` are as
    PredicateAnswer's.
    """

    type: ClassVar[str] = "score"

    score: float
    legend: tuple[Content, ...]
    probabilities: tuple[float, ...]
    confidence: float


@dataclass(frozen=True)
class FailedAnswer(_Answer):
    """A question that was asked and got no answer, and why."""

    type: ClassVar[str] = "error"

    error: AloraError


Answer: TypeAlias = PredicateAnswer | ChoiceAnswer | ScoreAnswer | FailedAnswer
"""The answer to a question."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call took.

    read     of the state and the questions, that were computed
    reused   of the state, that the cache held
    kept     of those read, that the cache goes on holding: the state's
    written  sampled; options are read from the logits, so only intrinsics write any
    """

    read: int = 0
    reused: int = 0
    kept: int = 0
    written: int = 0


@dataclass(frozen=True)
class Decision:
    """The answers by the names of their questions, and what they took together. `decision[name]` is
    an answer.
    """

    answers: Mapping[str, Answer]
    usage: Usage
    timings: Timings

    def __getitem__(self, name: str) -> Answer:
        return self.answers[name]

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps() takes: `answers` by name, each with its `type`, its fields and
        `timings`, or what is wrong as `error`; `usage`, and `timings`.
        """
        answers = {name: _fields(each) for name, each in self.answers.items()}
        return {"answers": answers, "usage": asdict(self.usage), "timings": asdict(self.timings)}


def _fields(answer: Answer) -> dict[str, Any]:
    said: dict[str, Any] = {"type": answer.type, **vars(answer), "timings": asdict(answer.timings)}
    if isinstance(answer, ChoiceAnswer):
        said["probabilities"] = dict(answer.probabilities)
    if isinstance(answer, FailedAnswer):
        said["error"] = str(answer.error)
    return said


def choice_confidence(probabilities: Sequence[float]) -> float:
    """How far the likeliest of n options is above an even split: (p_max - 1/n) / (1 - 1/n), as
    TypeSafe defines it; 1 for a single option.
    """
    n = len(probabilities)
    return 1.0 if n < 2 else max(0.0, (max(probabilities) - 1 / n) / (1 - 1 / n))


def score_confidence(probabilities: Sequence[float]) -> float:
    """How near to the likeliest of n levels the others are: 1 less the mean distance from it, over
    that of an even split from its middle, as TypeSafe defines it; 1 for a single level.
    """
    n = len(probabilities)
    if n < 2:
        return 1.0
    mode = max(range(n), key=lambda i: probabilities[i])
    spread = sum(p * abs(i - mode) for i, p in enumerate(probabilities))
    even = sum(abs(i - (n - 1) / 2) for i in range(n)) / n
    return max(0.0, 1 - spread / even)


def choice_answer(
    names: Sequence[Any], probabilities: Sequence[float], timings: Timings
) -> ChoiceAnswer:
    """The answer that options' probabilities come to."""
    best = min(range(len(names)), key=lambda i: (-probabilities[i], repr(names[i])))
    pairs = dict(zip(names, probabilities, strict=True))
    return ChoiceAnswer(names[best], pairs, choice_confidence(probabilities), timings=timings)


def score_answer(
    legend: Sequence[Content], probabilities: Sequence[float], timings: Timings
) -> ScoreAnswer:
    """The answer that levels' probabilities come to."""
    score = sum(i * p for i, p in enumerate(probabilities))
    found = tuple(probabilities)
    return ScoreAnswer(score, tuple(legend), found, score_confidence(found), timings=timings)
