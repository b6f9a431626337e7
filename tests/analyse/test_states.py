"""CKA, directions and clusters against plain numpy, on states whose figures are known."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from alora_gguf.analyse.states import FEWEST, _hsic, cka, clusters, dimension, gram, mean_cosine
from tests.analyse.known import orthonormal
from tests.support.make_gguf import Array


def alike(x: Array, y: Array) -> float:
    found = cka(gram(x), gram(y))
    assert found is not None
    return found


def plain_cka(x: Array, y: Array) -> float:
    """By the formulas of Song et al. and Kornblith et al. as they stand, of states as they are."""

    def hsic(k: Array, m: Array) -> float:
        n, k, m = len(k), k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        found = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((found - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# CKA ----------------------------------------------------------------------------------------------


def test_the_estimator_is_the_mean_over_different_tokens(rng: np.random.Generator) -> None:
    """HSIC is E k_ij l_ij + E k_ij E l_pq - 2 E k_ij l_ip, each over tokens that all differ."""
    n = 6
    k, m = (gram(rng.standard_normal((n, 3))) for _ in range(2))
    found = [
        k[i, j] * m[i, j] + k[i, j] * m[p, q] - 2 * k[i, j] * m[i, p]
        for i, j, p, q in permutations(range(n), 4)
    ]
    assert _hsic(k, m) == pytest.approx(np.mean(found), rel=1e-10)


def test_states_that_are_turned_scaled_and_shifted_are_alike(rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 48)) * rng.random(48)
    turned = 3.0 * x @ orthonormal(rng, 48, 48) + 7.0
    assert alike(x, x) == pytest.approx(1.0, abs=1e-12)
    assert alike(x, turned) == pytest.approx(1.0, abs=1e-9)
    y = rng.standard_normal((200, 48)) + x
    assert alike(x, y) == pytest.approx(plain_cka(x, y), abs=1e-9)
    assert alike(turned, y) == pytest.approx(alike(x, y), abs=1e-9)


def test_other_directions_of_other_tokens_are_not(rng: np.random.Generator) -> None:
    """What each token has in one is orthogonal to, and independent of, what it has in the other."""
    x = np.hstack([rng.standard_normal((2000, 8)), np.zeros((2000, 8))])
    y = np.hstack([np.zeros((2000, 8)), rng.standard_normal((2000, 8))])
    assert abs(alike(x, y)) < 0.01


def test_low_rank_plus_noise(rng: np.random.Generator) -> None:
    """In the limit |S| / |S + s^2 I| with S the covariance."""
    scales, noise = np.array([3.0, 2.0, 1.0]), 0.8
    x = (rng.standard_normal((3000, 3)) * scales) @ orthonormal(rng, 24, 3).T
    y = x + noise * rng.standard_normal(x.shape)
    variances = np.zeros(24)
    variances[:3] = scales**2
    truth = np.linalg.norm(variances) / np.linalg.norm(variances + noise**2)
    assert alike(x, y) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("width", [4, 64, 576])
def test_how_many_tokens_a_cka_needs(width: int) -> None:
    """From FEWEST on chance makes less than 0.1 of it, whatever the width, with a quarter of them
    often more. Without debiasing wide states that have nothing in common would count as alike.
    """
    rng = np.random.default_rng(width)

    def drawn(n: int, share: float) -> float:
        x, y = rng.standard_normal((2, n, width))
        return plain_cka(x, share * x + (1 - share**2) ** 0.5 * y)

    chance = [abs(drawn(FEWEST, 0.0)) for _ in range(100)]
    assert np.quantile(chance, 0.99) < 0.1
    assert np.quantile([abs(drawn(FEWEST // 4, 0.0)) for _ in range(100)], 0.9) > 0.1
    half = [drawn(FEWEST, 0.5**0.5) for _ in range(100)]  # 0.5 in the limit
    assert np.mean(half) == pytest.approx(0.5, abs=0.02)
    assert np.quantile(np.abs(np.array(half) - 0.5), 0.95) < 0.15
    if width == 576:
        x, y = rng.standard_normal((2, FEWEST, width))
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        biased = np.linalg.norm(x.T @ y) ** 2
        assert biased / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y) > 0.8


def test_fewer_are_refused(rng: np.random.Generator) -> None:
    x = rng.standard_normal((FEWEST, 8))
    assert cka(gram(x), gram(x)) == pytest.approx(1.0)
    assert cka(gram(x[1:]), gram(x[1:])) is None


def test_there_is_none_of_what_does_not_vary(rng: np.random.Generator) -> None:
    x = rng.standard_normal((100, 8))
    assert cka(gram(np.zeros((100, 8))), gram(x)) is None
    assert cka(gram(x), gram(np.full((100, 8), 0.1))) is None


# Directions ---------------------------------------------------------------------------------------


def test_dimension(rng: np.random.Generator) -> None:
    turned = orthonormal(rng, 40, 5).T  # five directions, all the same
    assert dimension(7.0 * turned) == pytest.approx(5.0)
    assert dimension(np.repeat(turned[:1], 30, axis=0)) == pytest.approx(1.0)  # a shift of all
    assert dimension(turned[:2] * [[2.0], [1.0]]) == pytest.approx(25 / 17)
    assert dimension(np.zeros((4, 3))) == 0
    x = rng.standard_normal((90, 30)).astype(np.float32)
    s = np.linalg.svd(x, compute_uv=False).astype(np.float64)
    assert dimension(x) == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-5)
    assert dimension(x.T) == pytest.approx(dimension(x), rel=1e-6)
    low = rng.standard_normal((4000, 3)) @ orthonormal(rng, 30, 3).T
    assert dimension(low) == pytest.approx(3.0, abs=0.05)
    noisy = low + 0.1 * rng.standard_normal(low.shape)
    variances = np.r_[np.full(3, 1.01), np.full(27, 0.01)]
    assert dimension(noisy) == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), abs=0.1)


def test_mean_cosine() -> None:
    x, y = np.array([[1.0, 0], [0, 2], [0, 0]]), np.array([[3.0, 0], [1, 0], [1, 1]])
    assert mean_cosine(x, y) == pytest.approx(0.5)  # without the third
    assert mean_cosine(x, -x) == pytest.approx(-1.0)
    assert mean_cosine(0 * x, y) == 0


def test_clusters_by_average_linkage() -> None:
    cosines = np.array(
        [[1.0, 0.2, 0.9, 0.1], [0.2, 1.0, 0.4, 0.8], [0.9, 0.4, 1.0, 0.3], [0.1, 0.8, 0.3, 1.0]]
    )
    first, second, last = clusters("abcd", cosines)
    assert (first.first, first.second, first.cosine) == (("a",), ("c",), 0.9)
    assert (second.first, second.second, second.cosine) == (("b",), ("d",), 0.8)
    assert (last.first, last.second) == (("a", "c"), ("b", "d"))
    assert last.cosine == pytest.approx((0.2 + 0.1 + 0.4 + 0.3) / 4)
