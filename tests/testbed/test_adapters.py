"""Adapters start at the start, and train what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.testbed.adapters import LowRank, Tangent


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


@pytest.mark.parametrize("adapter", [LowRank(2), Tangent()])
def test_it_starts_at_the_start_and_leaves_the_module_alone(net, adapter):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x = torch.randn(4, 5, dtype=torch.float64)
    adapted = adapter.adapt(net, seed=1).double()
    torch.testing.assert_close(adapted(x), net(x))
    adapted(x).square().sum().backward()
    assert any(p.grad.abs().max() > 0 for p in adapted.parameters())
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_low_rank_adds_the_product_of_its_factors(net):
    adapted, x = LowRank(2).adapt(net, seed=1).double(), torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        for name, factor in adapted.named_parameters():
            factor.copy_(torch.randn_like(factor))
            layer = net.get_submodule(name.partition(".")[0])
            if name.endswith("up"):
                layer.weight += factor @ adapted.get_parameter(name.replace("up", "down"))
    torch.testing.assert_close(adapted(x), net(x))


def test_the_first_order_model_is_that_of_finite_differences(net):
    adapted, x = Tangent().adapt(net, seed=0), torch.randn(4, 5, dtype=torch.float64)
    step = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    at = {name: p.detach() for name, p in net.named_parameters()}

    def value(t):
        moved = {name: at[name] + t * step[name] for name in at}
        return torch.func.functional_call(net, moved, (x,))

    with torch.no_grad():
        for name, p in adapted.network.named_parameters():
            p += step[name]
    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(adapted(x), value(0) + slope, rtol=1e-6, atol=1e-8)
    assert list(Tangent().state(adapted)) == list(net.state_dict())


def test_a_layer_that_is_not_linear_is_named():
    with pytest.raises(ArgumentError, match=r"^module: found a parameter '0\.weight'"):
        LowRank().adapt(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), seed=0)
