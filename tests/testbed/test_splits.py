"""Splits: partitions whose skew is that of the Dirichlet distribution, fixed by their key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sokmerge.errors import ArgumentError
from sokmerge.testbed.splits import dirichlet_split, holdings

TARGETS = torch.arange(5).repeat(40)
alphas = st.floats(1e-3, 1e6) | st.just(math.inf)


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    clients=st.integers(1, 5),
    alpha=alphas,
    key=st.text(max_size=3),
)
@settings(max_examples=20)
def test_each_row_goes_to_one_client(classes, clients, alpha, key):
    parts = dirichlet_split(torch.tensor(classes), clients, alpha=alpha, key=key, smallest=0)
    assert len(parts) == clients and all(part.dtype == torch.int64 for part in parts)
    assert torch.cat(parts).sort().values.tolist() == [*range(len(classes))]
    assert all((part.diff() > 0).all() for part in parts)


@given(clients=st.integers(1, 7), key=st.text(max_size=3))
@settings(max_examples=15)
def test_without_skew_the_shares_of_each_class_are_equal(clients, key):
    held = holdings(TARGETS, dirichlet_split(TARGETS, clients, alpha=math.inf, key=key))
    assert (held.amax(0) - held.amin(0) <= 1).all()
    near = holdings(TARGETS, dirichlet_split(TARGETS, clients, alpha=1e9, key=key))
    assert (near - held).abs().max() <= 1


@given(clients=st.integers(1, 7), key=st.text(max_size=3))
@settings(max_examples=15)
def test_with_the_utmost_skew_each_class_has_one_client(clients, key):
    parts = dirichlet_split(TARGETS, clients, alpha=1e-4, key=key, smallest=0)
    assert (holdings(TARGETS, parts).count_nonzero(0) == 1).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_moments_of_the_distribution(alpha):
    clients, count = 4, 800
    targets = torch.arange(count).repeat_interleave(50)
    parts = dirichlet_split(targets, clients, alpha=alpha, key="moments")
    shares = holdings(targets, parts).double().numpy() / 50
    variance = (clients - 1) / clients**2 / (clients * alpha + 1)
    # Rounding to whole images adds a little: at both ends of a share a fiftieth, uniformly.
    spread = np.sqrt(2 * variance / count) + 1 / 50**2
    assert abs(shares.mean() - 1 / clients) < 1e-9
    assert shares.var() == pytest.approx(variance, abs=4 * spread)


def test_the_key_and_nothing_else_decides():
    before = torch.get_rng_state()
    first, same, other = (dirichlet_split(TARGETS, 3, alpha=1.0, key=k) for k in "aab")
    assert all(map(torch.equal, first, same)) and not all(map(torch.equal, first, other))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_client_is_smaller_than_asked():
    for key in "abcdef":
        parts = dirichlet_split(TARGETS, 3, alpha=0.1, key=key, smallest=30)
        assert min(map(len, parts)) >= 30
    with pytest.raises(ArgumentError, match="1000 splits had a client of fewer than 1"):
        dirichlet_split(TARGETS, 7, alpha=1e-6, key="a")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("targets", {"targets": torch.zeros(3)}),
        ("targets", {"targets": torch.zeros(0, dtype=torch.int64)}),
        ("clients", {"clients": 0}),
        ("alpha", {"alpha": 0.0}),
        ("alpha", {"alpha": math.nan}),
        ("smallest", {"smallest": 101}),
    ],
)
def test_what_cannot_be_split_is_refused(name, how):
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        dirichlet_split(**{"targets": TARGETS, "clients": 2, "alpha": 1.0, "key": "a", **how})
