"""ZipIt!: which features are merged, what that does to a network, and how far it is zipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import activation_matching, average, partial_zipit, zipit
from sokmerge.merge.alignment.zipit import zip_units
from sokmerge.symmetry import Axis, Block, PermutationGroup, Site, chain


def _mlp():
    module = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(),
                           nn.Linear(7, 3)).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "4"])


def _cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 3),
    ).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "5"])


def _point(module, seed):
    noise = params.normal_like(params.of(module), seed)
    return {n: t.abs() if t.dim() == 1 else t / t[0].numel() ** 0.5 for n, t in noise.items()}


def _inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAKES = pytest.mark.parametrize(("make", "shape"), [(_mlp, (80, 6)), (_cnn, (20, 1, 6, 6))])


@MAKES
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.125), (0, 0), (1, 1)])
def test_with_equal_networks_nothing_happens(make, shape, alpha, beta):
    module, group = make()
    a = _point(module, 1)
    merged = zipit(module, [a, a], group, _inputs(*shape), alpha=alpha, beta=beta)
    for name in a:
        torch.testing.assert_close(merged[name], a[name], rtol=1e-9, atol=1e-12)


@MAKES
def test_a_planted_permutation_is_undone(make, shape, device):
    module, group = make()
    a = params.to(_point(module, 1), device)
    copies = [group.act(group.sample(k), a) for k in (2, 3)]
    # Of three, the third can only join what is merged already, which alpha would discourage.
    for models, alpha in (([a, copies[0]], 0.3), ([a, *copies], 1.0)):
        x = _inputs(*shape).to(device)
        merged = zipit(module.to(device), models, group, x, alpha=alpha)
        for name in a:
            torch.testing.assert_close(merged[name], a[name], rtol=1e-9, atol=1e-12)


def test_where_only_pairs_across_are_allowed_it_is_a_permutation_and_the_average():
    """And if greed and the assignment choose the same pairs, that of activation matching."""
    module, group = _mlp()
    a = _point(module, 1)
    b = {n: t + 0.02 * _point(module, 2)[n] for n, t in group.act(group.sample(3), a).items()}
    x = _inputs(200, 6)
    found = activation_matching(module, a, b, group, x, similarity="correlation")
    expected = average([a, group.act(found.permutation, b)])
    merged = zipit(module, [a, b], group, x, alpha=0, beta=0)
    for name in a:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-9, atol=1e-12)


def test_a_feature_that_a_network_has_twice_is_merged_within():
    """Two networks that each have one feature twice and share nothing: no loss at all."""
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    group = chain(module, ["0", "2"])
    twice = {
        "0.bias": torch.ones(2).double(),
        "2.weight": torch.tensor([[1.0, 2.0]]).double(),
        "2.bias": torch.zeros(1).double(),
    }
    a = {**twice, "0.weight": torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()}
    b = {**twice, "0.weight": torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double()}
    x = _inputs(100, 2)
    merged = zipit(module, [a, b], group, x, alpha=1, beta=1)
    outputs = [functional_call(module, point, (x,)) for point in (a, b, merged)]
    torch.testing.assert_close(outputs[2], (outputs[0] + outputs[1]) / 2)
    across = zipit(module, [a, b], group, x, alpha=1, beta=0)
    assert (functional_call(module, across, (x,)) - outputs[2]).abs().max() > 0.1


def _brute(correlation, count, alpha, beta):
    """The rule as it is told, on lists."""
    size = len(correlation) // count
    groups = [[k] for k in range(len(correlation))]
    score = {(i, j): correlation[i, j] for i in range(len(groups)) for j in range(i)}
    left = [int((len(correlation) - size) // count * beta + 1e-4)] * count
    ids = list(range(len(groups)))
    while len(ids) > size:
        best = None
        for j in ids:
            for i in (i for i in ids if i > j):
                same = groups[i][0] // size == groups[j][0] // size
                if same and left[groups[j][0] // size] <= 0:
                    continue
                if best is None or score[i, j] > score[best]:
                    best = i, j
        i, j = best
        if groups[i][0] // size == groups[j][0] // size:
            left[groups[j][0] // size] -= 1
        ids.remove(i)
        for k in ids:
            if k != j:
                pair = [score[max(k, m), min(k, m)] for m in (i, j)]
                score[max(k, j), min(k, j)] = alpha * min(pair)
        groups[j] = groups[j] + groups[i]
    labels = [0] * len(correlation)
    for new, first in enumerate(sorted(ids)):
        for k in groups[first]:
            labels[k] = new
    return labels


@settings(max_examples=40)
@given(
    st.integers(2, 5), st.integers(2, 3), st.integers(0, 999),
    st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_the_greedy_rule_against_a_plain_one(size, count, seed, alpha, beta):
    drawn = np.random.default_rng(seed).normal(size=(size * count + 2, size * count))
    correlation = np.corrcoef(drawn, rowvar=False)
    labels = zip_units(correlation, count, alpha, beta)
    assert sorted(set(labels)) == list(range(size))
    assert labels == _brute(correlation, count, alpha, beta)


def test_partly_zipped_there_is_one_trunk_and_many_heads():
    module, group = _mlp()
    a, b, x = _point(module, 1), _point(module, 2), _inputs(80, 6)
    whole = zipit(module, [a, b], group, x)
    for layers, names in ((1, ("0.",)), (2, ("0.", "2."))):
        for_a, for_b = partial_zipit(module, [a, b], group, x, layers=layers)
        for name in a:
            if name.startswith(names):
                assert for_a[name] is for_b[name]
                torch.testing.assert_close(for_a[name], whole[name])
            else:
                assert (for_a[name] - for_b[name]).abs().max() > 1e-3
        # The head reads, for each of its own units, the one that it became: all of them count.
        torch.testing.assert_close(
            for_a[f"{2 * layers}.weight"].sum(1), a[f"{2 * layers}.weight"].sum(1)
        )
        assert for_a["4.bias"].equal(a["4.bias"])
    untouched = partial_zipit(module, [a, b], group, x, layers=0)
    for before, after in zip((a, b), untouched, strict=True):
        assert all(torch.equal(before[n], after[n]) for n in before)


def test_the_mean_of_the_heads_is_the_whole():
    module, group = _mlp()
    a, b, x = _point(module, 1), _point(module, 2), _inputs(80, 6)
    heads = average(partial_zipit(module, [a, b], group, x, layers=2))
    whole = zipit(module, [a, b], group, x)
    for name in a:
        torch.testing.assert_close(heads[name], whole[name])


def test_bad_arguments_are_named():
    module, group = _mlp()
    a, x = _point(module, 0), _inputs(8, 6)
    with pytest.raises(ArgumentError, match="alpha: found 1.5"):
        zipit(module, [a, a], group, x, alpha=1.5)
    with pytest.raises(ArgumentError, match="models: found 1 models"):
        zipit(module, [a], group, x)
    with pytest.raises(ArgumentError, match="inputs: found 1; expected at least 2 examples"):
        zipit(module, [a, a], group, x[:1])
    with pytest.raises(ArgumentError, match="layers: found 3"):
        partial_zipit(module, [a, a], group, x, layers=3)
    backwards = PermutationGroup(group.blocks[::-1])
    with pytest.raises(ArgumentError, match="which make zipped units out of others"):
        partial_zipit(module, [a, a], backwards, x, layers=1)
    blind = Block("0", 9, (Axis("0.weight", 0), Axis("2.weight", 1)), Site("nowhere", 1))
    with pytest.raises(ArgumentError, match="a submodule at whose input"):
        zipit(module, [a, a], PermutationGroup((blind,)), x)
