"""The ROC curve and its area against their definitions, written out, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sokmerge.errors import ArgumentError
from sokmerge.probe.roc import auc, roc

FEW = st.lists(st.integers(-4, 4), min_size=2, max_size=12)


def _by_definition(x, y):
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    spread = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    return wins.mean(), math.sqrt(spread)


@settings(max_examples=15, deadline=None)
@given(FEW, FEW)
def test_it_is_its_definition_with_ties_and_without(x, y):
    x, y = np.array(x, float), np.array(y, float)
    found = auc(torch.from_numpy(x), torch.from_numpy(y))
    assert (found.value, found.stderr) == pytest.approx(_by_definition(x, y), abs=1e-12)
    curve = roc(torch.from_numpy(x), torch.from_numpy(y))
    # Straight pieces between thresholds count ties half, as the statistic does.
    under = np.trapezoid(curve.true_positive, curve.false_positive)
    assert under == pytest.approx(found.value, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(FEW, FEW)
def test_a_growing_function_of_the_score_changes_nothing_and_the_other_sign_turns_it_over(x, y):
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    value = auc(x, y).value
    assert auc(x.exp(), y.exp()).value == pytest.approx(value)
    assert auc(-x, -y).value == pytest.approx(1 - value)


def test_two_normal_groups_have_the_area_of_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, generator=generator) + torch.tensor([[1.0], [0.0]])
    found = auc(x, y)
    assert abs(found.value - stats.norm.cdf(1 / math.sqrt(2))) < 3 * found.stderr
    at = roc(x, y).at(0.1)
    assert at == pytest.approx(stats.norm.cdf(1 - stats.norm.ppf(0.9)), abs=0.03)


def test_the_curve_begins_at_nothing_and_never_goes_over_what_is_allowed():
    curve = roc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
    assert curve.threshold.tolist() == [math.inf, 3, 2, 1, 0]
    assert curve.false_positive.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.true_positive.tolist() == [0, 0.5, 0.5, 1, 1]
    assert (curve.at(0), curve.at(0.49), curve.at(0.5)) == (0.5, 0.5, 1)


def test_one_member_has_no_spread_and_none_is_an_error():
    assert math.isnan(auc(torch.ones(1), torch.zeros(3)).stderr)
    with pytest.raises(ArgumentError, match="^negatives: found shape"):
        auc(torch.ones(2), torch.ones(0))
    with pytest.raises(ArgumentError, match="^positives: found shape"):
        roc(torch.ones(2, 2), torch.ones(2))
