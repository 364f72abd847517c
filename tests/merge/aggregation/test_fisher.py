"""Fisher merging on Gaussians, and its statistic against closed forms and a plain loop."""

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
from sokmerge.merge.aggregation import average, fisher, fisher_diagonal

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


def _precisions(model):
    return {k: t.abs() + 0.1 for k, t in model.items() if k != "steps"}


@given(seed=seeds, weight=st.floats(0.1, 10))
def test_equal_precisions_give_the_average(draw_model, seed, weight):
    models, weights = [draw_model(seed + i) for i in range(3)], [1, weight, 2]
    merged = fisher(models, fishers=[_precisions(draw_model(seed))] * 3, weights=weights)
    for key, expected in average(models, weights=weights).items():
        torch.testing.assert_close(merged[key], expected, rtol=8 * EPS, atol=8 * EPS)
    assert merged["steps"] is models[0]["steps"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(seed=seeds, number=st.integers(1, 6))
@settings(max_examples=25)
def test_of_copies_it_is_the_copy(draw_model, dtype, seed, number):
    model = draw_model(seed, dtype)
    merged = fisher(
        [model] * number, fishers=[_precisions(draw_model(seed + i)) for i in range(number)]
    )
    assert all(torch.equal(merged[k], model[k]) and merged[k].dtype == model[k].dtype
               for k in model)  # fmt: skip


def test_the_product_of_gaussians_is_highest_there(draw_model, device):
    models = [draw_model(i, device=device) for i in range(3)]
    fishers = [params.to(_precisions(draw_model(i + 5)), device) for i in range(3)]
    merged, weights = fisher(models, fishers=fishers, weights=[1, 2, 3]), [1, 2, 3]
    for key in ("w", "b"):
        theta = merged[key].detach().requires_grad_()
        log_density = sum(
            -w * (f[key] * (theta - m[key]) ** 2).sum() / 2
            for w, f, m in zip(weights, fishers, models, strict=True)
        )
        (slope,) = torch.autograd.grad(log_density, theta)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-5)


@given(seed=seeds)
@settings(max_examples=25)
def test_the_order_does_not_matter_up_to_rounding(draw_model, seed):
    models, fishers = (
        [draw_model(seed + i) for i in range(3)],
        [_precisions(draw_model(seed + i)) for i in (5, 6, 7)],
    )
    first = fisher(models, fishers=fishers)
    for order in itertools.permutations(range(3)):
        other = fisher([models[i] for i in order], fishers=[fishers[i] for i in order])
        for key in ("w", "b"):
            torch.testing.assert_close(first[key], other[key], rtol=4 * EPS, atol=4 * EPS)


def test_what_nobody_knows_is_averaged_and_what_has_no_precision_too():
    models = [{"w": torch.tensor([0.0, 0.0]), "b": torch.tensor([1.0])},
              {"w": torch.tensor([4.0, 4.0]), "b": torch.tensor([3.0])}]  # fmt: skip
    fishers = [{"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([1e-9, 0.0])}]
    merged = fisher(models, fishers=fishers)
    assert merged["w"][0] == 2 and merged["b"] == 2
    assert merged["w"][1].item() == pytest.approx(4e-6, rel=1e-3)


def test_logistic_regression(device):
    torch.manual_seed(0)
    net = nn.Linear(4, 3).eval().to(device)
    x = torch.randn(9, 4, device=device)
    found = fisher_diagonal(net, params.of(net), x, chunk=4)
    with torch.no_grad():
        p = net(x).softmax(1)
    # The Hessian of the log-likelihood, which for this model no label enters: p (1 - p) x^2.
    information = (p * (1 - p))[:, :, None] * x[:, None, :] ** 2
    torch.testing.assert_close(found["weight"], information.mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0), rtol=1e-4, atol=1e-7)
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in found.values())


def _by_a_loop(net, theta, x):
    """One example, one class, one backward pass after the other."""
    total = {k: torch.zeros_like(t, dtype=torch.float64) for k, t in theta.items()}
    leaves = {k: t.clone().requires_grad_() for k, t in theta.items()}
    for one in x:
        logs = torch.func.functional_call(net, leaves, (one[None],)).log_softmax(1)[0]
        for log in logs:
            slopes = torch.autograd.grad(log, list(leaves.values()), retain_graph=True)
            for key, slope in zip(leaves, slopes, strict=True):
                total[key] += log.exp().double() * slope.double() ** 2
    return {k: (t / len(x)).float() for k, t in total.items()}


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(12, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_statistic_is_that_of_a_plain_loop(name, chunk):
    torch.manual_seed(1)
    net, x = NETWORKS[name]().eval(), torch.randn(7, 1, 6, 6)
    theta = params.of(net)
    before = {k: t.clone() for k, t in theta.items()}
    found = fisher_diagonal(net, theta, x, chunk=chunk)
    for key, expected in _by_a_loop(net, theta, x).items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(theta[key], before[key]) and not theta[key].requires_grad


def test_batchnorm_statistics_are_those_of_the_inputs_and_held_fixed():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, theta = torch.randn(40, 4), params.of(net)
    found = fisher_diagonal(net, theta, x)
    assert found.keys() == theta.keys()
    assert torch.equal(net[1].running_mean, torch.zeros(6))
    with torch.no_grad():
        hidden = net[0](x)
        net[1].running_mean.copy_(hidden.mean(0))
        net[1].running_var.copy_(hidden.var(0))
    for key, expected in _by_a_loop(net, theta, x).items():
        torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-6)


def test_wrong_arguments_are_named(draw_model):
    models, fishers = (
        [draw_model(0), draw_model(1)],
        [_precisions(draw_model(0)), _precisions(draw_model(1))],
    )
    with pytest.raises(ArgumentError, match="fishers: found 1 statistics for 2 models"):
        fisher(models, fishers=fishers[:1])
    with pytest.raises(ArgumentError, match=r"fishers\[1\]: found keys missing \['b'\]"):
        fisher(models, fishers=[fishers[0], {"w": fishers[1]["w"]}])
    with pytest.raises(ArgumentError, match=r"fishers\[0\]: found an entry 'steps'"):
        fisher(models, fishers=[{"steps": torch.ones(())}] * 2)
    with pytest.raises(ArgumentError, match=r"fishers\[0\]\['w'\]: found shape \(4, 3\); exp"):
        fisher(models, fishers=[{"w": f["w"].T} for f in fishers])
    with pytest.raises(ArgumentError, match=r"fishers\[1\]\['w'\]: found an entry of -"):
        fisher(models, fishers=[fishers[0], {**fishers[1], "w": -fishers[1]["w"]}])
    with pytest.raises(ArgumentError, match=r"fishers\[0\]\['w'\]: found a tensor on meta"):
        fisher(models, fishers=[params.to(f, "meta") for f in fishers])
    for floor in (0, -1, math.nan, math.inf):
        with pytest.raises(ArgumentError, match=f"floor: found {floor}; expected a finite number"):
            fisher(models, fishers=fishers, floor=floor)
    net = nn.Linear(2, 2).eval()
    with pytest.raises(ArgumentError, match="chunk: found 0; expected at least one example"):
        fisher_diagonal(net, params.of(net), torch.ones(1, 2), chunk=0)
    with pytest.raises(ArgumentError, match=r"module: found outputs of shape \(1, 3, 2\)"):
        fisher_diagonal(net, params.of(net), torch.ones(4, 3, 2))
