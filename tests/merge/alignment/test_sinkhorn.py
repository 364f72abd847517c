"""Soft permutations: what the normalisation is, and what descending through it finds."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import sinkhorn_matching
from sokmerge.merge.alignment.matching import assign
from sokmerge.merge.alignment.sinkhorn import sinkhorn
from sokmerge.merge.alignment.soft import act_softly, matrices
from sokmerge.symmetry import chain

seeds = st.integers(0, 2**31)


def _net(*widths, seed=0):
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*layers).eval()
    return (
        net,
        params.normal_like(params.of(net), seed),
        chain(net, [*map(str, range(len(layers)))]),
    )


def _logits(seed, n=5, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, n, generator=generator, dtype=torch.float64)


@given(seed=seeds)
@settings(max_examples=10)
def test_rows_and_columns_sum_to_one_and_only_they_were_scaled(seed):
    x = _logits(seed)
    soft = sinkhorn(x, iterations=500)
    torch.testing.assert_close(soft.sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)
    left = soft.log() - x  # a number for each row and one for each column, nothing else
    inner = left - left[:1] - left[:, :1] + left[0, 0]
    assert inner.abs().max() < 1e-8


@given(seed=seeds, iterations=st.integers(1, 20))
@settings(max_examples=10)
def test_rounding_the_logits_is_rounding_the_soft_permutation(seed, iterations):
    x = _logits(seed)
    assert torch.equal(assign(x), assign(sinkhorn(x, iterations).log()))


def test_its_derivative_is_that_of_what_is_computed():
    x = _logits(0, n=4, scale=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: sinkhorn(logits, 7), (x,))


def test_cold_logits_are_nearly_a_permutation():
    x = _logits(1)
    expected = matrices({"x": assign(x)}, x)["x"]
    torch.testing.assert_close(sinkhorn(200 * x, 3000), expected, rtol=0, atol=1e-3)


@given(seed=seeds)
@settings(max_examples=10)
def test_a_hard_permutation_acts_softly_as_it_acts(seed):
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    theta, group = params.of(module), chain(module, ["0", "3", "5"])
    element = group.sample(seed % 1000)
    hard, soft = (
        group.act(element, theta),
        act_softly(group, matrices(element, theta["0.bias"]), theta),
    )
    assert all(torch.equal(hard[name], soft[name]) for name in theta)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_recovered_exactly(seed):
    _, a, group = _net(6, 16, 12, 3, seed=seed)
    planted = group.sample(seed)
    found = sinkhorn_matching(a, group.act(planted, a), group, seed=seed)
    expected = group.invert(planted)
    assert all(torch.equal(found.permutation[k], expected[k]) for k in expected)
    assert found.similarity == 0


@given(seed=seeds)
@settings(max_examples=5)
def test_with_one_hidden_layer_the_distance_is_nearly_the_smallest(seed):
    """The objective is then convex in the soft permutation, and its minimum need not be hard."""
    (_, a, group), (_, b, _) = _net(3, 4, 2, seed=seed), _net(3, 4, 2, seed=seed + 1)
    found = sinkhorn_matching(a, b, group, steps=60)
    scale = float(params.distance(a, b)) ** 2
    every = [
        -(float(params.distance(a, group.act({"0": torch.tensor(order)}, b))) ** 2) / scale
        for order in itertools.permutations(range(4))
    ]
    assert found.similarity == pytest.approx(
        every[list(itertools.permutations(range(4))).index(tuple(found.permutation["0"].tolist()))],
        rel=1e-6,
    )
    assert found.similarity >= np.quantile(every, 0.7)


def test_a_loss_is_descended_half_way():
    net, a, group = _net(4, 6, 5, 2)
    b, x = group.act(group.sample(3), a), torch.randn(20, 4)
    y = functional_call(net, a, (x,))

    def loss(point):
        return (functional_call(net, point, (x,)) - y).square().mean()

    seen: list[torch.Tensor] = []
    found = sinkhorn_matching(a, b, group, loss=lambda p: seen.append(loss(p)) or seen[-1],
                              steps=60, seed=1)  # fmt: skip
    seen = [float(value.detach()) for value in seen]
    assert len(seen) == 61 and np.mean(seen[50:60]) < 0.5 * seen[0]
    reached = float(loss(params.lerp(a, group.act(found.permutation, b), 0.5)))
    assert found.similarity == pytest.approx(-reached, rel=1e-5)
    assert seen[-1] == pytest.approx(reached, rel=1e-5)  # the last call is at the hard permutation


def test_the_seed_decides():
    (_, a, group), (_, b, _) = _net(3, 8, 6, 2, seed=0), _net(3, 8, 6, 2, seed=9)
    results = [sinkhorn_matching(a, b, group, steps=5, seed=s).permutation["0"] for s in (0, 0, 5)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("bad", [{"steps": 0}, {"iterations": 0}, {"temperature": 0.0}])
def test_a_bad_argument_is_named(bad):
    _, a, group = _net(2, 3, 1)
    with pytest.raises(ArgumentError, match=f"{next(iter(bad))}: found 0"):
        sinkhorn_matching(a, a, group, **bad)
