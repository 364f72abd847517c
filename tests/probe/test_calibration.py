"""Calibration against its definition, written out, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge.errors import ArgumentError
from sokmerge.probe.calibration import brier_score, expected_calibration_error


def _by_definition(probabilities, targets, bins):
    confidence, said = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for b in range(1, bins + 1):
        inside = (confidence > (b - 1) / bins) & (confidence <= b / bins)
        if inside.any():
            accuracy = (said[inside] == targets[inside]).mean()
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_it_is_its_definition(seed, n, classes, bins):
    rng = np.random.default_rng(seed)
    p, y = rng.dirichlet(np.ones(classes), size=n), rng.integers(classes, size=n)
    found = expected_calibration_error(torch.from_numpy(p), torch.from_numpy(y), bins=bins)
    assert found == pytest.approx(_by_definition(p, y, bins), abs=1e-12)
    brier = brier_score(torch.from_numpy(p), torch.from_numpy(y))
    assert brier == pytest.approx(((p - np.eye(classes)[y]) ** 2).sum(axis=1).mean(), abs=1e-12)


def test_a_network_that_is_as_sure_as_it_is_right_has_none():
    p = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    assert expected_calibration_error(p, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-7)


def test_half_precision_is_summed_in_more():
    p = torch.tensor([[0.75, 0.25]], dtype=torch.bfloat16).repeat(3000, 1)
    y = torch.zeros(3000, dtype=torch.long)
    assert expected_calibration_error(p, y) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.ones(2, 3), "sums to one only up to 2"),
        (torch.ones(2, 1, 1), "found shape"),
        (torch.ones(3, 1), r"with targets \(2,\)"),
    ],
)
def test_what_are_no_probabilities_is_named(p, message):
    with pytest.raises(ArgumentError, match=f"^probabilities: .*{message}"):
        expected_calibration_error(p, torch.tensor([0, 0]))
