"""PFNM: planted global units are found, and its scores are the posterior that they claim to be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import pfnm
from sokmerge.merge.alignment.pfnm import _scores, match_units
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain


def _mlp(*widths):
    widths = widths or (6, 9, 7, 3)
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    module = nn.Sequential(*layers[:-1]).double().eval()
    return module, chain(module, [str(2 * k) for k in range(len(widths) - 1)])


def _numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _trust(features, noise):
    return [torch.full((f.shape[1],), 1 / noise).double() for f in features]


@pytest.mark.parametrize("seed", range(3))
def test_planted_global_units_are_found(seed):
    """Three networks hold different ten of sixteen units, shuffled and with little noise."""
    pool = 3 * _numbers(16, 12, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    held = [torch.randperm(16, generator=generator)[:10] for _ in range(3)]
    features = [pool[h] + 0.05 * _numbers(10, 12, seed=9 + k) for k, h in enumerate(held)]
    labels, count = match_units(features, _trust(features, 0.1), 1 / 9, mass=1, passes=3, seed=0)
    assert count == len(set(torch.cat(held).tolist()))
    named = {}
    for own, true in zip(labels, held, strict=True):
        assert len(set(own)) == len(own), "a network has a global unit once"
        for label, unit in zip(own, true.tolist(), strict=True):
            assert named.setdefault(label, unit) == unit
    assert len(set(named.values())) == count


def test_the_scores_are_the_posterior():
    """Their differences are those of twice the logarithm of the joint density, at its best theta.

    Two networks of two units; all ways to match the second network are compared.
    """
    a, b, noise, prior, mass = _numbers(2, 5), _numbers(2, 5, seed=1), 0.7, 2.0, 1.3
    scores = _scores([a, b], _trust([a, b], noise), 1 / prior, [[0, 1], []], 2, 1, mass)
    assert scores.shape == (2, 4)

    def joint(choice):
        total = 0.0
        copies = {0: [a[0]], 1: [a[1]]}
        new = 0
        for unit, column in enumerate(choice):
            copies.setdefault(column, []).append(b[unit])
            if column > 1:  # new units are k-th of a Poisson's: gamma / J each, over k!
                new += 1
                total += 2 * math.log(mass / 2 / new)
        for vectors in copies.values():
            stacked = torch.stack(vectors)
            theta = stacked.sum(0) / noise / (1 / prior + len(vectors) / noise)
            total -= float((stacked - theta).square().sum() / noise + theta.square().sum() / prior)
        return total

    ways = [c for c in itertools.product(range(4), repeat=2) if len(set(c)) == 2]
    ways = [c for c in ways if 3 not in c or 2 in c]  # the second new one only after the first
    found = torch.tensor([float(scores[0, i] + scores[1, j]) for i, j in ways])
    expected = torch.tensor([joint(c) for c in ways])
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_a_shuffled_copy_is_recognised_in_all_layers(noise):
    module, group = _mlp()
    a = params.normal_like(params.of(module), 1)
    copies = [group.act(group.sample(k), a) for k in (2, 3)]
    found = pfnm([a, *copies], group, noise=noise)
    for name in a:
        torch.testing.assert_close(found[name], a[name], rtol=noise, atol=noise)


def test_what_is_held_by_one_alone_is_kept_and_shrunk():
    module, group = _mlp(4, 5, 3)
    a, b = (params.normal_like(params.of(module), k) for k in (1, 2))
    b = {name: 20 * t for name, t in b.items()}
    found = pfnm([a, b], group, noise=0.01, prior=1.0)
    assert found["0.weight"].shape == (10, 4), "no unit is like another"
    shrunk = torch.cat([a["0.weight"], b["0.weight"]]) / 1.01
    torch.testing.assert_close(
        found["0.weight"].sort(0).values, shrunk.sort(0).values, rtol=1e-9, atol=0
    )
    bias = (a["2.bias"] + b["2.bias"]) / 2.01
    torch.testing.assert_close(found["2.bias"], bias, rtol=1e-9, atol=0)


def test_widths_may_differ():
    module, group = _mlp(4, 6, 3)
    narrow, _ = _mlp(4, 2, 3)
    a = params.normal_like(params.of(module), 1)
    b = {n: t[[3, 0]] if n[0] == "0" else t for n, t in a.items()}
    b["2.weight"] = a["2.weight"][:, [3, 0]]
    assert {n: t.shape for n, t in b.items()} == {n: t.shape for n, t in params.of(narrow).items()}
    for models in ([a, b], [a, b, b]):
        found = pfnm(models, group, noise=1e-6)
        for name in a:
            torch.testing.assert_close(found[name], a[name], rtol=1e-5, atol=1e-5)


def test_a_class_is_believed_where_it_was_seen():
    module, group = _mlp(4, 5, 3)
    a = params.normal_like(params.of(module), 1)
    b = {**a, "2.weight": a["2.weight"].clone(), "2.bias": a["2.bias"].clone()}
    b["2.weight"][2] += 1
    b["2.bias"][2] += 1
    counts = [torch.tensor([5.0, 5.0, 9.0]), torch.tensor([5.0, 5.0, 0.0])]
    found = pfnm([a, b], group, counts=counts, noise=1e-6)
    for name in a:
        torch.testing.assert_close(found[name], a[name], rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named():
    module, group = _mlp(4, 5, 3)
    a = params.normal_like(params.of(module), 1)
    with pytest.raises(ArgumentError, match="models: found 1 models"):
        pfnm([a], group)
    with pytest.raises(ArgumentError, match="noise: found 0"):
        pfnm([a, a], group, noise=0)
    with pytest.raises(ArgumentError, match="counts: found shapes"):
        pfnm([a, a], group, counts=[torch.ones(3)])
    other = {**a, "2.bias": torch.ones(4).double()}
    with pytest.raises(ArgumentError, match=r"models\[1\]\['2.bias'\]"):
        pfnm([a, other], group)
    odd = PermutationGroup((Block("0", 5, (Axis("0.weight", 0), Axis("0.bias", 0))),))
    with pytest.raises(ArgumentError, match="one linear layer that makes"):
        pfnm([a, a], odd)
