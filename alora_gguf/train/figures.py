"""Figures of predictions, each with its 95 % interval: plain functions of numpy's columns.

Shares get Wilson's score interval (E. B. Wilson, 1927, JASA 22), everything else the percentile
bootstrap over examples (B. Efron, R. Tibshirani, 1993, chapter 13), seeded.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import InputError

Z95: Final = 1.959964  # the normal distribution's 97.5 % point
ROUNDS: Final = 1000  # resamples: an end of an interval is known to about a tenth of its width
BINS: Final = 10  # of a calibration error, as is usual
FOLDS: Final = 5  # of cross-fitting
FLOOR: Final = 1e-9  # a probability below which it does not matter how small it is
TEMPERATURES: Final = (0.05, 20.0)
"""Between these a temperature is fitted: beyond them a distribution is a point, or even."""
Column = NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


# Intervals ---------------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Estimate:
    """The share of `successes` among `n`, with Wilson's interval. Raises InputError if n is 0."""
    if not 0 <= successes <= n or n == 0:
        raise InputError(f"a share needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    p, z2 = successes / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # where all or none succeeded the interval ends there exactly; rounding must not say otherwise
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Estimate(p, low, high)


def resamples(
    statistic: Callable[..., float], *columns: Column, seed: int = 0, rounds: int = ROUNDS
) -> Column:
    """`statistic(*columns)`, and behind it those of `rounds` resamples of the examples: the same
    ones for the same seed and number of examples, so that two such columns are paired.
    """
    rng, n = np.random.default_rng(seed), len(columns[0])
    picks = (rng.integers(0, n, n) for _ in range(rounds))
    found = [statistic(*(column[chosen] for column in columns)) for chosen in picks]
    return np.array([statistic(*columns), *found])


def estimate(values: Column) -> Estimate:
    """The first of resamples(), or of the difference of two, and the 2.5 % and 97.5 % points. A
    resample for which it is not defined (NaN) is left out; the interval always holds the value.
    """
    value = float(values[0])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value))


def bootstrap(
    statistic: Callable[..., float], *columns: Column, seed: int = 0, rounds: int = ROUNDS
) -> Estimate:
    """`statistic(*columns)` with its interval."""
    return estimate(resamples(statistic, *columns, seed=seed, rounds=rounds))


# Of labels ---------------------------------------------------------------------------------------


def mean(values: Column) -> float:
    """Of right (1) and wrong (0) it is the accuracy."""
    return float(values.mean())


def macro_f1(labels: Column, predicted: Column) -> float:
    """The mean F1, 2 TP / (2 TP + FP + FN), of the categories that are expected or predicted, as
    scikit-learn's f1_score with average="macro"; -1 is a prediction of none.
    """
    n = int(max(labels.max(), predicted.max())) + 1
    support = np.bincount(labels, minlength=n)
    claimed = np.bincount(predicted[predicted >= 0], minlength=n)
    hits = np.bincount(labels[labels == predicted], minlength=n)
    present = support + claimed > 0
    return float((2 * hits[present] / (support + claimed)[present]).mean())


def auroc(scores: Column, outcomes: Column) -> float:
    """The probability that a right example scores above a wrong one, ties counting half
    (H. B. Mann, D. R. Whitney, 1947); NaN if all are right or all are wrong.
    """
    positives = int(outcomes.sum())
    negatives = len(outcomes) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # a tie's members share its mean rank
    above = ranks[outcomes.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


# Of probabilities: shares are [n, categories], labels [n] -----------------------------------------


def calibration_error(confidences: Column, outcomes: Column, bins: int = BINS) -> float:
    """|mean confidence - share right|, averaged over bins of equal mass by their sizes (C. Guo et
    al. 2017, arXiv 1706.04599, equation 3; with bins of as many examples each). Equal confidences
    share a bin, so that a constant has one. Chance alone lifts it above 0.
    """
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - counts  # of the first of equal ones
    chosen = (ranks * bins // len(confidences))[inverse]
    gaps = np.bincount(chosen, weights=confidences - outcomes, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def confidences(labels: Column, shares: Column) -> tuple[Column, Column]:
    """What calibration_error() takes: of two categories the probability of the second, and whether
    it was that; of more that of the likeliest, and whether it was right.
    """
    if shares.shape[1] == 2:
        return shares[:, 1], labels == 1
    return shares.max(1), shares.argmax(1) == labels


def brier(labels: Column, shares: Column) -> float:
    """The mean of the squared differences between probabilities and what was so, summed over
    categories (G. W. Brier, 1950); of two the half, as is usual: (p - y)^2.
    """
    wrong = shares - np.eye(shares.shape[1])[labels]
    return float((wrong**2).sum(1).mean() / (2 if shares.shape[1] == 2 else 1))


def log_losses(labels: Column, shares: Column) -> Column:
    """-ln of the right category's probability, by example: [n]."""
    found: Column = -np.log(np.maximum(shares[np.arange(len(labels)), labels], FLOOR))
    return found


def log_loss(labels: Column, shares: Column) -> float:
    """The mean of log_losses(), in nats."""
    return mean(log_losses(labels, shares))


def tempered(shares: Column, temperature: float) -> Column:
    """Shares whose log-probabilities were divided by a temperature: [n, categories]."""
    logits = np.log(np.maximum(shares, FLOOR)) / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    found: Column = weights / weights.sum(1, keepdims=True)
    return found


_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_STEPS: Final = 60  # each keeps 0.618 of the interval: 1e-12 of it in the end


def fitted_temperature(labels: Column, shares: Column) -> float:
    """The temperature within TEMPERATURES that makes the log loss least (C. Guo et al. 2017). It is
    convex in 1 / temperature, so that golden sections find it.
    """
    low, high = (1 / each for each in reversed(TEMPERATURES))
    logits = np.log(np.maximum(shares, FLOOR))
    logits -= logits[np.arange(len(labels)), labels][:, None]  # of the right one: 0

    def loss(inverse: float) -> float:
        return float(np.logaddexp.reduce(inverse * logits, axis=1).mean())

    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(_STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = loss(b)
    return 2 / (low + high)


def cross_fitted(labels: Column, shares: Column, *, seed: int = 0) -> Column:
    """Shares of each example with the temperature that the other folds' examples make best, so
    that none is measured with one that was fitted to it: [n, categories].
    """
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    found: Column = np.array(shares)
    for i in range(FOLDS):
        others = fold != i
        found[~others] = tempered(
            shares[~others], fitted_temperature(labels[others], shares[others])
        )
    return found


# Of texts ----------------------------------------------------------------------------------------

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Text without what an exact match does not mind: case, and how wide white space is."""
    return " ".join(text.casefold().split())


def token_f1(expected: str, said: str) -> float:
    """The harmonic mean of precision and recall of words, as SQuAD has it (P. Rajpurkar et al.
    2016, arXiv 1606.05250): in lower case, without punctuation and articles; 1 where both are
    empty.
    """
    wanted, found = _words(expected), _words(said)
    if not wanted or not found:
        return float(wanted == found)
    common = (Counter(wanted) & Counter(found)).total()
    return 2 * common / (len(wanted) + len(found))


def _words(text: str) -> Sequence[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
