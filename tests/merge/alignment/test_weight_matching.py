"""Weight matching against all permutations there are, and against planted ones."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import weight_matching
from sokmerge.merge.alignment.matching import assign
from sokmerge.network import Network
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain
from sokmerge.testbed import models

seeds = st.integers(0, 2**31)


def _mlp(*widths, seed=0):
    """The parameters and the group of an MLP with these widths, inputs and outputs among them."""
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
    net = nn.Sequential(*layers)
    group = chain(net, [str(i) for i in range(len(layers))])
    return params.normal_like(params.of(net), seed), group


def _flattening_cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3),
    ).eval()  # fmt: skip
    return module, chain(module, ["0", "2", "6", "8"]), (1, 10, 10)


def _batchnorm_cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(180, 3),
    ).eval()  # fmt: skip
    return module, chain(module, ["0", "1", "3", "6"]), (1, 10, 10)


def _testbed(arch):
    module = models.build(arch)
    return module, chain(module, models.chain(arch)), (1, 28, 28)


NETWORKS = {
    "mlp": lambda: _testbed(models.MLP(width=32, depth=3)),
    "plain cnn": lambda: _testbed(models.PlainCNN(channels=(4, 8, 6))),
    "flattening cnn": _flattening_cnn,
    "batchnorm cnn": _batchnorm_cnn,
}


def _elements(group):
    """Every element of a small group."""
    orders = [itertools.permutations(range(block.size)) for block in group.blocks]
    for chosen in itertools.product(*orders):
        yield {b.name: torch.tensor(o) for b, o in zip(group.blocks, chosen, strict=True)}


def _reached(a, b, group, element):
    return float(params.inner(a, group.act(element, b)))


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- against brute force ----------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=20)
def test_with_one_hidden_layer_it_finds_the_best_there_is(seed):
    (a, group), (b, _) = _mlp(3, 5, 2, seed=seed), _mlp(3, 5, 2, seed=seed + 1)
    found = weight_matching(a, b, group)
    best = max(_reached(a, b, group, element) for element in _elements(group))
    assert found.similarity == pytest.approx(best, rel=1e-12)
    assert found.similarity == pytest.approx(_reached(a, b, group, found.permutation), rel=1e-12)


@given(seed=seeds, order=st.integers(0, 9))
@settings(max_examples=20)
def test_with_more_it_is_a_fixpoint_never_above_the_best(seed, order):
    (a, group), (b, _) = _mlp(3, 4, 3, 2, seed=seed), _mlp(3, 4, 3, 2, seed=seed + 1)
    found = weight_matching(a, b, group, seed=order)
    best = max(_reached(a, b, group, element) for element in _elements(group))
    assert found.similarity <= best + 1e-9
    assert found.similarity >= _reached(a, b, group, group.identity()) - 1e-9
    for block in group.blocks:  # no layer, moved alone, does better
        for other in itertools.permutations(range(block.size)):
            moved = {**found.permutation, block.name: torch.tensor(other)}
            assert _reached(a, b, group, moved) <= found.similarity + 1e-9


def test_the_order_of_the_layers_is_seeded_and_matters():
    found = set()
    for seed in range(30):
        (a, group), (b, _) = _mlp(2, 6, 6, 2, seed=seed), _mlp(2, 6, 6, 2, seed=seed + 100)
        reached = [weight_matching(a, b, group, seed=order).similarity for order in (0, 0, 1, 2, 3)]
        assert reached[0] == reached[1]
        found.add(len(set(reached)))
    assert max(found) > 1


def test_the_similarity_is_what_the_distance_falls_by():
    """|A - pi B|^2 = |A|^2 + |B|^2 - 2 <A, pi B>."""
    (a, group), (b, _) = _mlp(4, 9, 8, 3, seed=0), _mlp(4, 9, 8, 3, seed=1)
    found = weight_matching(a, b, group)
    distance = float(params.distance(a, group.act(found.permutation, b)))
    squares = float(params.inner(a, a) + params.inner(b, b))
    assert distance**2 == pytest.approx(squares - 2 * found.similarity, rel=1e-12)


@given(seed=seeds, size=st.integers(1, 6))
@settings(max_examples=30)
def test_assignment_is_the_best_of_all_permutations(seed, size):
    similarity = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(size)
    best = max(
        float(similarity[rows, torch.tensor(order)].sum())
        for order in itertools.permutations(range(size))
    )
    assert float(similarity[rows, assign(similarity)].sum()) == pytest.approx(best, rel=1e-6)


# --- planted permutations ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_recovered_exactly_and_the_barrier_is_gone(name, seed, device):
    module, group, shape = NETWORKS[name]()
    a = params.to(params.normal_like(params.of(module), seed=seed + 10), device=device)
    a = params.scale(a, 0.3)
    planted = group.sample(seed)
    b = group.act(planted, a)
    found = weight_matching(a, b, group)
    assert _same(found.permutation, group.invert(planted))
    assert _same(group.act(found.permutation, b), a)

    inputs = torch.randn(24, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    network = Network(module.to(device))
    labels = network(network.state(a, inputs), inputs).argmax(1)  # a is right everywhere
    risk = EmpiricalRisk(module, inputs, labels)
    aligned = barrier(risk, a, group.act(found.permutation, b), points=5)
    assert aligned.loss == 0 and aligned.error == 0
    if name == "mlp":  # the small ones are too symmetric to make a barrier each time
        assert barrier(risk, a, b, points=5).loss > 0.1


def test_a_planted_permutation_is_recovered_under_noise():
    module, group, _ = NETWORKS["mlp"]()
    a = params.of(module)
    planted = group.sample(0)
    noisy = params.add(a, params.scale(params.normal_like(a, 0), 1e-3))
    found = weight_matching(a, group.act(planted, noisy), group)
    assert _same(found.permutation, group.invert(planted))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_works_in_half_precision(dtype):
    module, group, _ = NETWORKS["mlp"]()
    a = params.to(params.of(module), dtype=dtype)
    found = weight_matching(a, group.act(group.sample(0), a), group)
    assert _same(group.act(found.permutation, group.act(group.sample(0), a)), a)


def test_passes_are_counted_and_bounded():
    (a, group), (b, _) = _mlp(4, 8, 8, 8, 3, seed=0), _mlp(4, 8, 8, 8, 3, seed=1)
    free = weight_matching(a, b, group)
    assert free.passes > 1
    assert weight_matching(a, b, group, max_passes=1).passes == 1
    none = weight_matching(a, b, group, max_passes=0)
    assert _same(none.permutation, group.identity()) and none.passes == 0


def test_a_network_without_hidden_units_is_matched_by_nothing():
    (a, group), (b, _) = _mlp(3, 2, seed=0), _mlp(3, 2, seed=1)
    found = weight_matching(a, b, group)
    assert found.permutation == {} and found.similarity == pytest.approx(float(params.inner(a, b)))


def test_statistics_have_no_say():
    """Running means move with their units; they are not weights to be matched."""
    module, group, _ = _batchnorm_cnn()
    state = {k: t.clone() for k, t in module.state_dict().items()}
    planted = group.sample(1)
    b = group.act(planted, state)
    b["1.running_mean"] = torch.full((4,), 1e6)
    assert _same(weight_matching(state, b, group).permutation, group.invert(planted))


def test_the_operands_are_not_changed():
    (a, group), (b, _) = _mlp(4, 8, 3, seed=0), _mlp(4, 8, 3, seed=1)
    before = [{k: t.clone() for k, t in p.items()} for p in (a, b)]
    weight_matching(a, b, group)
    assert _same(a, before[0]) and _same(b, before[1])


# --- refusals ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    (a, group), (b, _) = _mlp(4, 8, 3, seed=0), _mlp(4, 8, 3, seed=1)
    other, other_group = _mlp(4, 6, 3)
    with pytest.raises(ArgumentError, match=r"b\['0.weight'\]: found shape \(6, 4\)"):
        weight_matching(a, other, group)
    with pytest.raises(ArgumentError, match=r"a\['0.weight'\]: found shape \(8, 4\); expected 6"):
        weight_matching(a, b, other_group)
    foreign = PermutationGroup((Block("h", 8, (Axis("hidden.weight", 0),)),))
    with pytest.raises(ArgumentError, match="a: found no parameter 'hidden.weight'"):
        weight_matching(a, b, foreign)
    broken = {**b, "0.bias": torch.full((8,), math.nan)}
    with pytest.raises(ArgumentError, match=r"b\['0.bias'\]: found 8 of 8 entries NaN"):
        weight_matching(a, broken, group)
    with pytest.raises(ArgumentError, match=r"b\['0.weight'\]: found a tensor on meta"):
        weight_matching(a, params.to(b, device="meta"), group)
    with pytest.raises(ArgumentError, match=r"b\['0.weight'\]: found dtype torch.float64"):
        weight_matching(a, params.to(b, dtype=torch.float64), group)
