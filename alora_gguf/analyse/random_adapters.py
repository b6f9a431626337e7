"""What chance gives: norms and ranks of random adapters, and angles of random subspaces.

Nothing here has the width of a model: the R of a tall matrix of normal numbers is drawn as such
(Bartlett 1933), and all that is asked for follows from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from .factors import Doubles
from .spectra import effective_rank, energy_rank, stable_rank

_DRAWN: Final = 1024
"""Times 1/rank, how many matrices of a shape a random adapter has before they are used again: those
of a high rank cost much, and vary little.
"""


def generator(seed: int, *sizes: int) -> np.random.Generator:
    """Draws of their own for each combination of sizes, whatever else is drawn."""
    return np.random.default_rng([seed, *sizes])


def mean_and_spread(draws: Doubles) -> tuple[Doubles, Doubles]:
    """Over the first axis: the mean, and the standard deviation of one draw."""
    return draws.mean(axis=0), draws.std(axis=0, ddof=1)


class Chance(NamedTuple):
    """How what is random is drawn, and how many of it."""

    seed: int
    n: int


class RandomAdapters:
    """Random adapters, matrix by matrix."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._drawn: dict[tuple[int, ...], list[Doubles]] = {}
        self._rngs: dict[tuple[int, ...], np.random.Generator] = {}
        self._asked = Counter[tuple[int, ...]]()

    def matrix(self, n_out: int, n_in: int, rank: int) -> Doubles:
        """Of the next matrix of that shape in each of them, [n, 4]: spectral norm, stable,
        effective and energy rank of B A of Frobenius norm 1, A and B of normal numbers.
        """
        shape = n_out, n_in, rank
        drawn, number = self._drawn.setdefault(shape, []), self._asked[shape]
        self._asked[shape] += 1
        seed, n = self._chance
        if drawn and number * rank >= _DRAWN:
            return drawn[number % len(drawn)]
        rng = self._rngs.setdefault(shape, generator(seed, *shape))
        b, a = normal_r(rng, n_out, rank, n), normal_r(rng, n_in, rank, n)
        core = b @ np.swapaxes(a, 1, 2)
        found = np.linalg.svd(core, compute_uv=False)
        s: Doubles = np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float64)
        of = [s[:, 0], *(each(s) for each in (stable_rank, effective_rank, energy_rank))]
        drawn.append(np.stack(of, axis=1))
        return drawn[-1]


@lru_cache(4096)
def random_angles(n: int, first: int, second: int, seed: int, n_draws: int) -> Doubles:
    """Of random subspaces of `first` and `second` of n dimensions, [n_draws, 2]: the mean squared
    cosine of their principal angles, and the smallest angle in degrees.
    """
    rng, found = generator(seed, n, first, second), []
    for _ in range(n_draws):
        u, v = random_frames(rng, n, (first, second))
        cosines = np.minimum(np.linalg.svd(u.T @ v, compute_uv=False), 1.0)
        found.append((np.mean(cosines**2), np.degrees(np.arccos(cosines[0]))))
    return np.array(found)


def random_frames(rng: np.random.Generator, n: int, ranks: Sequence[int]) -> list[Doubles]:
    """Independent random subspaces of n dimensions, as orthonormal columns in coordinates of the
    space that they span together, which is as large as `ranks` add up to and no larger than n.
    """
    together = normal_r(rng, n, sum(ranks))
    ends = np.cumsum(ranks)[:-1]
    return [np.linalg.qr(block)[0] for block in np.split(together, ends, axis=1)]


def normal_r(rng: np.random.Generator, n: int, k: int, *many: int) -> Doubles:
    """R of the QR decomposition of [*many, n, k] normal numbers, up to signs: [*many, min(n, k),
    k].
    """
    if n < k:
        return rng.standard_normal((*many, n, k))
    r = np.triu(rng.standard_normal((*many, k, k)), 1)
    diagonal = np.arange(k)
    r[..., diagonal, diagonal] = np.sqrt(rng.chisquare(n - diagonal, (*many, k)))
    return r
