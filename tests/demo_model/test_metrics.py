"""The evaluation's figures, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alora_gguf.errors import InputError
from examples.demo_model import metrics
from examples.demo_model.metrics import Estimate


def test_wilson_has_the_published_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263, method 3
    share = metrics.wilson(81, 263)
    assert share.value == pytest.approx(81 / 263)
    assert (share.low, share.high) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )


def test_wilson_ends_exactly_where_all_or_none_succeed() -> None:
    none, every = metrics.wilson(0, 20), metrics.wilson(20, 20)
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert (every.value, every.low, every.high) == (1.0, pytest.approx(0.8389, abs=5e-5), 1.0)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(InputError, match=f"got {successes} of {n}"):
        metrics.wilson(successes, n)


def test_accuracy_counts_an_unreadable_answer_as_wrong() -> None:
    share = metrics.accuracy(["a", "b", "a", "b"], ["a", "b", None, "a"])
    assert share == metrics.wilson(2, 4)


def test_exact_match_minds_every_letter_but_not_space_around() -> None:
    expected = ["What does Ann sell?"] * 4
    predicted = [" What does Ann sell?\n", "what does Ann sell?", "What does  Ann sell?", None]
    assert metrics.exact_match(expected, predicted) == metrics.wilson(1, 4)


def test_rates_of_positives() -> None:
    expected = ["yes", "yes", "yes", "no", "no", "no", "no"]
    predicted = ["yes", "no", None, "no", "yes", None, "no"]
    assert metrics.true_positive_rate(expected, predicted, "yes") == metrics.wilson(1, 3)
    # the unreadable answer does not clear its example
    assert metrics.false_positive_rate(expected, predicted, "yes") == metrics.wilson(2, 4)


def test_rates_of_one_class_only() -> None:
    assert metrics.true_positive_rate(["no"], ["no"], "yes") is None
    assert metrics.false_positive_rate(["yes"], ["no"], "yes") is None


def test_weighted_f1_by_hand() -> None:
    # class a: TP 2, FP 1, FN 1: F1 = 4/6; class b: TP 1, FP 0, FN 1 (unreadable) ... by hand:
    expected = ["a", "a", "a", "b", "b"]
    predicted = ["a", "a", None, "a", "b"]
    f1_a, f1_b = 2 * 2 / (2 * 2 + 1 + 1), 2 * 1 / (2 * 1 + 0 + 1)
    found = metrics.weighted_f1(expected, predicted)
    assert found.value == pytest.approx((3 * f1_a + 2 * f1_b) / 5)
    assert found.low <= found.value <= found.high


def test_weighted_f1_of_one_class_only() -> None:
    assert metrics.weighted_f1(["a"] * 3, ["a"] * 3) == Estimate(1.0, 1.0, 1.0)
    assert metrics.weighted_f1(["a"] * 3, [None] * 3) == Estimate(0.0, 0.0, 0.0)
    # a claim of a class that nobody expects is a miss, and no class of its own
    assert metrics.weighted_f1(["a"] * 2, ["a", "z"]).value == pytest.approx(2 / 3)


def test_mean_absolute_error_by_hand() -> None:
    found = metrics.mean_absolute_error([0.5, 0.9, 0.1], [0.5, 0.6, 0.3])
    assert found.value == pytest.approx(0.5 / 3)
    assert 0.0 <= found.low < found.value < found.high <= 0.3 + 1e-9


def test_expected_calibration_error_by_hand() -> None:
    # bin 9: certainties 0.95, 1.0 (mean 0.975), right 1 of 2; bin 1: 0.15, right 1 of 1
    found = metrics.expected_calibration_error([0.95, 1.0, 0.15], [True, False, True])
    assert found.value == pytest.approx(2 / 3 * (0.975 - 0.5) + 1 / 3 * (1 - 0.15))


def test_expected_calibration_error_keeps_bins_apart() -> None:
    # over- and underconfidence do not cancel between bins, only within one
    assert metrics.expected_calibration_error([0.1, 0.9], [True, False]).value == pytest.approx(0.9)
    assert metrics.expected_calibration_error(
        [0.1, 0.9], [True, False], bins=1
    ).value == pytest.approx(0.0)


def test_expected_calibration_error_of_a_calibrated_judge() -> None:
    found = metrics.expected_calibration_error([0.75] * 4, [True, True, True, False])
    assert found.value == pytest.approx(0.0)
    assert found.low >= 0.0


@pytest.mark.parametrize("certainty", [-0.1, 1.1, math.nan])
def test_expected_calibration_error_refuses_what_is_no_certainty(certainty: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.expected_calibration_error([0.5, certainty], [True, True])


def test_auroc_by_hand() -> None:
    # pairs (right, wrong): 0.9>0.4, 0.9>0.1, 0.4=0.4 (half), 0.4>0.1
    found = metrics.auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False])
    assert found is not None
    assert found.value == pytest.approx(3.5 / 4)
    reverse = metrics.auroc([0.1, 0.9], [True, False])
    assert reverse is not None
    assert reverse.value == 0.0


def test_auroc_of_one_outcome_only() -> None:
    assert metrics.auroc([0.1, 0.9], [True, True]) is None
    assert metrics.auroc([0.1, 0.9], [False, False]) is None


def test_bootstrap_is_seeded_and_has_the_width_theory_gives() -> None:
    values = np.random.default_rng(5).normal(size=400)
    first = metrics.bootstrap(lambda x: float(x.mean()), values, seed=1)
    assert first == metrics.bootstrap(lambda x: float(x.mean()), values, seed=1)
    assert first != metrics.bootstrap(lambda x: float(x.mean()), values, seed=2)
    assert first.high - first.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    # a quarter of the resamples of two examples hold one outcome only, twice
    found = metrics.auroc([0.9, 0.1], [True, False])
    assert found == Estimate(1.0, 1.0, 1.0)


def test_bootstrap_resamples_columns_together() -> None:
    x = np.arange(20.0)
    found = metrics.bootstrap(lambda a, b: float((a - b).mean()), x, x)
    assert found == Estimate(0.0, 0.0, 0.0)


def test_plausible_counts_by_hand() -> None:
    # p = 0.5, n = 10: P(0) = 1/1024 > 0.05 % so every count is plausible at 99.9 % ...
    half = Estimate(0.5, 0.5, 0.5)
    assert metrics.plausible_counts(half, 10) == (0, 10)
    # ... and at 95 %: P(X <= 1) = 11/1024 < 2.5 %, P(X <= 2) = 56/1024 > 2.5 %
    assert metrics.plausible_counts(half, 10, level=0.95) == (2, 8)


def test_plausible_counts_of_extremes() -> None:
    assert metrics.plausible_counts(Estimate(1.0, 1.0, 1.0), 50) == (50, 50)
    assert metrics.plausible_counts(Estimate(0.0, 0.0, 0.0), 50) == (0, 0)
    low, high = metrics.plausible_counts(metrics.wilson(990, 1000), 50)
    assert high == 50
    assert 44 <= low <= 47


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.exact_match, metrics.weighted_f1])
def test_lengths_must_agree_and_examples_be_there(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="2 expected but 1 predicted"):
        measure(["a", "b"], ["a"])
    with pytest.raises(InputError, match="nothing to measure"):
        measure([], [])
