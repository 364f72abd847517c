"""OT-Fusion: the marginals of its plans, permutations where widths are equal, other widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import average, ot_fusion, resized, transport_plans
from sokmerge.merge.alignment.ot_fusion import transport
from sokmerge.symmetry import chain


def _mlp(*widths):
    widths = widths or (6, 9, 7, 3)
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    module = nn.Sequential(*layers[:-1]).double().eval()
    return module, chain(module, [str(2 * k) for k in range(len(widths) - 1)])


def _point(module, seed):
    """No unit is silent."""
    noise = params.normal_like(params.of(module), seed)
    return {n: t.abs() if t.dim() == 1 else t / t[0].numel() ** 0.5 for n, t in noise.items()}


def _numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=8)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.0, 0.1, 1.0]))
def test_a_plan_has_its_marginals(n, m, seed, regularisation):
    plan = transport(_numbers(n, m, seed=seed).abs(), regularisation)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m).double(), rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(st.integers(1, 8), st.integers(0, 99))
def test_between_equal_numbers_it_is_the_best_permutation(n, seed):
    cost = _numbers(n, n, seed=seed).abs()
    plan = transport(cost)
    rows, columns = linear_sum_assignment(cost.numpy())
    expected = torch.zeros(n, n).double()
    expected[rows, columns] = 1 / n
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-12)


def test_between_different_numbers_against_a_linear_program():
    cost = _numbers(3, 5, seed=4).abs()
    equal = [np.kron(np.eye(3), np.ones(5)), np.kron(np.ones(3), np.eye(5))]
    solved = linprog(cost.flatten().numpy(), A_eq=np.vstack(equal), b_eq=[1 / 3] * 3 + [1 / 5] * 5)
    assert float((transport(cost) * cost).sum()) == pytest.approx(solved.fun, abs=1e-12)


def test_entropy_is_what_sinkhorn_minimises():
    """At the optimum log T + C / epsilon is a sum of a function of i and one of j."""
    cost = _numbers(4, 6, seed=1).abs()
    plan = transport(cost, 0.5)
    level = 0.5 * cost.mean()
    rest = plan.log() + cost / level
    rest = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-6)
    far = transport(cost, 1e4)
    torch.testing.assert_close(far, torch.full_like(far, 1 / 24), rtol=0, atol=1e-4)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_planted_permutation_is_undone(by, device):
    module, group = _mlp()
    a = _point(module, 1)
    b = group.act(group.sample(2), a)
    a, b = params.to(a, device), params.to(b, device)
    x = None if by == "weights" else _numbers(40, 6).to(device)
    fused = ot_fusion(module.to(device), [a, b], group, inputs=x, weights=[1, 3])
    for name in a:
        torch.testing.assert_close(fused[name], a[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("times", [2, 3])
def test_a_network_whose_units_are_copies_is_folded_back(times):
    """b has every unit several times, with its outgoing weight divided: the same function."""
    module, group = _mlp(4, 5, 3)
    a = _point(module, 1)
    copies = torch.arange(5).repeat(times)
    b = {
        "0.weight": a["0.weight"][copies],
        "0.bias": a["0.bias"][copies],
        "2.weight": a["2.weight"][:, copies] / times,
        "2.bias": a["2.bias"],
    }
    x = _numbers(30, 4)
    for nets, inputs in ((module, None), ([module, resized(module, b)], x)):
        fused = ot_fusion(nets, [a, b], group, inputs=inputs)
        for name in a:
            torch.testing.assert_close(fused[name], a[name], rtol=1e-9, atol=1e-12)


def test_copying_the_units_of_a_narrow_network_leaves_its_function():
    wide, group = _mlp(4, 6, 3)
    narrow, _ = _mlp(4, 3, 3)
    a, b, x = _point(wide, 1), _point(narrow, 2), _numbers(30, 4)
    plan = transport_plans([wide, narrow], a, b, group, inputs=x)["0"]
    assert ((plan > 1e-9).sum(1) == 1).all(), "each of the six comes from one of three"
    fused = ot_fusion([wide, narrow], [a, b], group, inputs=x, weights=[0, 1])
    found, expected = functional_call(wide, fused, (x,)), functional_call(narrow, b, (x,))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_several_networks_are_brought_to_the_first():
    module, group = _mlp()
    points = [_point(module, k) for k in range(3)]
    shuffled = [points[0], *(group.act(group.sample(k), p) for k, p in enumerate(points[1:]))]
    one, other = (ot_fusion(module, each, group) for each in (points, shuffled))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)
    plain = average(points)
    assert any((plain[n] - one[n]).abs().max() > 0.1 for n in one)


def test_half_precision_is_rounded_once():
    module, group = _mlp()
    a, b = (params.to(_point(module, k), dtype=torch.bfloat16) for k in (1, 2))
    exact = ot_fusion(module, [params.to(p, dtype=torch.float64) for p in (a, b)], group)
    found = ot_fusion(module, [a, b], group)
    for name in a:
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].double(), exact[name], rtol=2**-7, atol=2**-8)


def test_bad_arguments_are_named():
    module, group = _mlp()
    a, b = _point(module, 0), _point(_mlp(6, 9, 7, 4)[0], 1)
    with pytest.raises(ArgumentError, match="models: found 1 models"):
        ot_fusion(module, [a], group)
    with pytest.raises(ArgumentError, match="regularisation: found -1"):
        ot_fusion(module, [a, a], group, regularisation=-1)
    with pytest.raises(ArgumentError, match="4.weight.*shape"):
        ot_fusion(module, [a, b], group)
    with pytest.raises(ArgumentError, match="module: found 1 modules for 2 models"):
        ot_fusion([module], [a, a], group)
    ragged = {**a, "0.bias": torch.ones(4).double()}
    with pytest.raises(ArgumentError, match="as elsewhere in block '0'"):
        ot_fusion(module, [a, ragged], group)
