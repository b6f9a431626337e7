"""One way to measure: what calls took, the sample in the middle, and the ratio of two medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final, TypeVar

HOW: Final = (
    "the aLoRA's own weights, on from the first token, which makes a plain LoRA of them; what a "
    "LoRA costs depends on its shape, not on its weights' values"
)

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `run` took, and what it returned."""
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def median_of(samples: Sequence[T], key: Callable[[T], float]) -> T:
    """The sample in the middle, of an odd number of them."""
    return sorted(samples, key=key)[len(samples) // 2]


def ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Of the medians; None where a side has no samples, or there is nothing to divide by."""
    divisor = median(below) if below else 0.0
    return median(above) / divisor if above and divisor else None
