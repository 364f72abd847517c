"""Many networks at once: every cycle closes, no network is the first, the climb is exact."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import cycle_consistent_matching, weight_matching
from sokmerge.merge.alignment import cycle_consistent as module
from sokmerge.merge.alignment.soft import matrices
from sokmerge.symmetry import chain

seeds = st.integers(0, 2**31)


def _nets(*widths, seed=0, count=3):
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*layers)
    group = chain(net, [*map(str, range(len(layers)))])
    return [params.normal_like(params.of(net), seed + k) for k in range(count)], group


def _similar(theta, group, noise, count=3):
    """Noisy copies of one network, each with its units in another order."""
    copies = []
    for k in range(count):
        shaken = params.combine([1, noise], [theta, params.normal_like(theta, 100 + k)])
        copies.append(group.act(group.sample(k), shaken))
    return copies


def _same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@given(seed=seeds)
@settings(max_examples=6)
def test_every_cycle_closes_exactly(seed):
    models, group = _nets(4, 6, 5, 2, seed=seed, count=4)
    found = cycle_consistent_matching(models, group, max_passes=10)
    for i, j, k in itertools.permutations(range(4), 3):
        there = group.compose(found.between(j, k), found.between(k, i))
        assert _same(group.compose(found.between(i, j), there), group.identity())
    placed = [group.act(p, m) for p, m in zip(found.permutations, models, strict=True)]
    back = group.act(group.invert(found.permutations[0]), placed[1])
    assert _same(group.act(found.between(0, 1), models[1]), back)


def test_maps_found_in_pairs_need_not_close():
    """Without this the property above would say nothing."""
    models, group = _nets(4, 12, 10, 2, seed=0)

    def pair(i, j):
        return weight_matching(models[i], models[j], group).permutation

    trip = group.compose(pair(0, 1), group.compose(pair(1, 2), pair(2, 0)))
    assert not _same(trip, group.identity())


@pytest.mark.parametrize("seed", range(2))
def test_planted_permutations_are_recovered_up_to_the_universe(seed):
    (theta,), group = _nets(30, 8, 7, 3, seed=seed, count=1)
    models = _similar(theta, group, noise=0.05)
    found = cycle_consistent_matching(models, group)
    for i, j in itertools.combinations(range(3), 2):
        planted = group.compose(group.sample(i), group.invert(group.sample(j)))
        assert _same(found.between(i, j), planted)


@given(seed=seeds)
@settings(max_examples=5)
def test_no_network_comes_first(seed):
    models, group = _nets(4, 6, 5, 2, seed=seed)
    found = cycle_consistent_matching(models, group, max_passes=15)
    for order in ((2, 0, 1), (1, 0, 2)):
        other = cycle_consistent_matching([models[i] for i in order], group, max_passes=15)
        assert other.similarity == pytest.approx(found.similarity, rel=1e-9)
        # The universe may be numbered in another way; what leads from one to another may not.
        for k in (0, 1):
            assert _same(other.between(k, k + 1), found.between(order[k], order[k + 1]))


def test_re_indexing_all_networks_re_indexes_the_universe():
    models, group = _nets(4, 6, 5, 2, seed=3)
    element = group.sample(5)
    found = cycle_consistent_matching(models, group)
    moved = cycle_consistent_matching([group.act(element, m) for m in models], group)
    assert moved.similarity == pytest.approx(found.similarity, rel=1e-9)
    for p, q, model in zip(found.permutations, moved.permutations, models, strict=True):
        placed = group.act(element, group.act(p, model))
        assert _same(group.act(q, group.act(element, model)), placed)


@given(seed=seeds)
@settings(max_examples=5)
def test_it_reaches_what_it_says_and_no_more_than_the_best(seed):
    models, group = _nets(3, 3, 2, seed=seed)
    found = cycle_consistent_matching(models, group)

    def total(permutations):
        placed = [group.act(p, m) for p, m in zip(permutations, models, strict=True)]
        return sum(float(params.inner(x, y)) for x, y in itertools.combinations(placed, 2))

    assert found.similarity == pytest.approx(total(found.permutations), rel=1e-9)
    orders = [{"0": torch.tensor(o)} for o in itertools.permutations(range(3))]
    best = max(total((orders[0], p, q)) for p in orders for q in orders)
    assert found.similarity <= best + 1e-9
    assert found.similarity >= total([group.identity()] * 3) - 1e-9


@given(seed=seeds)
@settings(max_examples=5)
def test_the_best_part_of_a_step_is_found_exactly(seed):
    """Against a fine grid."""
    models, group = _nets(3, 5, 4, 2, seed=seed)
    wide = [{name: tensor.double() for name, tensor in m.items()} for m in models]
    like = wide[0]["0.weight"]
    here = [matrices(group.sample(seed % 97 + k), like) for k in range(3)]
    there = [matrices(group.sample(seed % 89 + 7 + k), like) for k in range(3)]
    share, gain = module._best_share(group, here, there, wide)
    grid = np.linspace(0, 1, 201)
    values = np.array([
        float(module._agreement(
            group, [module._between(p, q, t) for p, q in zip(here, there, strict=True)], wide))
        for t in grid
    ])  # fmt: skip
    reached = float(
        module._agreement(
            group, [module._between(p, q, share) for p, q in zip(here, there, strict=True)], wide
        )
    )
    assert reached >= values.max() - 1e-9 * abs(values).max()
    assert gain >= -1e-12


def test_the_start_is_where_it_begins():
    (theta,), group = _nets(8, 7, 6, 2, count=1)
    elements = [group.sample(k) for k in range(3)]
    models = [group.act(element, theta) for element in elements]
    start = [group.invert(element) for element in elements]
    found = cycle_consistent_matching(models, group, start=start)
    assert all(_same(p, q) for p, q in zip(found.permutations, start, strict=True))
    assert found.passes <= 2


def test_bad_arguments_are_named():
    models, group = _nets(3, 3, 2)
    with pytest.raises(ArgumentError, match="models: found 1 models; expected at least 2"):
        cycle_consistent_matching(models[:1], group)
    with pytest.raises(ArgumentError, match="start: found 1 permutations"):
        cycle_consistent_matching(models, group, start=[group.identity()])
    with pytest.raises(ArgumentError, match="another architecture"):
        other, _ = _nets(3, 4, 2)
        cycle_consistent_matching(other, group)
