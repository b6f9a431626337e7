"""The figures of an evaluation, each with its 95 % interval: plain functions of plain sequences.

An answer that could not be read is None: it differs from every expected label, so it counts as
wrong. Intervals are those of alora_gguf.train.figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from alora_gguf.errors import InputError
from alora_gguf.train import figures
from alora_gguf.train.figures import Column, Estimate, wilson

ROUNDS: Final = 2000


# Shares ------------------------------------------------------------------------------------------


def accuracy(expected: Sequence[str], predicted: Sequence[str | None]) -> Estimate:
    """The share of predictions that equal the expected label."""
    _check(expected, predicted)
    return wilson(sum(e == p for e, p in zip(expected, predicted, strict=True)), len(expected))


def exact_match(expected: Sequence[str], predicted: Sequence[str | None]) -> Estimate:
    """The share of texts that equal the expected one, letter by letter; only white space around
    them does not count.
    """
    return accuracy(
        [text.strip() for text in expected],
        [None if text is None else text.strip() for text in predicted],
    )


def true_positive_rate(
    expected: Sequence[str], predicted: Sequence[str | None], positive: str
) -> Estimate | None:
    """The share of examples expected to be `positive` that were found; None if there are none."""
    _check(expected, predicted)
    found = [p == positive for e, p in zip(expected, predicted, strict=True) if e == positive]
    return wilson(sum(found), len(found)) if found else None


def false_positive_rate(
    expected: Sequence[str], predicted: Sequence[str | None], positive: str
) -> Estimate | None:
    """The share of the other examples that were not cleared; None if there are none.

    An unreadable answer clears nothing: it counts as an alarm here, as it counts as a miss in
    true_positive_rate().
    """
    _check(expected, predicted)
    pairs = zip(expected, predicted, strict=True)
    alarms = [p is None or p == positive for e, p in pairs if e != positive]
    return wilson(sum(alarms), len(alarms)) if alarms else None


def plausible_counts(share: Estimate, n: int, level: float = 0.999) -> tuple[int, int]:
    """The fewest and the most successes among `n` further examples that `share` makes plausible.

    Exact binomial tails of (1 - level) / 2 each, the lower one at the interval's low end and the
    upper one at its high end, as the share itself is not known any better.
    """
    tail = (1 - level) / 2
    low, high = 0, n
    while _at_most(low, n, share.low) < tail:
        low += 1
    while _at_most(n - high, n, 1 - share.high) < tail:
        high -= 1
    return low, high


def _at_most(k: int, n: int, p: float) -> float:
    """The probability of at most `k` successes in `n` trials of probability `p`."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


# Other figures -----------------------------------------------------------------------------------


def weighted_f1(
    expected: Sequence[str], predicted: Sequence[str | None], *, seed: int = 0
) -> Estimate:
    """The F1 of each expected class, 2 TP / (2 TP + FP + FN), weighted by how often it is expected
    (scikit-learn's f1_score with average="weighted").
    """
    return bootstrap(f1_statistic, *label_columns(expected, predicted), seed=seed)


def mean_absolute_error(
    expected: Sequence[float], predicted: Sequence[float], *, seed: int = 0
) -> Estimate:
    """The mean of |expected - predicted|."""
    _check(expected, predicted)
    return bootstrap(mae_statistic, np.asarray(expected), np.asarray(predicted), seed=seed)


def expected_calibration_error(
    certainties: Sequence[float], outcomes: Sequence[bool], *, bins: int = 10, seed: int = 0
) -> Estimate:
    """|mean certainty - share right|, averaged over bins of equal width by their sizes.

    C. Guo et al. 2017 (arXiv 1706.04599), equation 3. A certainty of 1 falls into the last bin. It
    is never negative, so chance alone lifts it above 0, and resampling lifts it a little more: read
    the interval as leaning upwards. Raises InputError for a certainty outside 0 .. 1.
    """
    _check(certainties, outcomes)
    values = np.asarray(certainties, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("certainties must lie between 0 and 1")

    def statistic(sure: Column, right: Column) -> float:
        gaps = np.bincount(_bin(sure, bins), weights=sure - right, minlength=bins)
        return float(np.abs(gaps).sum() / len(sure))

    return bootstrap(statistic, values, np.asarray(outcomes, dtype=float), seed=seed)


def auroc(scores: Sequence[float], outcomes: Sequence[bool], *, seed: int = 0) -> Estimate | None:
    """The probability that a right example scores above a wrong one, ties counting half
    (H. B. Mann, D. R. Whitney, 1947); None if all are right or all are wrong.
    """
    _check(scores, outcomes)
    if all(outcomes) or not any(outcomes):
        return None
    return bootstrap(
        figures.auroc, np.asarray(scores, float), np.asarray(outcomes, bool), seed=seed
    )


def bootstrap(statistic: Callable[..., float], *columns: Column, seed: int = 0) -> Estimate:
    """`statistic(*columns)` and the 2.5 % and 97.5 % points of it over resampled examples."""
    return figures.bootstrap(statistic, *columns, seed=seed, rounds=ROUNDS)


def label_columns(expected: Sequence[str], *predicted: Sequence[str | None]) -> list[Column]:
    """Labels as numbers, equal where they are equal; what nobody expects is -1."""
    number = {label: i for i, label in enumerate(sorted(set(expected)))}
    for column in predicted:
        _check(expected, column)
    return [
        np.array([number.get(label, -1) if label is not None else -1 for label in column])
        for column in (expected, *predicted)
    ]


def f1_statistic(expected: Column, predicted: Column) -> float:
    """weighted_f1() of label_columns()."""
    n = int(expected.max()) + 1
    support = np.bincount(expected, minlength=n)
    hits = np.bincount(expected[expected == predicted], minlength=n)
    claimed = np.bincount(predicted[predicted >= 0], minlength=n)[:n]
    present = support > 0
    f1 = 2 * hits[present] / (support + claimed)[present]
    return float((f1 * support[present]).sum() / len(expected))


def mae_statistic(expected: Column, predicted: Column) -> float:
    """mean_absolute_error() of arrays."""
    return float(np.abs(expected - predicted).mean())


def _bin(values: Column, bins: int) -> Column:
    found: Column = np.minimum((values * bins).astype(int), bins - 1)
    return found


def _check(expected: Sequence[object], predicted: Sequence[object]) -> None:
    if len(expected) != len(predicted):
        raise InputError(f"{len(expected)} expected but {len(predicted)} predicted values")
    if len(expected) == 0:
        raise InputError("there is nothing to measure: no examples")
