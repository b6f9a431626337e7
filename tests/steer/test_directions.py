"""Directions and figures of known states, against what was planted and plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from alora_gguf.gguf.vector import Directions
from alora_gguf.steer.directions import (
    auroc,
    best_run,
    bootstrap,
    d_prime,
    mean_difference,
    principal,
    random_directions,
    typical_norm,
)
from alora_gguf.steer.matching import _parts, _places
from alora_gguf.steer.sweeping import repeats
from alora_gguf.steer.writing import random_parts
from tests.support.make_gguf import Array

N_EMBD, N = 64, 200


def planted(rng: np.random.Generator, directions: Array, sizes: list[float]) -> tuple[Array, Array]:
    """Pairs that share much, and differ along `directions` by what varies around `sizes`."""
    common = 10 * rng.standard_normal((N, N_EMBD))
    amounts = rng.normal(sizes, [0.3 * size for size in sizes], (N, len(sizes)))
    difference = amounts @ directions
    noise = 0.2 * rng.standard_normal((2, N, N_EMBD))
    return common + difference / 2 + noise[0], common - difference / 2 + noise[1]


def test_a_planted_direction_is_found_with_its_sign() -> None:
    rng = np.random.default_rng(0)
    (v,) = random_directions(1, N_EMBD, 7)
    for sign in (1, -1):
        positive, negative = planted(rng, sign * v[None, :], [3.0])
        for found in (mean_difference(positive, negative), principal(positive, negative, 1)):
            assert found.shape == (1, N_EMBD)
            assert np.linalg.norm(found) == pytest.approx(1)
            assert found[0] @ (sign * v) > 0.99


def test_a_planted_plane_is_found_and_orthonormal() -> None:
    plane = np.linalg.qr(random_directions(2, N_EMBD, 3).T)[0].T
    found = principal(*planted(np.random.default_rng(1), plane, [5.0, 3.0]), 2)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-12)
    assert np.linalg.svd(found @ plane.T, compute_uv=False).min() > 0.98


def test_auroc_counts_pairs_and_ties_by_half() -> None:
    rng = np.random.default_rng(2)
    positive, negative = (rng.integers(0, 9, n).astype(float) for n in (13, 17))
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert auroc(positive, negative) == pytest.approx(wins / (13 * 17))


def test_auroc_and_d_prime_of_a_planted_separation() -> None:
    """Of two normal distributions d' apart the AUROC is Phi(d' / sqrt(2))."""
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(1.0, 1, 2000), rng.normal(0.0, 1, 2000)
    assert d_prime(positive, negative) == pytest.approx(1.0, abs=0.08)
    assert auroc(positive, negative) == pytest.approx(0.7602, abs=0.02)


def test_intervals_hold_the_figure_and_repeat() -> None:
    values = np.random.default_rng(4).normal(2.0, 1.0, 100)
    found = [bootstrap(100, lambda i: float(values[i].mean()), 5) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].low < values.mean() < found[0].high
    # of a mean: 1.96 standard errors to either side
    width = 2 * 1.96 * values.std(ddof=1) / 10
    assert found[0].high - found[0].low == pytest.approx(width, rel=0.1)


def test_layers_are_a_run_in_the_middle() -> None:
    rising = {layer: float(layer) for layer in range(24)}
    assert best_run(rising, 24) == tuple(range(12, 18))  # not the last ones
    peaked = {layer: -abs(layer - 10.0) for layer in range(24)}
    assert best_run(peaked, 24) == tuple(range(7, 13))
    assert best_run({0: 1.0, 1: 2.0}, 2) == (1,)


def test_a_typical_norm_is_the_median() -> None:
    rows = np.diag([1.0, 2.0, 3.0, 1000.0, 4.0])
    assert typical_norm([rows[:2], rows[2:]]) == 3


@pytest.mark.parametrize("operation", ["add", "add_keep_norm"])
def test_random_parts_have_the_same_lengths(operation: str) -> None:
    values = np.float32(5 * random_directions(1, N_EMBD, 1))
    part = Directions(3, "ffn", operation, 0.5, values)  # type: ignore[arg-type]
    (drawn,) = random_parts([part], [0, 1])
    assert (drawn.layer, drawn.hook, drawn.operation, drawn.scale) == (3, "ffn", operation, 0.5)
    assert np.linalg.norm(drawn.values) == pytest.approx(5, rel=1e-5)
    assert abs(float(drawn.values[0] @ values[0])) < 0.5 * 25
    assert random_parts([part], [0, 1]) == (drawn,)
    assert random_parts([part], [0, 2]) != (drawn,)


def test_random_parts_of_a_projection_are_orthonormal() -> None:
    plane = np.float32(np.linalg.qr(random_directions(2, N_EMBD, 3).T)[0].T)
    (drawn,) = random_parts([Directions(0, "block", "project", 1.0, plane)], [4])
    np.testing.assert_allclose(drawn.values @ drawn.values.T, np.eye(2), atol=1e-5)


def test_repeats_are_counted_within_a_reply() -> None:
    assert repeats([(1, 2, 3, 4), (1, 2, 3, 4)]) == 0
    assert repeats([(1, 1, 1, 1, 1)]) == pytest.approx(2 / 3)
    assert repeats([(1, 2)]) == 0


def test_a_prompts_parts_add_up_to_what_it_changes() -> None:
    rng = np.random.default_rng(6)
    shifts = {layer: rng.standard_normal(N_EMBD) for layer in range(9)}
    for layers in ((5,), (2, 3, 4, 5), (1, 5)):
        parts = _parts(shifts, layers, 0.7)
        assert [(p.layer, p.hook, p.operation) for p in parts] == [
            (layer, "block", "add") for layer in layers
        ]
        total = sum(part.scale * part.values[0] for part in parts)
        np.testing.assert_allclose(total, 0.7 * shifts[5], atol=1e-5)


def test_places_that_are_tried_leave_the_last_layer_alone() -> None:
    found = _places(range(30))
    assert found[:4] == [(14,), (20,), (24,), (27,)]
    assert [(run[0], run[-1]) for run in found[4:]] == [(0, 27), (5, 27), (11, 27), (17, 27)]
    assert _places(range(2)) == [(0,)]
    assert _places(range(1)) == [(0,)]
