"""Estimates against closed forms, and the three answers of a test."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sokmerge.errors import ArgumentError
from sokmerge.reader import Estimate
from sokmerge.reader.digits import significant, with_interval

NUMBERS = st.lists(st.floats(-100, 100), min_size=3, max_size=8)


@given(NUMBERS)
def test_interval_is_that_of_a_second_library(x):
    mean, error = np.mean(x), stats.sem(x)
    estimate = Estimate.of(x)
    half = stats.t.ppf(0.975, len(x) - 1) * error
    assert estimate.mean == pytest.approx(mean)
    assert (estimate.low, estimate.high) == pytest.approx((mean - half, mean + half), abs=1e-9)


@given(NUMBERS)
def test_jackknife_of_an_additive_kernel_is_the_t_interval_of_twice_the_mean(x):
    pairs = {(i, j): x[i] + x[j] for i, j in itertools.combinations(range(len(x)), 2)}
    jackknife, direct = Estimate.of_pairs(pairs), Estimate.of([2 * value for value in x])
    for name in ("mean", "low", "high", "n"):
        assert getattr(jackknife, name) == pytest.approx(getattr(direct, name), abs=1e-7)


def test_jackknife_of_the_variance_kernel_is_the_jackknife_of_the_variance():
    x = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 7.0])
    pairs = {(i, j): (x[i] - x[j]) ** 2 / 2 for i, j in itertools.combinations(range(6), 2)}
    left_out = np.array([np.delete(x, k).var(ddof=1) for k in range(6)])
    estimate = Estimate.of_pairs(pairs)
    error = math.sqrt(5 / 6 * ((left_out - left_out.mean()) ** 2).sum())
    assert estimate.mean == pytest.approx(x.var(ddof=1))
    assert estimate.high - estimate.mean == pytest.approx(stats.t.ppf(0.975, 5) * error)


def test_interval_of_pairs_is_honest_about_shared_networks():
    rng = np.random.default_rng(0)
    covered = wrong = 0
    for _ in range(400):
        x = rng.normal(size=6)
        pairs = {(i, j): x[i] + x[j] for i, j in itertools.combinations(range(6), 2)}
        jackknife, naive = Estimate.of_pairs(pairs), Estimate.of(list(pairs.values()))
        covered += jackknife.low < 0 < jackknife.high
        wrong += naive.low < 0 < naive.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)
    assert wrong / 400 < 0.85  # what one gets by taking pairs for replicates


def test_order_and_names_of_networks_do_not_matter():
    values = {("a", "b"): 1.0, ("a", "c"): 2.0, ("b", "c"): 4.0}
    turned = {("c", "b"): 4.0, ("b", "a"): 1.0, ("c", "a"): 2.0}
    assert Estimate.of_pairs(values).low == pytest.approx(Estimate.of_pairs(turned).low)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({(0, 1): 1.0}, "pairs of 2 networks"),
        ({(0, 1): 1.0, (1, 2): 1.0}, "no value for the pair"),
        ({(0, 1): 1.0, (1, 0): 1.0, (1, 2): 1.0, (0, 2): 1.0}, "both orders"),
        ({(0, 0): 1.0, (0, 1): 1.0, (1, 2): 1.0}, "with itself"),
        ({(0, 1): 1.0, (1, 2): math.nan, (0, 2): 1.0}, "nan"),
    ],
)
def test_pairs_that_are_no_complete_design_are_refused(values, told):
    with pytest.raises(ArgumentError, match=told):
        Estimate.of_pairs(values)


@pytest.mark.parametrize("samples", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_samples_that_have_no_interval_are_refused(samples):
    with pytest.raises(ArgumentError, match="samples: found"):
        Estimate.of(samples)


def test_differences_of_paired_measurements():
    a, b = [5.0, 7.0, 9.0, 4.0, 6.0], [4.0, 6.1, 7.9, 3.0, 5.0]
    paired = Estimate.of_differences(a, b)
    assert paired.mean == pytest.approx(1.0)
    assert (paired > 0.5).verdict == "supported"
    keys = list(itertools.combinations(range(3), 2))
    first, second = dict(zip(keys, a[:3], strict=True)), dict(zip(keys, b[:3], strict=True))
    assert Estimate.of_differences(first, second).n == 3
    with pytest.raises(ArgumentError, match="other pairs"):
        Estimate.of_differences(first, {(0, 1): 1.0})
    with pytest.raises(ArgumentError, match="same order"):
        Estimate.of_differences(a, b[:2])


@pytest.mark.parametrize(
    ("threshold", "below", "above"),
    [
        (10.0, "supported", "not supported"),
        (-10.0, "not supported", "supported"),
        (3.0, "inconclusive at this scale", "inconclusive at this scale"),
    ],
)
def test_verdict_says_where_the_whole_interval_lies(threshold, below, above):
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (estimate < threshold).verdict == below
    assert (estimate > threshold).verdict == above
    assert (threshold > estimate).verdict == below


def test_three_replicates_decide_nothing():
    test = Estimate.of([1.0, 1.01, 1.02]) > 0
    assert test.verdict == "inconclusive at this scale"
    assert test.reason == "it rests on 3 replicates; a claim needs 5"


def test_a_test_has_no_truth_value_and_estimates_are_not_ordered():
    estimate = Estimate.of([1.0, 2.0, 3.0])
    with pytest.raises(ArgumentError, match="verdict"):
        assert estimate < 3
    with pytest.raises(ArgumentError, match="of_differences"):
        _ = estimate < estimate
    with pytest.raises(ArgumentError, match="threshold"):
        _ = estimate < math.nan


@given(st.floats(-1e6, 1e6), st.integers(1, 4))
def test_significant_digits_are_few_and_true(value, digits):
    text = significant(value, digits, floor=0)
    assert float(text) == pytest.approx(value, rel=0.6 * 10 ** (1 - digits), abs=1e-300)
    mantissa = text.lower().split("e")[0].replace("-", "").replace(".", "").strip("0")
    assert len(mantissa) <= digits


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ((0.98765, 0.97321, 1.00209), ("0.988", "0.973", "1.002")),
        ((93.456, 93.444, 93.468), ("93.46", "93.44", "93.47")),
        ((12345.6, 12000.0, 12691.0), ("12350", "12000", "12690")),
        ((-0.0001, -0.01, 0.0098), ("-0.0001", "-0.0100", "0.0098")),
    ],
)
def test_an_interval_is_written_to_the_digits_it_supports(numbers, shown):
    assert with_interval(*numbers) == shown


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=6), st.floats(-5, 5))
@settings(max_examples=30)
def test_pooled_groups_are_a_two_sample_interval(values, shift):
    """Of two groups of one size: the interval of scipy for the sum of means, halved."""
    assume(np.std(values) > 1e-3)
    other = [shift - x for x in values]
    pooled = Estimate.pooled([Estimate.of(values), Estimate.of(other)])
    two = stats.ttest_ind(values, [-y for y in other], equal_var=True).confidence_interval(0.95)
    assert pooled.n == 2 * len(values)
    assert [pooled.low, pooled.high] == pytest.approx([two.low / 2, two.high / 2], abs=1e-9)


def test_one_group_pooled_is_itself_and_what_does_not_fit_is_told():
    one = Estimate.of([1.0, 2.0, 4.0], label="x", unit="nats")
    same = Estimate.pooled([one])
    assert (same.mean, same.n, same.method) == (one.mean, one.n, one.method)
    assert [same.low, same.high] == pytest.approx([one.low, one.high])
    for wrong in ([], [one, Estimate.of([1.0, 2.0], unit="points")]):
        with pytest.raises(ArgumentError, match="^estimates: found"):
            Estimate.pooled(wrong)
