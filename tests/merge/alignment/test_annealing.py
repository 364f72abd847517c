"""Simulated annealing on problems so small that the best permutation is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import annealed_matching
from sokmerge.symmetry import chain


def _net(*widths, seed=0):
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*layers).eval()
    return params.normal_like(params.of(net), seed), chain(net, [*map(str, range(len(layers)))])


def _near(a):
    return lambda point: -float(params.distance(point, a))


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_of_few_units_is_recovered(seed):
    a, group = _net(3, 6, 2, seed=seed)
    planted = group.sample(seed)
    found = annealed_matching(
        a, group.act(planted, a), group, score=_near(a), steps=400, hot=1.0, cold=1e-3, seed=seed
    )
    assert torch.equal(found.permutation["0"], group.invert(planted)["0"])
    assert found.similarity == pytest.approx(0, abs=1e-6) and found.passes == 400


def test_the_score_is_taken_half_way_and_the_best_is_kept():
    (a, group), (b, _) = _net(3, 3, 2, 1), _net(3, 3, 2, 1, seed=7)
    seen = []

    def score(point):
        seen.append(float(point["0.weight"].sum(1) @ torch.tensor([1.0, 2.0, 3.0])))
        return seen[-1]

    found = annealed_matching(a, b, group, score=score, steps=60)
    assert found.similarity == max(seen)
    middle = params.lerp(a, group.act(found.permutation, b), 0.5)
    assert score(middle) == max(seen)
    best = max(
        score(params.lerp(a, group.act({"0": torch.tensor(o), "1": torch.arange(2)}, b), 0.5))
        for o in itertools.permutations(range(3))
    )
    assert found.similarity == best


def _walk(hot):
    """The scores of the candidates of 80 steps at one temperature, and the final Matching."""
    (a, group), (b, _) = _net(3, 12, 2), _net(3, 12, 2, seed=4)
    history = []

    def score(point):
        history.append(-float(params.distance(point, a)))
        return history[-1]

    return history, annealed_matching(a, b, group, score=score, steps=80, hot=hot, cold=hot)


def test_cold_it_climbs_and_hot_it_wanders():
    cold, hot = _walk(1e-9), _walk(1e9)
    # One swap changes little, so what the last candidates reach tells where the walk has gone.
    assert min(cold[0][-20:]) > cold[0][0] and cold[1].similarity == max(cold[0])
    assert min(hot[0][-20:]) < cold[1].similarity - 0.3


def test_it_begins_where_it_is_told_and_changes_nothing_that_was_given():
    a, group = _net(3, 8, 6, 2)
    planted = group.sample(2)
    start = group.invert(planted)
    kept = {name: order.clone() for name, order in start.items()}
    found = annealed_matching(
        a, group.act(planted, a), group, score=_near(a), steps=20, start=start
    )
    assert all(torch.equal(found.permutation[k], kept[k]) for k in kept)
    assert all(torch.equal(start[k], kept[k]) for k in kept)


def test_the_seed_decides():
    (a, group), (b, _) = _net(3, 9, 2), _net(3, 9, 2, seed=3)
    runs = [
        annealed_matching(a, b, group, score=_near(a), steps=20, seed=seed).permutation["0"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps: found 0"),
        ({"hot": 0.1, "cold": 0.2}, "hot, cold: found 0.1, 0.2"),
        ({"cold": 0.0}, "hot, cold"),
        ({"hot": math.inf}, "hot, cold"),
    ],
)
def test_a_bad_argument_is_named(bad, message):
    a, group = _net(2, 3, 1)
    with pytest.raises(ArgumentError, match=message):
        annealed_matching(a, a, group, score=_near(a), **bad)


def test_there_must_be_units_to_swap():
    a, group = _net(2, 1, 1)
    with pytest.raises(ArgumentError, match="group: found no block of two units"):
        annealed_matching(a, a, group, score=_near(a))
