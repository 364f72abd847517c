"""Interventions on units: closed forms on linear networks, and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.ablation import mean_ablation, transplant, transplant_effects


def squared(outputs, targets, reduction):
    return (outputs - targets).square().sum(1)


def drawn(*shape, key):
    generator = params.stream(f"{key}:{shape}")
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def chain():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    points = [
        {n: drawn(*p.shape, key=f"{k}{n}") for n, p in net.named_parameters()} for k in "ab"
    ]
    risk = EmpiricalRisk(net, drawn(9, 3, key="x"), torch.arange(9) % 2, chunk=4)
    return net, risk, points


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_a_fixed_unit_of_a_linear_network_costs_its_share_of_the_variance(seed):
    net = nn.Linear(4, 1, bias=False).double().eval()
    own = {"weight": drawn(1, 4, key=f"w{seed}")}
    x = drawn(20, 4, key=f"x{seed}")
    risk = EmpiricalRisk(net, x, x @ own["weight"].mT, loss=squared, chunk=7)
    found = mean_ablation(risk, own, "", at="input")
    expected = (own["weight"][0].square() * x.var(0, correction=0)).numpy()
    np.testing.assert_allclose(found.loss, expected, rtol=1e-10)
    whole = mean_ablation(risk, own, "", [[0, 1, 2, 3]], at="input")
    constant = (x.mean(0) - x) @ own["weight"][0]
    np.testing.assert_allclose(whole.loss, [float(constant.square().mean())], rtol=1e-10)
    assert whole.units == ((0, 1, 2, 3),) and found.n == 20


def test_units_of_a_feature_map_are_channels_and_statistics_stay(small_network):
    net = small_network().double().eval()
    own = {n: drawn(*p.shape, key=n) for n, p in net.named_parameters()}
    x, y = drawn(10, 1, 4, 4, key="maps"), torch.arange(10) % 2
    risk = EmpiricalRisk(net, x, y, chunk=3, calibration=x)
    found = mean_ablation(risk, own, "norm", [1, [0, 2]])
    state = risk.state(own)
    maps = F.conv2d(x, own["conv.weight"], own["conv.bias"], padding=1)
    maps = F.batch_norm(maps, state["norm.running_mean"], state["norm.running_var"],
                        own["norm.weight"], own["norm.bias"])  # fmt: skip

    def loss(maps):
        logits = F.linear(F.relu(maps).mean((2, 3)), own["head.weight"], own["head.bias"])
        return F.cross_entropy(logits, y, reduction="none")

    for group, rise, stderr in zip(([1], [0, 2]), found.loss, found.loss_stderr, strict=True):
        fixed = maps.clone()
        fixed[:, group] = maps.mean((0, 2, 3), keepdim=True)[:, group]
        rises = loss(fixed) - loss(maps)
        assert rise == pytest.approx(float(rises.mean()))
        assert stderr == pytest.approx(float(rises.std() / 10**0.5))


def test_means_may_come_from_other_examples():
    net = nn.Linear(1, 1, bias=False).double().eval()
    own = {"weight": torch.ones(1, 1, dtype=torch.float64)}
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    risk = EmpiricalRisk(net, x, x, loss=squared)
    elsewhere = EmpiricalRisk(net, x + 1, x, loss=squared)
    assert mean_ablation(risk, own, "", at="input").loss == pytest.approx([1.0])
    found = mean_ablation(risk, own, "", at="input", reference=elsewhere)
    assert found.loss == pytest.approx([(2**2 + 0) / 2])


def test_nothing_stays_behind(chain):
    _, risk, (a, _) = chain
    before = risk(a)
    mean_ablation(risk, a, "0")
    with pytest.raises(ArgumentError, match="at"):
        mean_ablation(risk, a, "0", at="between")
    assert risk(a) == before


def test_all_units_of_all_layers_make_the_donor(chain):
    _, _, (a, b) = chain
    moved = transplant(a, b, {"0": range(4), "2": [1, 0]})
    assert all(torch.equal(moved[n], b[n]) for n in b)
    some = transplant(a, b, {"0": [2]})
    assert torch.equal(some["0.weight"][2], b["0.weight"][2])
    assert torch.equal(some["0.bias"][[0, 1, 3]], a["0.bias"][[0, 1, 3]])
    assert some["2.weight"] is a["2.weight"]


def test_effects_are_risks_of_transplants(chain):
    _, risk, (a, b) = chain
    found = transplant_effects(risk, a, b, "0")
    for unit in range(4):
        value = risk(transplant(a, b, {"0": [unit]}))
        assert found.loss[unit] == pytest.approx(value.loss - risk(a).loss)
        assert found.error[unit] == pytest.approx(value.error - risk(a).error)
    assert transplant_effects(risk, a, a, "0").loss == pytest.approx(np.zeros(4))


def test_what_is_not_there_is_said(chain, small_network):
    _, risk, (a, b) = chain
    with pytest.raises(ArgumentError, match="units from 0 to 3"):
        mean_ablation(risk, a, "0", [4])
    with pytest.raises(ArgumentError, match="submodule"):
        mean_ablation(risk, a, "7")
    with pytest.raises(ArgumentError, match="'7.weight'"):
        transplant(a, b, {"7": [0]})
    with pytest.raises(ArgumentError, match="at least one"):
        transplant_effects(risk, a, b, "0", [])
    net = small_network().double().eval()
    own = {n: drawn(*p.shape, key=n) for n, p in net.named_parameters()}
    idle = EmpiricalRisk(net, drawn(2, 1, 4, 4, key="maps"), torch.arange(2))
    with pytest.raises(ArgumentError, match="called in a pass"):
        mean_ablation(idle, own, "unused")
