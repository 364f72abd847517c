"""The straight-through estimator against weight matching, and against all permutations."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import straight_through_matching, weight_matching
from sokmerge.symmetry import chain

seeds = st.integers(0, 2**31)


def _problem(seed=0, widths=(3, 4, 3, 2)):
    """Two random networks and the loss of fitting what the first computes."""
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*itertools.chain(*zip(layers, [nn.ReLU()] * len(layers), strict=True)))
    net = net[:-1].eval()
    group = chain(net, [str(2 * i) for i in range(len(layers))])
    a, b = (params.normal_like(params.of(net), seed + k) for k in (0, 1))
    x = torch.randn(16, widths[0], generator=torch.Generator().manual_seed(seed))
    y = functional_call(net, a, (x,))

    def loss(point):
        return (functional_call(net, point, (x,)) - y).square().mean()

    return a, b, group, loss


def _half_way(a, b, group, loss, element):
    return float(loss(params.lerp(a, group.act(element, b), 0.5)))


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_recovered_exactly(seed):
    a, _, group, loss = _problem(seed, (30, 12, 9, 3))
    planted = group.sample(seed)
    found = straight_through_matching(a, group.act(planted, a), group, loss=loss, steps=3)
    expected = group.invert(planted)
    assert all(torch.equal(found.permutation[k], expected[k]) for k in expected)
    assert found.similarity == pytest.approx(0, abs=1e-10) and found.passes == 3


@given(seed=seeds)
@settings(max_examples=8)
def test_it_lies_between_weight_matching_and_the_best_there_is(seed):
    a, b, group, loss = _problem(seed)
    found = straight_through_matching(a, b, group, loss=loss, steps=15, lr=0.05)
    orders = [itertools.permutations(range(block.size)) for block in group.blocks]
    best = min(
        _half_way(a, b, group, loss, dict(zip(group.identity(), map(torch.tensor, o), strict=True)))
        for o in itertools.product(*orders)
    )
    start = weight_matching(a, b, group).permutation
    reached = _half_way(a, b, group, loss, found.permutation)
    assert best - 1e-6 <= reached <= _half_way(a, b, group, loss, start) + 1e-6
    assert found.similarity == pytest.approx(-reached, rel=1e-4, abs=1e-6)


def test_the_gradient_leads_below_weight_matching():
    """On most random problems: without a gradient it would never leave the start."""
    gains = []
    for seed in range(12):
        a, b, group, loss = _problem(10 * seed, (6, 8, 8, 2))
        one = straight_through_matching(a, b, group, loss=loss, steps=1)
        many = straight_through_matching(a, b, group, loss=loss, steps=15, lr=0.05)
        gains.append(many.similarity - one.similarity)
    assert sum(gain > 1e-3 for gain in gains) >= 8 and min(gains) >= 0


def test_nothing_that_was_given_is_changed():
    a, b, group, loss = _problem()
    before = [{k: t.clone() for k, t in point.items()} for point in (a, b)]
    straight_through_matching(a, b, group, loss=loss, steps=3)
    for point, copy in zip((a, b), before, strict=True):
        assert all(torch.equal(point[k], copy[k]) for k in copy)
        assert not any(t.requires_grad for t in point.values())


def test_no_step_is_refused():
    a, b, group, loss = _problem()
    with pytest.raises(ArgumentError, match="steps: found 0"):
        straight_through_matching(a, b, group, loss=loss, steps=0)
