"""Alternates two or more sides and keeps what each took. Knows nothing of models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Samples = dict[str, list[float]]
Kind = Literal["cost", "speedup", "value"]


def alternate(sides: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> Samples:
    """Runs every side `rounds` times, in turns that begin with another side each time.

    A side returns the seconds that it wants counted, so it can prepare and tidy up at no charge.
    """
    names = list(sides)
    samples: Samples = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            seconds = sides[name]()
            if turn >= 0:
                samples[name].append(seconds)
    return samples


def continued(seconds: Sequence[float], n: float) -> float:
    """What `n` more steps would take, each dearer than the one before by as much: the least-squares
    line through the steps that were timed, summed from there on.
    """
    slope, first = np.polyfit(range(len(seconds)), seconds, 1)
    return float(n * (first + slope * (len(seconds) + (n - 1) / 2)))


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what it is and what it took, in `unit`s."""

    label: str
    samples: Sequence[float]
    unit: str = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        low, high = min(self.samples), max(self.samples)
        text = f"{self.label} {_number(self.median, self.unit)}"
        return text if low == high else f"{text} ({_span(low, high, self.unit)})"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    kind   "cost": ours / other, smaller is better; "speedup": other / ours, larger is better;
           "value": ours alone counts, in its unit
    floor  what --check wants of it: at most (cost, value), at least (speedup)
    goal   where the project wants to get, as text
    """

    row: str
    case: str
    ours: Side
    other: Side | None
    kind: Kind = "cost"
    floor: float | None = None
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians."""
        if self.other is None or self.kind == "value":
            return None
        return self._of(self.ours.median, self.other.median)

    @property
    def paired(self) -> float | None:
        """The median of each round's ratio, which slow drift of the machine leaves alone."""
        if self.other is None or self.kind == "value":
            return None
        pairs = zip(self.ours.samples, self.other.samples, strict=True)
        return statistics.median(self._of(ours, other) for ours, other in pairs)

    @property
    def ok(self) -> bool:
        if self.floor is None:
            return True
        if self.kind == "value":
            return self.ours.median <= self.floor
        assert self.paired is not None
        return self.paired >= self.floor if self.kind == "speedup" else self.paired <= self.floor

    def _of(self, ours: float, other: float) -> float:
        above, below = (other, ours) if self.kind == "speedup" else (ours, other)
        return above / below if below else float("inf")


def _number(value: float, unit: str) -> str:
    if unit == "s":
        if value >= 10:
            return f"{value:.1f} s"
        return f"{value * 1e3:.4g} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.3g} µs"
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.0f} {unit}".rstrip()


def _span(low: float, high: float, unit: str) -> str:
    return f"{_number(low, unit)} .. {_number(high, unit)}"
