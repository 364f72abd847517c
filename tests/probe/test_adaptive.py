"""The adaptive barrier against the dense line, and what its uncertainty is worth."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.polynomial import Polynomial
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, adaptive_barrier, barrier, line

ONE = nn.Linear(1, 1, bias=False).double().eval()
ENDS = [{"weight": torch.tensor([[w]], dtype=torch.float64)} for w in (0.0, 1.0)]
DENSE = np.linspace(0, 1, 2001)

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))


def _point(seed, size=1.0):
    return params.scale(params.normal_like(params.of(NET), seed), size)


def _pair(seed, size=3.0):
    """A network, and one near it with its units in another order; the risk of what it says."""
    a, other = _point(seed, size), torch.tensor([2, 0, 1, 5, 3, 4])
    b = {k: t[other] if k.startswith("0.") else t for k, t in a.items()}
    b = {k: t[:, other] if k == "2.weight" else t for k, t in b.items()}
    with torch.no_grad():
        labels = functional_call(NET, a, (X,)).argmax(1)
    return EmpiricalRisk(NET, X, labels), a, params.add(b, _point(seed + 1000, 0.3))


def _along(function, examples=1):
    """A risk whose loss at alpha on the line between ENDS is a function of alpha."""
    x = torch.ones(examples, 1, dtype=torch.float64)
    return EmpiricalRisk(ONE, x, x, loss=lambda f, y, reduction: function(f[:, 0]))


def _highest(function, at=DENSE):
    values = function(torch.from_numpy(at)).numpy()
    return (values - (1 - at) * values[0] - at * values[-1]).max()


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=5))
@settings(max_examples=15)
def test_a_polynomial_of_low_degree_is_found_exactly(given_coefficients):
    """Five nodes hold it, so nine add nothing: the uncertainty is rounding, wherever the top is."""
    polynomial = Polynomial(np.array(given_coefficients) / 10)
    excess = polynomial - Polynomial([polynomial(0), polynomial(1) - polynomial(0)])
    tops = [r.real for r in excess.deriv().roots() if abs(r.imag) < 1e-9 and 0 <= r.real <= 1]
    found = adaptive_barrier(
        _along(lambda w: sum(c * w**k for k, c in enumerate(polynomial))), *ENDS
    )
    assert found.loss == pytest.approx(max([0, *map(excess, tops)]), abs=1e-5)
    assert found.converged and found.evaluations == 9 and found.loss_uncertainty < 1e-12


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 12), st.floats(0, 6)), max_size=4))
@settings(max_examples=20)
def test_it_keeps_its_tolerance_on_what_is_smooth(waves):
    def function(w):
        return sum((size * torch.sin(often * w + at) for size, often, at in waves), 0 * w)

    for tol in (0.05, 0.002):
        found = adaptive_barrier(_along(function), *ENDS, tol=tol)
        assert found.converged
        assert found.loss == pytest.approx(_highest(function), abs=tol)


SHAPES = {
    "parabola": (lambda w: -((w - 0.3) ** 2), 9),
    "plateau": (lambda w: torch.tanh(6 * w) - torch.tanh(6 * w - 3), 33),
    "peak of Runge": (lambda w: 1 / (1 + 9 * (2 * w - 1.1) ** 2), 33),
    "valley": (lambda w: torch.cosh(8 * w - 4), 17),
    "line": (lambda w: 3 * w - 1, 9),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_harder_the_line_the_more_evaluations(shape):
    function, evaluations = SHAPES[shape]
    found = adaptive_barrier(_along(function), *ENDS, tol=0.005)
    assert found.evaluations == evaluations and found.converged
    assert found.loss == pytest.approx(_highest(function), abs=0.005)
    assert found.loss_uncertainty <= 0.005


def test_a_kink_is_met_with_a_large_uncertainty():
    def tent(w):
        return -(w - 0.37).abs()

    for most in (9, 17, 33):
        found = adaptive_barrier(_along(tent), *ENDS, tol=1e-3, most=most)
        assert found.evaluations == most and not found.converged
        assert found.loss_uncertainty > abs(found.loss - _highest(tent)) > 1e-4


def test_a_spike_between_all_nodes_is_not_seen():
    """What the docstring says cannot be bounded."""

    def spike(w):
        return torch.exp(-(((w - 0.45) / 0.005) ** 2))

    found = adaptive_barrier(_along(spike), *ENDS)
    assert found.converged and found.loss < 0.01 < 0.99 < _highest(spike)


@pytest.mark.parametrize("seed", range(12))
def test_on_networks_it_agrees_with_the_dense_line(seed):
    risk, a, b = _pair(seed)
    found, dense = adaptive_barrier(risk, a, b), barrier(risk, a, b, 201)
    assert dense.loss > 0.1
    assert found.converged and found.loss_uncertainty <= 0.02
    assert abs(found.loss - dense.loss) <= 0.02


def test_nodes_are_nested_and_each_is_evaluated_once(monkeypatch):
    risk, a, b = _pair(0)
    calls, evaluate = [], risk.per_example
    monkeypatch.setattr(risk, "per_example", lambda point: calls.append(point) or evaluate(point))
    found = adaptive_barrier(risk, a, b, tol=1e-9)
    assert found.evaluations == len(calls) == 33 and not found.converged
    for fewer in (9, 17):
        nodes = adaptive_barrier(risk, a, b, tol=1e-9, most=fewer).line.alphas
        np.testing.assert_array_equal(nodes, found.line.alphas[:: 32 // (fewer - 1)])
    np.testing.assert_allclose(nodes, (1 - np.cos(np.pi * np.arange(17) / 16)) / 2, atol=1e-15)
    assert nodes[0] == 0 and nodes[-1] == 1


@pytest.mark.parametrize("seed", range(4))
def test_its_line_is_the_line_and_its_error_that_of_the_nodes(seed):
    risk, a, b = _pair(seed)
    found = adaptive_barrier(risk, a, b)
    plain = barrier(risk, a, b, alphas=found.line.alphas)
    for name in vars(plain.line):
        np.testing.assert_array_equal(getattr(found.line, name), getattr(plain.line, name))
    assert (found.error, found.error_alpha) == (plain.error, plain.error_alpha)
    assert found.error_stderr == plain.error_stderr
    assert plain.loss <= found.loss <= plain.loss + found.loss_uncertainty + 1e-12


def test_nodes_may_share_a_pass():
    risk, a, b = _pair(2)
    one, some = (adaptive_barrier(risk, a, b, together=k) for k in (1, 4))
    assert one.evaluations == some.evaluations
    assert one.loss == pytest.approx(some.loss, abs=1e-4) and one.error == some.error


def test_the_standard_error_is_that_of_the_line_at_the_maximum():
    risk, a, b = _pair(1)
    found = adaptive_barrier(risk, a, b, tol=1e-3)
    there = line(risk, a, b, alphas=[0, found.loss_alpha, 1])
    assert found.loss_alpha not in found.line.alphas
    assert found.loss == pytest.approx(there.excess_loss[1], abs=2e-3)
    assert found.loss_stderr == pytest.approx(there.excess_loss_stderr[1], rel=0.02)
    assert math.isnan(adaptive_barrier(_along(torch.sin), *ENDS).loss_stderr)  # one example


def test_a_network_has_no_barrier_to_itself():
    risk, a, _ = _pair(0)
    found = adaptive_barrier(risk, a, a)
    assert found.loss == found.error == found.loss_stderr == found.loss_uncertainty == 0
    assert found.evaluations == 9 and found.converged


@given(st.integers(0, 2**31))
@settings(max_examples=6)
def test_a_barrier_has_no_direction(seed):
    risk, a, b = _pair(seed)
    there, back = adaptive_barrier(risk, a, b), adaptive_barrier(risk, b, a)
    assert there.loss == pytest.approx(back.loss, abs=1e-4)
    assert there.evaluations == back.evaluations


def test_what_cannot_be_asked():
    risk, a, _ = _pair(0)
    for tol in (0, -1, math.nan):
        with pytest.raises(ArgumentError, match="tol: found .*; expected a positive number"):
            adaptive_barrier(risk, a, a, tol=tol)
    with pytest.raises(ArgumentError, match="most: found 8; expected at least 9"):
        adaptive_barrier(risk, a, a, most=8)
    with pytest.raises(ArgumentError, match=r"b: found keys missing \['0.bias'\]"):
        adaptive_barrier(risk, a, {k: t for k, t in a.items() if k != "0.bias"})
    huge = {k: torch.full_like(t, 3e38) for k, t in a.items()}
    with pytest.raises(ArgumentError, match="the line from a to b: found a NaN or infinite loss"):
        adaptive_barrier(risk, a, huge)
