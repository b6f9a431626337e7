"""What chance gives: singular values of random adapters, and angles of random subspaces.

Nothing here has the width of a model: the R of a tall matrix of normal numbers is drawn as such
(Bartlett 1933), and all that is asked for follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from .factors import Doubles

_MOST_DRAWS: Final = 8


def _draws(rank: int) -> range:
    """Fewer for higher ranks, which cost more and vary less."""
    return range(max(1, min(_MOST_DRAWS, 256 // rank)))


def generator(seed: int, *sizes: int) -> np.random.Generator:
    """Draws of their own for each combination of sizes, whatever else is drawn."""
    return np.random.default_rng([seed, *sizes])


@lru_cache(4096)
def random_spectra(n_out: int, n_in: int, rank: int, seed: int) -> Doubles:
    """Singular values of B A, [draws, k], of Frobenius norm 1: A and B of normal numbers."""
    rng = generator(seed, n_out, n_in, rank)
    drawn = [
        np.linalg.svd(normal_r(rng, n_out, rank) @ normal_r(rng, n_in, rank).T, compute_uv=False)
        for _ in _draws(rank)
    ]
    spectra = np.stack(drawn)
    return np.asarray(spectra / np.linalg.norm(spectra, axis=1, keepdims=True))


@lru_cache(4096)
def random_cosines(n: int, first: int, second: int, seed: int) -> tuple[float, float]:
    """Of the principal angles of random subspaces of `first` and `second` dimensions: the mean
    square, and the largest one, both the mean over the draws.
    """
    rng, found = generator(seed, n, first, second), []
    for _ in _draws(max(first, second)):
        u, v = random_frames(rng, n, (first, second))
        cosines = np.linalg.svd(u.T @ v, compute_uv=False)
        found.append((float(np.mean(cosines**2)), min(float(cosines[0]), 1.0)))
    square, largest = np.mean(found, axis=0)
    return float(square), float(largest)


def random_frames(rng: np.random.Generator, n: int, ranks: Sequence[int]) -> list[Doubles]:
    """Independent random subspaces of n dimensions, as orthonormal columns in coordinates of the
    space that they span together, which is as large as `ranks` add up to and no larger than n.
    """
    together = normal_r(rng, n, sum(ranks))
    ends = np.cumsum(ranks)[:-1]
    return [np.linalg.qr(block)[0] for block in np.split(together, ends, axis=1)]


def normal_r(rng: np.random.Generator, n: int, k: int) -> Doubles:
    """R of the QR decomposition of [n, k] normal numbers, up to signs: [min(n, k), k]."""
    if n < k:
        return rng.standard_normal((n, k))
    r = np.triu(rng.standard_normal((k, k)), 1)
    r[np.diag_indices(k)] = np.sqrt(rng.chisquare(n - np.arange(k)))
    return r
