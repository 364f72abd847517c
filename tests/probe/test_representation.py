"""Representations: what is seen of a layer, and closed forms of the measures between two."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.probe.representation import activations, disagreement, feature_cosine, linear_cka


@pytest.fixture
def small(small_network):
    torch.manual_seed(0)
    module = small_network().eval()
    return module, Network(module), params.of(module), torch.randn(7, 1, 4, 4)


def drawn(n, p, seed):
    return torch.randn(n, p, generator=params.stream(f"{n}:{p}:{seed}"), dtype=torch.float64)


def test_rows_are_examples_whatever_the_chunk(small):
    module, network, own, x = small
    found = activations(network, own, x, ["conv", "head"], chunk=3)
    torch.testing.assert_close(found["conv"], module.conv(x).flatten(1).detach())
    whole = activations(network, own, x, ["head"], chunk=100)["head"]
    torch.testing.assert_close(found["head"], whole)
    assert not found["conv"].requires_grad and not found["conv"].is_inference()


def test_the_input_of_a_layer_is_what_stands_after_the_activation(small):
    module, network, own, x = small
    given_to_head = activations(network, own, x, ["head"], at="input")["head"]
    maps = module.conv(x)
    mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3))
    normed = (maps - mean[:, None, None]) / (var[:, None, None] + module.norm.eps).sqrt()
    torch.testing.assert_close(given_to_head, F.relu(normed).mean((2, 3)).detach())


def test_statistics_may_come_from_other_inputs_and_no_hook_stays(small):
    _, network, own, x = small
    a = activations(network, own, x, ["head"], calibration=5 * x)["head"]
    assert not torch.allclose(a, activations(network, own, x, ["head"])["head"])
    assert not any(m._forward_hooks for m in network.skeleton.modules())


@pytest.mark.parametrize(
    "change",
    [
        {"layers": ["nowhere"]},
        {"layers": ["unused"]},
        {"at": "middle"},
        {"inputs": torch.zeros(0, 1, 4, 4)},
        {"chunk": 0},
        {"params": {"w": torch.zeros(1)}},
    ],
)
def test_what_cannot_be_seen_is_refused(small, change):
    _, network, own, x = small
    with pytest.raises(ArgumentError):
        activations(network, **{"params": own, "inputs": x, "layers": ["head"], **change})


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 30))
def test_cka_sees_neither_rotation_nor_shift_nor_scale(seed, p):
    x = drawn(20, p, seed)
    turn = torch.linalg.qr(drawn(p, p, seed + 1)).Q
    assert linear_cka(x, 2.5 * x @ turn + 3) == pytest.approx(1)


def test_cka_of_features_without_correlation_is_zero():
    x, y = torch.tensor([[1.0, 1.0, -1.0, -1.0]]).mT, torch.tensor([[1.0, -1.0, 1.0, -1.0]]).mT
    assert linear_cka(x, y) == pytest.approx(0, abs=1e-12)


def test_cka_of_independent_features_falls_with_the_examples():
    few, many = (linear_cka(drawn(n, 10, 0), drawn(n, 10, 1)) for n in (20, 2000))
    assert many < 0.02 < few < 1


def test_cka_against_its_definition_by_kernels():
    """HSIC of linear kernels, with the centring written out; more features than examples."""
    x, y = drawn(6, 9, 0), drawn(6, 4, 1)
    centre = torch.eye(6, dtype=torch.float64) - 1 / 6

    def hsic(a, b):
        return torch.trace(a @ a.mT @ centre @ b @ b.mT @ centre)

    expected = float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())
    assert linear_cka(x, y) == pytest.approx(expected)
    assert linear_cka(y, x) == pytest.approx(expected)


def test_cka_of_a_constant_is_unknown():
    assert math.isnan(linear_cka(torch.ones(5, 2), drawn(5, 2, 0)))


def test_the_cosine_compares_unit_by_unit():
    x = drawn(5, 4, 0)
    torch.testing.assert_close(feature_cosine(x, 3 * x), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(feature_cosine(x, -x), -torch.ones(5, dtype=torch.float64))
    expected = F.cosine_similarity(x, x.roll(1, 1))
    torch.testing.assert_close(feature_cosine(x, x.roll(1, 1)), expected)
    assert feature_cosine(x, torch.zeros(5, 4)).isnan().all()


def test_networks_disagree_where_their_greatest_scores_differ():
    a = torch.eye(4)
    assert disagreement(a, 7 * a + 1) == 0
    assert disagreement(a, a[[1, 0, 2, 3]]) == 0.5


@pytest.mark.parametrize("measure", [linear_cka, feature_cosine, disagreement])
def test_two_representations_are_of_the_same_inputs(measure):
    with pytest.raises(ArgumentError):
        measure(torch.zeros(3, 2), torch.zeros(4, 2))
    if measure is not linear_cka:
        with pytest.raises(ArgumentError):
            measure(torch.zeros(3, 2), torch.zeros(3, 3))
