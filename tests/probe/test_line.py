"""Lines and barriers against a naive loop, and against what must hold for every pair."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, barrier, line

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
N = 40
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (N,), generator=torch.Generator().manual_seed(1))
RISK = EmpiricalRisk(NET, X, Y)

seeds = st.integers(0, 2**31)


def _point(seed, size=1.0):
    return params.scale(params.normal_like(params.of(NET), seed), size)


def _samples(a, b, alphas):
    """Losses and errors of each example at each position, shape (positions, N), in numpy."""
    losses, errors = [], []
    with torch.no_grad():
        for alpha in alphas:
            point = {k: (1 - alpha) * a[k].double() + alpha * b[k].double() for k in a}
            outputs = functional_call(NET.double(), point, (X.double(),))
            losses.append(F.cross_entropy(outputs, Y, reduction="none").numpy())
            errors.append((outputs.argmax(1) != Y).double().numpy())
    NET.float()
    return np.array(losses), np.array(errors)


def _stderr(samples):
    return samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])


def test_it_agrees_with_a_naive_loop_in_all_it_reports():
    a, b = _point(1), _point(2)
    found = line(RISK, a, b, points=11)
    alphas = np.linspace(0, 1, 11)
    losses, errors = _samples(a, b, alphas)
    np.testing.assert_array_equal(found.alphas, alphas)
    np.testing.assert_allclose(found.loss, losses.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.loss_stderr, _stderr(losses), rtol=1e-5)
    np.testing.assert_allclose(found.error, errors.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.error_stderr, _stderr(errors), rtol=1e-12)

    chord = (1 - alphas)[:, None] * losses[:1] + alphas[:, None] * losses[-1:]
    np.testing.assert_allclose(found.excess_loss, (losses - chord).mean(1), atol=1e-5)
    np.testing.assert_allclose(found.excess_loss_stderr, _stderr(losses - chord), atol=1e-5)
    paired = errors - (errors[:1] + errors[-1:]) / 2
    np.testing.assert_allclose(found.excess_error, paired.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.excess_error_stderr, _stderr(paired), atol=1e-12)
    assert found.n == N


def test_the_standard_error_of_the_excess_is_that_of_paired_differences():
    """Between two nearly equal networks the examples' own spread cancels; unpaired it would not."""
    a = _point(1)
    b = params.add(a, _point(2, 1e-2))
    found = line(RISK, a, b, points=3)
    unpaired = math.hypot(found.loss_stderr[1], (found.loss_stderr[0] + found.loss_stderr[2]) / 2)
    assert found.excess_loss_stderr[1] < unpaired / 100


def test_the_barrier_is_the_highest_excess():
    a, b = _point(3, 2.0), _point(4, 2.0)
    found = barrier(RISK, a, b, points=13)
    alphas = np.linspace(0, 1, 13)
    losses, errors = _samples(a, b, alphas)
    excess = losses.mean(1) - ((1 - alphas) * losses[0].mean() + alphas * losses[-1].mean())
    assert found.loss == pytest.approx(excess.max(), rel=1e-4)
    assert found.loss_alpha == alphas[excess.argmax()]
    instability = errors.mean(1) - (errors[0].mean() + errors[-1].mean()) / 2
    assert found.error == pytest.approx(instability.max(), abs=1e-12)
    assert found.error_alpha == alphas[instability.argmax()]
    at = int(excess.argmax())
    assert found.loss_stderr == found.line.excess_loss_stderr[at]
    assert found.error_stderr == found.line.excess_error_stderr[int(instability.argmax())]


@given(a=seeds, b=seeds, points=st.integers(2, 7), size=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=40)
def test_a_barrier_is_never_negative(a, b, points, size):
    found = barrier(RISK, _point(a, size), _point(b, size), points)
    assert found.loss >= 0 and found.error >= 0
    assert found.line.excess_loss[0] == 0 and found.line.excess_loss[-1] == 0
    ends = found.line.error[[0, -1]]
    assert found.error >= abs(ends[0] - ends[1]) / 2 - 1e-12


@given(seed=seeds, points=st.integers(2, 9), size=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=30)
def test_a_network_has_no_barrier_to_itself(seed, points, size):
    a = _point(seed, size)
    found = barrier(RISK, a, a, points)
    assert found.loss == 0 and found.error == 0
    assert found.loss_stderr == 0 and found.error_stderr == 0


@given(a=seeds, b=seeds)
@settings(max_examples=20)
def test_a_barrier_has_no_direction(a, b):
    there, back = (barrier(RISK, _point(p), _point(q), 7) for p, q in ((a, b), (b, a)))
    assert there.loss == pytest.approx(back.loss, abs=1e-5)
    np.testing.assert_allclose(there.line.loss, back.line.loss[::-1], rtol=1e-5)


@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(2, 9))
def test_a_closed_form(w, v, points):
    """The loss (w x)^2 of one weight is a parabola: its excess is -alpha (1 - alpha) (w - v)^2."""
    net, x = nn.Linear(1, 1, bias=False).double().eval(), torch.ones(5, 1, dtype=torch.float64)
    risk = EmpiricalRisk(net, x, x, loss=lambda f, y, reduction: f.square().sum(1))
    a, b = ({"weight": torch.tensor([[p]], dtype=torch.float64)} for p in (w, v))
    found = line(risk, a, b, points)
    alpha = found.alphas
    np.testing.assert_allclose(found.loss, ((1 - alpha) * w + alpha * v) ** 2, atol=1e-12)
    np.testing.assert_allclose(found.excess_loss, -alpha * (1 - alpha) * (w - v) ** 2, atol=1e-12)
    assert barrier(risk, a, b, points).loss == 0


def test_positions_may_be_given(device):
    risk = EmpiricalRisk(NET.to(device), X.to(device), Y.to(device))
    a, b = (params.to(_point(s), device=device) for s in (1, 2))
    chosen = line(risk, a, b, alphas=[0, 0.3, 1])
    even = line(risk, a, b, points=11)
    assert chosen.alphas.tolist() == [0, 0.3, 1]
    np.testing.assert_allclose(chosen.loss, even.loss[[0, 3, 10]], rtol=1e-6)
    NET.cpu()


@pytest.mark.parametrize("together", [2, 11])
def test_positions_may_share_a_pass(together):
    a, b = _point(1), _point(2)
    one, some = (line(RISK, a, b, points=11, together=k) for k in (1, together))
    for name in ("loss", "excess_loss", "excess_loss_stderr", "error", "excess_error_stderr"):
        np.testing.assert_allclose(getattr(some, name), getattr(one, name), rtol=1e-4, atol=1e-6)
    found, same = (barrier(RISK, a, b, points=11, together=k) for k in (1, together))
    assert found.loss == pytest.approx(same.loss, abs=1e-5) and found.error == same.error


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_line_has_two_ends(points):
    with pytest.raises(ArgumentError, match=f"points: found {points}; expected at least the two"):
        line(RISK, _point(0), _point(1), points)


@pytest.mark.parametrize(
    "alphas", [[], [0], [0, 0.5], [0.5, 1], [0, 0.5, 0.5, 1], [1, 0], [0, math.nan, 1], [-1, 0, 1]],
    ids=str,
)  # fmt: skip
def test_positions_lead_from_end_to_end(alphas):
    with pytest.raises(ArgumentError, match="alphas: .*increasing positions, the first 0"):
        barrier(RISK, _point(0), _point(1), alphas=alphas)


def test_what_does_not_fit_is_named():
    a = _point(0)
    with pytest.raises(ArgumentError, match=r"b: found keys missing \['0.bias'\]"):
        line(RISK, a, {k: t for k, t in a.items() if k != "0.bias"})
    with pytest.raises(ArgumentError, match=r"a\['0.bias'\]: found 1 of 6 entries NaN"):
        line(RISK, {**a, "0.bias": torch.tensor([math.nan, 0, 0, 0, 0, 0])}, a)
    with pytest.raises(ArgumentError, match=r"b\['0.weight'\]: found a tensor on meta"):
        barrier(RISK, a, params.to(a, device="meta"))


def test_an_overflow_on_the_way_is_named():
    huge = {k: torch.full_like(t, 3e38) for k, t in _point(0).items()}
    with pytest.raises(ArgumentError, match="the line from a to b: found a NaN or infinite loss"):
        line(RISK, _point(0), huge, points=3)
