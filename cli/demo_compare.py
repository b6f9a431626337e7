"""The demo's evidence: the same verdicts by activated LoRAs and by plain ones, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Final

import alora_gguf as ag

from .bench.result import HOW

_RUNS: Final = 5  # of which the median is reported
_SUFFIX: Final = " as a plain LoRA"


@dataclass(frozen=True)
class Side:
    """One way of asking: `seconds` for all verdicts, and each one's timings by intrinsic."""

    seconds: float
    timings: dict[str, ag.Timings]

    @property
    def evaluated(self) -> int:
        """Tokens read for all verdicts."""
        return sum(t.evaluated for t in self.timings.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "evaluated": self.evaluated}


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


def compare(chat: ag.Chat, calls: Sequence[ag.IntrinsicCall]) -> Comparison:
    """Asks `calls` both ways, in turn, several times.

    A plain LoRA changes every token, so nothing that the base has computed serves it. It is asked
    with the same prompt and schema, and its answers are cut to the length of the aLoRA's, so that
    neither side gains by saying less.
    """
    from alora_gguf.demo import adapter_path

    model, session = chat.model, chat.session
    plain = {}
    for result in chat.invoke_many(calls):
        name = f"{result.name}{_SUFFIX}"
        model.load_adapter(name, adapter_path(result.name), from_start=True)
        invocation = model.adapter(result.name).invocation
        plain[result.name] = ag.Invocation(
            name,
            prompt=(*chat.tokens[: result.timings.reused], *invocation),
            max_tokens=result.timings.generated,
            schema=model.contract(result.name).response_format,
        )
    session.invoke(next(iter(plain.values())))  # the first batch of a shape builds its graph

    alora, lora = [], []
    for _ in range(_RUNS):
        started = time.perf_counter()
        timings = {result.name: result.timings for result in chat.invoke_many(calls)}
        between = time.perf_counter()
        alora.append(Side(between - started, timings))
        timings = {name: session.invoke(question).timings for name, question in plain.items()}
        lora.append(Side(time.perf_counter() - between, timings))
    middle = (sorted(sides, key=attrgetter("seconds"))[_RUNS // 2] for sides in (alora, lora))
    return Comparison(len(chat.tokens), _RUNS, *middle)
