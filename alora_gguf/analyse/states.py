"""What is measured of a layer's states, [n_tokens, n_embd]: in plain numpy, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .activation_records import Merge
from .factors import Doubles

States = NDArray[Any]  # of any type of float

FEWEST: Final = 64
"""Tokens that a CKA must rest on. Of independent states it is off from 0 by about sqrt(2)/n, so
that no more than 0.1 of what it says is chance from here on; tests/analyse/test_states.py has the
figures.
"""


def gram(x: States) -> Doubles:
    """X X^T of centred states of size 1, with a diagonal of 0; all 0 if the states are the same."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    size = float(np.linalg.norm(centred))
    # what is left of equal states is rounding
    if size <= 1e-12 * float(np.linalg.norm(wide)):
        return np.zeros((len(x), len(x)))
    found = (centred / size) @ (centred / size).T
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def cka(k: Doubles, l: Doubles) -> float | None:  # noqa: E741 - as in the papers
    """Debiased linear CKA of two sets of states of the same tokens, by what gram() makes of them: 1
    if one is the other rotated, scaled and shifted, about 0 if they have nothing in common,
    whatever their widths are. None for fewer than FEWEST tokens, and where one does not vary.

    Kornblith et al. 2019, with the unbiased estimator of HSIC of Song et al. 2012, which can be a
    little below 0.
    """
    if len(k) < FEWEST:
        return None
    both = _hsic(k, k) * _hsic(l, l)
    return _hsic(k, l) / both**0.5 if both > 0 else None


def _hsic(k: Doubles, l: Doubles) -> float:  # noqa: E741
    """HSIC_1 of Song et al. 2012, of Gram matrices whose diagonals are 0."""
    n, sums_k, sums_l = len(k), k.sum(axis=0), l.sum(axis=0)
    found = float(np.sum(k * l))
    found += float(sums_k.sum() * sums_l.sum()) / ((n - 1) * (n - 2))
    found -= 2.0 * float(sums_k @ sums_l) / (n - 2)
    return found / (n * (n - 3))


def dimension(x: States) -> float:
    """In how many directions states are: (sum of s^2)^2 / sum of s^4 of their singular values s,
    the participation ratio. States are not centred: one shift of all is one direction. 0 if all
    are 0; never more than there are tokens.
    """
    wide = x.astype(np.float64)
    size = float(np.linalg.norm(wide))
    if not size:
        return 0.0
    wide = wide / size
    small = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return 1.0 / float(np.sum(small**2))


def mean_cosine(x: States, y: States) -> float:
    """Between the states of one token, the mean over tokens in which neither is 0; 0 if none."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    some = norms > 0
    return float(np.mean(np.sum(a * b, axis=1)[some] / norms[some])) if some.any() else 0.0


def clusters(labels: Sequence[str], cosines: Doubles) -> tuple[Merge, ...]:
    """What is joined with what, the most alike first: average linkage, by the mean cosine between
    the members of two clusters.
    """
    groups, merges = [[i] for i in range(len(labels))], list[Merge]()
    while len(groups) > 1:
        alike = {
            (i, j): float(cosines[np.ix_(groups[i], groups[j])].mean())
            for j in range(len(groups))
            for i in range(j)
        }
        i, j = max(alike, key=lambda pair: alike[pair])
        first, second = groups[i], groups.pop(j)
        named = [tuple(labels[k] for k in group) for group in (first, second)]
        merges.append(Merge(named[0], named[1], alike[i, j]))
        groups[i] = [*first, *second]
    return tuple(merges)
