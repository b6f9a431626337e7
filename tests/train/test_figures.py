"""The figures of predictions, against values worked out by hand and counts by brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from alora_gguf.errors import InputError
from alora_gguf.train import figures
from alora_gguf.train.figures import Column, Estimate


def column(*values: float) -> Column:
    return np.array(values)


def test_wilson_has_the_published_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263, method 3
    share = figures.wilson(81, 263)
    assert share.value == pytest.approx(81 / 263)
    assert (share.low, share.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )


def test_wilson_ends_exactly_where_all_or_none_succeed() -> None:
    none, every = figures.wilson(0, 20), figures.wilson(20, 20)
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert (every.value, every.low, every.high) == (1.0, pytest.approx(0.8389, abs=5e-5), 1.0)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(InputError, match=f"got {successes} of {n}"):
        figures.wilson(successes, n)


def test_bootstrap_is_seeded_and_has_the_width_theory_gives() -> None:
    values = np.random.default_rng(5).normal(size=400)
    first = figures.bootstrap(figures.mean, values, seed=1)
    assert first == figures.bootstrap(figures.mean, values, seed=1)
    assert first != figures.bootstrap(figures.mean, values, seed=2)
    assert first.high - first.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_differences_are_paired() -> None:
    # two systems that differ by the same in every example: the difference is certain, though
    # neither figure is
    a = np.random.default_rng(0).normal(size=50)
    found = figures.estimate(
        figures.resamples(figures.mean, a + 0.25) - figures.resamples(figures.mean, a)
    )
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    found = figures.bootstrap(figures.auroc, column(0.9, 0.1), column(1, 0))
    assert found == Estimate(1.0, 1.0, 1.0)


def test_macro_f1_by_hand() -> None:
    # class 0: TP 2, FP 1, FN 1; class 1: TP 1, FP 0, FN 1; the unreadable one is no class
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, -1, 0, 1])
    assert figures.macro_f1(labels, predicted) == pytest.approx((4 / 6 + 2 / 3) / 2)
    # a category that is claimed and never right counts, one that nobody names does not
    assert figures.macro_f1(np.array([0, 0]), np.array([0, 2])) == pytest.approx((2 / 3) / 2)
    assert figures.macro_f1(np.array([1, 1]), np.array([1, 1])) == 1.0


def test_auroc_is_the_brute_force_count() -> None:
    rng = np.random.default_rng(3)
    scores, outcomes = rng.integers(0, 6, 60) / 5, rng.integers(0, 2, 60)  # many ties
    pairs = list(product(scores[outcomes == 1], scores[outcomes == 0]))
    count = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    assert figures.auroc(scores, outcomes) == pytest.approx(count / len(pairs))
    assert figures.auroc(np.full(4, 0.3), column(1, 0, 0, 1)) == 0.5
    assert math.isnan(figures.auroc(column(0.1, 0.9), column(1, 1)))


def test_calibration_error_has_bins_of_equal_mass() -> None:
    # two bins of two: |0.15 - 0.5| and |0.85 - 1|
    found = figures.calibration_error(column(0.1, 0.8, 0.2, 0.9), column(0, 1, 1, 1), bins=2)
    assert found == pytest.approx((0.35 + 0.15) / 2)
    # over- and underconfidence cancel within a bin only
    assert figures.calibration_error(column(0.1, 0.9), column(1, 0), bins=2) == pytest.approx(0.9)
    assert figures.calibration_error(column(0.1, 0.9), column(1, 0), bins=1) == pytest.approx(0.0)


def test_a_constant_has_one_bin() -> None:
    outcomes = column(1, 1, 1, 0, 1, 1, 0, 1, 1, 1)
    assert figures.calibration_error(np.full(10, 0.8), outcomes) == pytest.approx(0.0)
    assert figures.calibration_error(np.full(10, 0.5), outcomes) == pytest.approx(0.3)


def test_confidences_are_of_the_second_of_two_and_of_the_likeliest_of_more() -> None:
    sure, so = figures.confidences(np.array([0, 1]), np.array([[0.7, 0.3], [0.2, 0.8]]))
    assert (list(sure), list(so)) == ([0.3, 0.8], [False, True])
    sure, so = figures.confidences(np.array([0, 1]), np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    assert (list(sure), list(so)) == ([0.5, 0.7], [True, False])


def test_brier_and_log_loss_by_hand() -> None:
    two = np.array([[0.7, 0.3], [0.2, 0.8]])
    assert figures.brier(np.array([0, 0]), two) == pytest.approx((0.3**2 + 0.8**2) / 2)
    three = np.array([[0.5, 0.3, 0.2]])
    assert figures.brier(np.array([0]), three) == pytest.approx(0.25 + 0.09 + 0.04)
    assert figures.log_loss(np.array([0, 0]), two) == pytest.approx(
        -(math.log(0.7) + math.log(0.2)) / 2
    )
    # a category of no probability at all is very unlikely
    sure = np.array([[1.0, 0.0]])
    assert figures.log_loss(np.array([1]), sure) == pytest.approx(-math.log(figures.FLOOR))


def test_tempered_divides_log_probabilities() -> None:
    shares = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert figures.tempered(shares, 1.0) == pytest.approx(shares)
    root = np.sqrt(shares[0])
    assert figures.tempered(shares, 2.0)[0] == pytest.approx(root / root.sum())


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_them_is_found(true: float) -> None:
    rng = np.random.default_rng(1)
    calibrated = rng.dirichlet((1.0, 1.0, 1.0), 4000)
    labels = np.array([rng.choice(3, p=each) for each in calibrated])
    said = figures.tempered(calibrated, 1 / true)  # as sure as if it had been divided by 1 / true
    assert figures.fitted_temperature(labels, said) == pytest.approx(true, rel=0.1)
    crossed = figures.cross_fitted(labels, said)
    assert figures.log_loss(labels, crossed) == pytest.approx(
        figures.log_loss(labels, calibrated), abs=0.005
    )


def test_no_example_is_tempered_by_a_fit_to_itself() -> None:
    # one example alone is confidently wrong: where it were fitted to itself, its temperature would
    # be high, and it is that of the others
    shares = np.array([[0.9, 0.1]] * 10)
    labels = np.array([1] + [0] * 9)
    crossed = figures.cross_fitted(labels, shares)
    assert crossed[0] == pytest.approx(figures.tempered(shares[:1], figures.TEMPERATURES[0])[0])
    assert len({round(float(each), 6) for each in crossed[:, 0]}) == 2


def test_a_temperature_stays_within_its_limits() -> None:
    low, high = figures.TEMPERATURES
    shares = np.array([[0.9, 0.1]] * 4)
    assert figures.fitted_temperature(np.zeros(4, int), shares) == pytest.approx(low, rel=1e-3)
    assert figures.fitted_temperature(np.ones(4, int), shares) == pytest.approx(high, rel=1e-3)


@pytest.mark.parametrize(
    ("expected", "said", "f1"),
    [
        ("The cat sat.", "a cat, sat", 1.0),
        ("cat sat", "the cat ran away", 2 * 1 / (2 + 3)),
        ("cat cat", "cat", 2 * 1 / (2 + 1)),
        ("cat", "dog", 0.0),
        ("cat", "", 0.0),
        ("the", "a", 1.0),  # both empty
    ],
)
def test_token_f1_is_squads(expected: str, said: str, f1: float) -> None:
    assert figures.token_f1(expected, said) == pytest.approx(f1)


def test_an_exact_match_minds_neither_case_nor_blanks() -> None:
    assert figures.plain(" Who  is\nAnn? ") == figures.plain("who is ann?")
    assert figures.plain("Who is Ann") != figures.plain("Who is Ann?")
