"""Directions and what adding them does: closed forms, and hooks against parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.steering import absorbed, difference_of_means, steered


def drawn(*shape, key):
    generator = params.stream(f"{key}:{shape}")
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def chain():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    own = {n: drawn(*p.shape, key=n) for n, p in net.named_parameters()}
    return EmpiricalRisk(net, drawn(9, 3, key="x"), torch.arange(9) % 2, chunk=4), own


def test_a_shift_is_found_and_its_uncertainty_is_that_of_the_mean():
    x = drawn(50, 3, key="x")
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = difference_of_means(x + shift, x)
    torch.testing.assert_close(found.vector, shift)
    torch.testing.assert_close(found.stderr, (2 * x.var(0) / 50).sqrt())
    assert found.n == (50, 50)


def test_reliability_is_near_one_for_a_real_shift_and_near_zero_for_none():
    x, y = drawn(400, 20, key="x"), drawn(400, 20, key="y")
    assert difference_of_means(x + 1, y).reliability > 0.95
    none = [difference_of_means(drawn(200, 20, key=f"{k}a"), drawn(200, 20, key=f"{k}b"))
            for k in range(10)]  # fmt: skip
    chance = sum(float(d.stderr.square().sum() / d.vector.square().sum()) for d in none) / 10
    assert chance == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("scale", [-1.5, 0.0, 2.0])
def test_a_vector_at_a_linear_layer_is_a_step_of_its_bias(chain, scale):
    risk, own = chain
    vector = drawn(4, key="v")
    added = steered(risk, own, "2", vector, scale=scale, at="input")
    moved = absorbed(own, "2", vector, scale)
    assert added.loss == pytest.approx(risk(moved).loss) and added.error == risk(moved).error
    assert all(torch.equal(moved[n], own[n]) for n in own if n != "2.bias")
    after = steered(risk, own, "0", vector, scale=scale)
    bias = {**own, "0.bias": own["0.bias"] + scale * vector}
    assert after.loss == pytest.approx(risk(bias).loss)
    assert risk(own) == steered(risk, own, "2", vector, scale=0.0, at="input")


def test_each_place_of_a_feature_map_is_given_the_vector():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)).double().eval()
    own = {n: drawn(*p.shape, key=n) for n, p in net.named_parameters()}
    risk = EmpiricalRisk(net, drawn(5, 1, 2, 2, key="maps"), torch.arange(5) % 2)
    vector = drawn(2, key="v")
    bias = {**own, "0.bias": own["0.bias"] + vector}
    assert steered(risk, own, "0", vector).loss == pytest.approx(risk(bias).loss)


def test_what_does_not_fit_is_said(chain):
    risk, own = chain
    with pytest.raises(ArgumentError, match="number of columns"):
        difference_of_means(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ArgumentError, match="at least two"):
        difference_of_means(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="one for each unit"):
        steered(risk, own, "0", torch.zeros(3))
    with pytest.raises(ArgumentError, match="one axis"):
        steered(risk, own, "0", torch.zeros(4, 1))
    with pytest.raises(ArgumentError, match="linear layer"):
        absorbed(own, "1", torch.zeros(4))
    with pytest.raises(ArgumentError, match="entry for each input"):
        absorbed(own, "2", torch.zeros(2))
