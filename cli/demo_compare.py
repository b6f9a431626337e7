"""The demo's evidence: the same verdicts by activated LoRAs and by plain ones, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from .plain_lora import HOW, load_as_plain_lora

if TYPE_CHECKING:
    from alora_gguf import Invocation, Session, Timings, Verdict

_RUNS: Final = 5  # of which the median is reported
_SUFFIX: Final = " as a plain LoRA"


@dataclass(frozen=True)
class Side:
    """One way of asking: `seconds` for all verdicts, and each one's timings by intrinsic."""

    seconds: float
    timings: dict[str, Timings]

    @property
    def evaluated(self) -> int:
        """Tokens read for all verdicts."""
        return sum(t.evaluated for t in self.timings.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        timings = {name: asdict(timings) for name, timings in self.timings.items()}
        return {"seconds": self.seconds, "evaluated": self.evaluated, "timings": timings}


@dataclass(frozen=True)
class Comparison:
    """`alora`: all at once, on forks of the conversation's `n_tokens`; `lora`: one after another,
    everything anew. Each is the median of `runs`.
    """

    n_tokens: int
    runs: int
    alora: Side
    lora: Side

    @property
    def times_as_fast(self) -> float:
        """How many times as fast the activated LoRAs were."""
        return self.lora.seconds / self.alora.seconds

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "n_tokens": self.n_tokens,
            "runs": self.runs,
            "times_as_fast": self.times_as_fast,
            "alora": self.alora.to_dict(),
            "lora": {**self.lora.to_dict(), "weights": HOW},
        }


def compare(session: Session, questions: dict[str, Invocation]) -> Comparison:
    """Asks `questions`, one for each intrinsic, both ways, in turn, several times.

    A plain LoRA changes every token, so nothing that the base has computed serves it. Its answers
    are cut to the length of the aLoRA's, so that neither side gains by saying less.
    """
    from alora_gguf.demo import adapter_path, invocation_of

    lengths = {
        name: verdict.timings.generated
        for name, verdict in zip(
            questions, session.invoke_many(list(questions.values())), strict=True
        )
    }
    plain = {
        name: replace(
            question,
            adapter=f"{name}{_SUFFIX}",
            suffix=f"{question.suffix or ''}{invocation_of(name)}",
            max_tokens=lengths[name],
        )
        for name, question in questions.items()
    }
    model = session.model
    for name in questions:
        load_as_plain_lora(model, f"{name}{_SUFFIX}", adapter_path(name))
    session.invoke(next(iter(plain.values())))  # the first batch of a shape builds its graph

    def one_by_one() -> list[Verdict]:
        return [session.invoke(question) for question in plain.values()]

    alora, lora = [], []
    for _ in range(_RUNS):
        alora.append(_timed(questions, lambda: session.invoke_many(list(questions.values()))))
        lora.append(_timed(questions, one_by_one))
    return Comparison(len(session.tokens), _RUNS, _median(alora), _median(lora))


def _timed(names: dict[str, Invocation], ask: Callable[[], list[Verdict]]) -> Side:
    started = time.perf_counter()
    verdicts = ask()
    seconds = time.perf_counter() - started
    return Side(seconds, {n: v.timings for n, v in zip(names, verdicts, strict=True)})


def _median(sides: list[Side]) -> Side:
    return sorted(sides, key=lambda side: side.seconds)[len(sides) // 2]
