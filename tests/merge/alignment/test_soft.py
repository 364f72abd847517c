"""Units that lie within others, and units beside others: the maps act as the permutations do."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge import params
from sokmerge.merge import annealed_matching, cycle_consistent_matching, sinkhorn_matching
from sokmerge.merge.alignment.soft import act_softly, completed, free_blocks, matrices
from sokmerge.symmetry import Axis, Block, PermutationGroup

SHAPES = {"value": (6, 5), "out": (4, 6), "joint": (8, 3)}

# Two heads of three channels; and, of a tensor of eight rows, four that move and four that stay.
GROUP = PermutationGroup(
    (
        Block("heads", 2, ()),
        Block("channels", 6, (Axis("value", 0), Axis("out", 1)), within="heads"),
        Block("beside", 4, (Axis("joint", 0, places=((1,), (3,), (4,), (6,)), length=8),)),
    )
)


def _point(seed):
    return params.normal_like({name: torch.zeros(shape) for name, shape in SHAPES.items()}, seed)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_maps_act_as_permutations_do(seed):
    point = _point(seed)
    element = GROUP.sample(seed % 1000)
    soft = act_softly(GROUP, matrices(element, point["out"]), point)
    hard = GROUP.act(element, point)
    assert all(torch.equal(soft[name], hard[name]) for name in point)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_what_lies_within_goes_along(seed):
    point = _point(seed)
    drawn = GROUP.sample(seed % 1000)
    free = {block.name: drawn[block.name] for block in free_blocks(GROUP)}
    assert set(free) == {"heads", "beside"}
    element = completed(GROUP, free)
    soft = act_softly(GROUP, matrices(free, point["out"]), point)
    hard = GROUP.act(element, point)
    assert all(torch.equal(soft[name], hard[name]) for name in point)
    if free["heads"].tolist() == [1, 0]:
        assert element["channels"].tolist() == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_searches_give_elements_of_the_group(seed):
    """``act`` refuses what is none. Only annealing looks inside the heads."""
    a, b = _point(seed), _point(seed + 50)
    GROUP.act(sinkhorn_matching(a, b, GROUP, steps=5, seed=seed).permutation, b)
    universe = cycle_consistent_matching([a, b], GROUP, max_passes=5)
    for element in universe.permutations:
        GROUP.act(element, a)
    planted = GROUP.act(GROUP.sample(seed), a)
    found = annealed_matching(
        a, planted, GROUP, score=lambda p: -float(params.distance(p, a)), steps=800, hot=2
    )
    back = GROUP.act(found.permutation, planted)
    assert all(torch.equal(back[name], a[name]) for name in a)
