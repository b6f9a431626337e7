"""Ranks that singular values tell: descending along the last axis, 0 where all of them are 0."""

from __future__ import annotations

import numpy as np

from .factors import Doubles
from .records import ENERGY


def stable_rank(s: Doubles) -> Doubles:
    """||dW||_F^2 / ||dW||_2^2."""
    largest = s[..., 0]
    return _where(largest, np.sum(s**2, axis=-1), largest**2)


def effective_rank(s: Doubles) -> Doubles:
    """The exponential of the entropy of singular values as shares of their sum (Roy, Vetterli)."""
    total = s.sum(axis=-1, keepdims=True)
    shares = _where(total, s, total)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.asarray(np.exp(-np.sum(shares * logs, axis=-1)) * (total[..., 0] > 0))


def energy_rank(s: Doubles) -> Doubles:
    """The fewest singular values with 99 % of the sum of squares."""
    held = np.cumsum(s**2, axis=-1)
    short = held < ENERGY * held[..., -1:]
    return np.asarray((np.count_nonzero(short, axis=-1) + 1.0) * (held[..., -1] > 0))


def numerical_rank(s: Doubles, rounding: float) -> int:
    """How many of one matrix's are above what rounding leaves, relative to the largest."""
    return int(np.count_nonzero(s > rounding * s[0]))


def _where(there: Doubles, above: Doubles, below: Doubles) -> Doubles:
    """`above / below`, 0 where there is nothing."""
    zero = np.zeros(np.broadcast_shapes(above.shape, below.shape))
    return np.divide(above, below, where=there > 0, out=zero)
