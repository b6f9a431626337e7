"""Directions from the states of pairs, and how well they tell the two apart: plain numpy, without
a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .records import Interval

States = NDArray[Any]  # [n_pairs, n_embd], of any type of float
Doubles = NDArray[np.float64]

DRAWS: Final = 1000
"""Times that pairs are drawn anew for an interval."""
_TAIL: Final = 0.025  # on either side of an interval
_TINY: Final = 1e-30


def mean_difference(positive: States, negative: States) -> Doubles:
    """The mean of positive - negative over pairs, of length 1; [1, n_embd]."""
    mean = (positive.astype(np.float64) - negative).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), _TINY))[None, :]


def principal(positive: States, negative: States, k: int) -> Doubles:
    """The `k` first principal components of the states, each pair centred on its own middle:
    orthonormal, [k, n_embd]. That leaves plus and minus half of each pair's difference, so that
    what all differences have in common counts, and not only how they differ. Each points to where
    the positive sides are.
    """
    differences = positive.astype(np.float64) - negative
    found = np.linalg.svd(differences, full_matrices=False)[2][:k]
    signs = np.where((differences @ found.T).mean(axis=0) < 0, -1.0, 1.0)
    return np.asarray(found * signs[:, None])


def typical_norm(states: Sequence[States]) -> float:
    """The median of |h|: a few tokens, such as a text's first, have states many times as large."""
    rows = np.concatenate(states).astype(np.float64)
    return float(np.median(np.linalg.norm(rows, axis=1)))


def random_directions(n: int, n_embd: int, seed: int | Sequence[int]) -> Doubles:
    """`n` directions of length 1 without any preference, [n, n_embd]."""
    drawn = np.random.default_rng(seed).standard_normal((n, n_embd))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


# How well they tell ------------------------------------------------------------------------------


def auroc(positive: Doubles, negative: Doubles) -> float:
    """How often a positive value is above a negative one, ties by half: 0.5 is chance."""
    both = positive[:, None] - negative[None, :]
    return float(((both > 0) + 0.5 * (both == 0)).mean())


def d_prime(positive: Doubles, negative: Doubles) -> float:
    """The distance of the means in standard deviations; large, not infinite, if there are none."""
    spread = np.sqrt((positive.var(ddof=1) + negative.var(ddof=1)) / 2)
    return float((positive.mean() - negative.mean()) / max(float(spread), 1e-9))


def bootstrap(
    n: int, measure: Callable[[NDArray[np.intp]], float], seed: int, draws: int = DRAWS
) -> Interval:
    """Where `measure` lies in 95 of 100 drawings of `n` things with replacement: what other pairs
    of the same kind would give, as far as these tell.
    """
    rng = np.random.default_rng(seed)
    found = [measure(rng.integers(0, n, n)) for _ in range(draws)]
    low, high = np.quantile(found, [_TAIL, 1 - _TAIL])
    return Interval(float(low), float(high))


def best_run(separations: Mapping[int, float], n_layers: int) -> tuple[int, ...]:
    """The layers to act at: of the runs of a quarter of all layers that lie within the second and
    third quarter, the one whose separations have the largest mean.

    In the last layers everything separates well, as what comes next is nearly chosen, but little
    can be changed any more; in the first ones states are still those of single words.
    """
    size = max(1, n_layers // 4)
    first, last = n_layers // 4, max(n_layers // 4 + size, -(-3 * n_layers // 4))
    runs = [tuple(range(at, at + size)) for at in range(first, last - size + 1)]
    runs = [run for run in runs if separations.keys() >= set(run)]
    if not runs:
        return (max(separations, key=lambda layer: separations[layer]),)
    return max(runs, key=lambda run: float(np.mean([separations[layer] for layer in run])))
