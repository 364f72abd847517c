"""Curves: where they run, how long they are, what is measured on them, and that they learn."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, line
from sokmerge.probe.connectivity import Curve, along, fit_curve
from sokmerge.probe.connectivity.curves import weights


def at(*points):
    return [{"w": torch.tensor(p, dtype=torch.float64)} for p in points]


CORNERS = at((0.0, 0.0), (1.0, 3.0), (4.0, 1.0), (5.0, 0.0))


@settings(max_examples=20, deadline=None)
@given(t=st.floats(0, 1), count=st.integers(2, 6), kind=st.sampled_from(["bezier", "chain"]))
def test_the_points_share_each_position(t, count, kind):
    shares = weights(kind, count, t)
    assert math.fsum(shares) == pytest.approx(1) and min(shares) >= 0
    assert shares[::-1] == pytest.approx(weights(kind, count, 1 - t), abs=1e-12)


def test_a_bezier_curve_against_the_algorithm_of_de_casteljau():
    for t in (0.0, 0.3, 0.7, 1.0):
        rows = [p["w"] for p in CORNERS]
        while len(rows) > 1:
            rows = [(1 - t) * p + t * q for p, q in zip(rows, rows[1:], strict=False)]
        torch.testing.assert_close(Curve(CORNERS)(t)["w"], rows[0])


def test_a_chain_visits_its_points_in_equal_times():
    chain = Curve(CORNERS, "chain")
    for j, corner in enumerate(CORNERS):
        torch.testing.assert_close(chain(j / 3)["w"], corner["w"])
    torch.testing.assert_close(chain(0.5)["w"], (CORNERS[1]["w"] + CORNERS[2]["w"]) / 2)


def test_lengths():
    steps = np.linalg.norm(np.diff([p["w"].tolist() for p in CORNERS], axis=0), axis=1)
    chain = Curve(CORNERS, "chain")
    assert chain.length() == pytest.approx(steps.sum())
    assert chain.straightness() == pytest.approx(steps.sum() / 5)
    assert Curve(CORNERS[::3]).straightness() == 1
    # A parabola y = 2 t (1 - t), x = 2 t: its length in closed form.
    arch = Curve(at((0.0, 0.0), (1.0, 1.0), (2.0, 0.0)))
    assert arch.length(400) == pytest.approx(math.sqrt(2) + math.asinh(1), rel=1e-5)
    assert arch.length() < chain.length()


def test_ends_are_exact_and_counters_stay():
    points = [{"w": torch.rand(3), "steps": torch.tensor(k)} for k in range(3)]
    for kind in ("bezier", "chain"):
        curve = Curve(points, kind)
        assert torch.equal(curve(0)["w"], points[0]["w"])
        assert torch.equal(curve(1)["w"], points[2]["w"])
        assert curve(0.5)["steps"] == 0


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_position_lies_on_the_curve(t):
    with pytest.raises(ArgumentError):
        Curve(CORNERS)(t)


def test_what_is_no_curve():
    for points, kind in (
        (CORNERS[:1], "bezier"),
        (CORNERS, "spline"),
        ([*CORNERS, {"w": torch.zeros(3)}], "chain"),
    ):
        with pytest.raises(ArgumentError):
            Curve(points, kind)


@pytest.fixture(scope="module")
def risk():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()
    return EmpiricalRisk(net, torch.randn(40, 3), torch.randint(3, (40,)))


def test_along_a_line_it_is_the_line(risk):
    a, b = (params.normal_like(risk.network.parameters, seed) for seed in (0, 1))
    found, known = along(risk, Curve((a, b)), points=5), line(risk, a, b, points=5)
    for name in ("loss", "loss_stderr", "error", "excess_loss", "excess_loss_stderr"):
        np.testing.assert_allclose(getattr(found, name), getattr(known, name), atol=1e-6)
    np.testing.assert_allclose(found.excess_error, known.excess_error, atol=1e-6)
    assert found.barrier == found.excess_loss.max() and found.n == 40
    assert found.error_barrier == found.excess_error.max()
    assert found.length == pytest.approx(float(params.distance(a, b)), rel=1e-6)


def test_the_mode_connectivity_has_the_sign_of_its_paper():
    """Below zero where there is a barrier, above where the ends are worse than the middle."""
    net = nn.Linear(1, 1, bias=False).eval()
    points = [{"weight": torch.tensor([[w]])} for w in (-1.0, 1.0)]
    for sign, expected in ((1, 1.0), (-1, -1.0)):
        square = lambda f, y, reduction, s=sign: s * f.square().mean(1)  # noqa: E731
        risk = EmpiricalRisk(net, torch.ones(2, 1), torch.zeros(2, 1), loss=square)
        found = along(risk, Curve(points), points=5)
        assert found.connectivity == pytest.approx(expected)
        assert found.barrier == pytest.approx(max(0.0, -expected))


@pytest.mark.parametrize("positions", [[0, 0.5], [0.1, 1], [0, 0.7, 0.5, 1], [0]])
def test_positions_span_the_curve(risk, positions):
    ends = [params.normal_like(risk.network.parameters, seed) for seed in (0, 1)]
    with pytest.raises(ArgumentError):
        along(risk, Curve(ends), positions=positions)


def circle(point, step):
    """Low on the unit circle alone."""
    return (point["w"].square().sum() - 1).square()


ENDS = at((1.0, 0.0), (-0.8, 0.6))


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_a_curve_learns_the_way_round(kind):
    found = fit_curve(*ENDS, loss=circle, kind=kind, steps=60, lr=0.1)
    heights = [float(circle(found(t), 0)) for t in np.linspace(0, 1, 11)]
    straight = max(float(circle(Curve(ENDS)(t), 0)) for t in np.linspace(0, 1, 11))
    assert max(heights) < straight / 3
    assert torch.equal(found(0)["w"], ENDS[0]["w"]) and torch.equal(found(1)["w"], ENDS[1]["w"])


def test_the_gradient_is_that_of_the_loss_on_the_curve():
    """One step of Adam goes by the rate against the sign of the gradient."""
    before = fit_curve(*ENDS, loss=circle, steps=0)
    after = fit_curve(*ENDS, loss=circle, steps=1, lr=1e-3)
    moved = after.points[1]["w"] - before.points[1]["w"]
    torch.testing.assert_close(moved.abs(), torch.full((2,), 1e-3, dtype=torch.float64))
    point = before(random.Random("0:curve").random())["w"]
    assert torch.equal(moved.sign(), point.sign() * (1 - point.square().sum()).sign())


def test_a_pull_makes_it_straighter():
    loose, tight = (
        fit_curve(*ENDS, loss=circle, kind="chain", bends=2, steps=60, lr=0.05, pull=pull)
        for pull in (0.0, 3.0)
    )
    assert 1 <= tight.straightness() < loose.straightness()


def test_a_curve_is_the_same_again_and_keeps_its_ends():
    one, two = (fit_curve(*ENDS, loss=circle, steps=3, seed=5) for _ in range(2))
    assert torch.equal(one.points[1]["w"], two.points[1]["w"])
    other = fit_curve(*ENDS, loss=circle, steps=3, seed=6)
    assert not torch.equal(one.points[1]["w"], other.points[1]["w"])
    assert torch.equal(ENDS[0]["w"], torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"lr": 0.0},
        {"bends": 0},
        {"pull": -1.0},
        {"start": at((0.0, 0.0), (1.0, 1.0))},
        {"b": {"w": torch.zeros(2)}},
        {"kind": "spline"},
    ],
)
def test_what_cannot_be_trained_is_refused(change):
    how = {"a": ENDS[0], "b": ENDS[1], "loss": circle, "steps": 1, **change}
    with pytest.raises(ArgumentError):
        fit_curve(**how)
