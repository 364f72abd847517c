"""Hulls, ways down, widths and sharpness: closed forms of quadratics, and what must always hold."""

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
from sokmerge.probe import EmpiricalRisk, curvature, filter_normalised, line
from sokmerge.probe.convexity import (
    basin,
    descent,
    hull,
    inside,
    outside,
    rescale,
    risk_gradient,
    sharpness,
    unit_directions,
)

NET = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
N = 40
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (N,), generator=torch.Generator().manual_seed(1))
RISK = EmpiricalRisk(NET, X, Y, chunk=16)

#: A quadratic in two weights: the mean over the inputs of (a_k w_k)^2 is (a_1^2 w_1^2 + ...) / 2.
SLOPES = torch.tensor([2.0, 4.0])
QUADRATIC = EmpiricalRisk(
    nn.Linear(2, 1, bias=False).eval(),
    torch.diag(SLOPES),
    torch.zeros(2, 1),
    loss=lambda f, y, reduction: (f**2).sum(1),
)
seeds = st.integers(0, 2**31)


def _point(seed, size=1.0):
    return params.scale(params.normal_like(params.of(NET), seed), size)


def _weights(*values):
    return {"weight": torch.tensor([list(values)])}


def _naive(point):
    with torch.no_grad():
        return F.cross_entropy(functional_call(NET, point, (X,)), Y, reduction="none").double()


# The hull


@settings(max_examples=5)
@given(st.integers(2, 6), st.integers(1, 9), st.sampled_from([0.3, 1.0, 5.0]), seeds)
def test_weights_inside_are_a_mixture(members, points, concentration, seed):
    weights = inside(members, points, concentration=concentration, seed=seed)
    assert weights.shape == (points, members) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1)


def test_a_concentration_of_one_is_uniform_on_the_simplex():
    """The share of a triangle within a similar one at each corner is the square of its side."""
    weights = inside(3, 20_000, seed=1)
    assert np.mean(weights.max(1) > 0.75) == pytest.approx(3 * 0.25**2, abs=0.01)


@settings(max_examples=5)
@given(st.integers(2, 6), st.integers(1, 9), seeds)
def test_weights_outside_lie_on_the_line_of_two_members_and_beyond_it(members, points, seed):
    for row in outside(members, points, seed=seed):
        assert sorted(row[row != 0].tolist()) == [-0.5, 1.5]


def test_the_hull_agrees_with_a_naive_loop_in_all_it_reports():
    members = [_point(seed) for seed in range(3)]
    weights = np.concatenate([inside(3, 2), outside(3, 2)])
    found = hull(RISK, members, weights)
    own = torch.stack([_naive(member) for member in members])
    np.testing.assert_allclose(found.member_loss, own.mean(1), rtol=1e-5)
    for k, row in enumerate(weights):
        there = {n: sum(w * m[n] for w, m in zip(row, members, strict=True)) for n in members[0]}
        losses = _naive({n: t.float() for n, t in there.items()})
        excess = losses - (torch.tensor(row)[:, None] * own).sum(0)
        wrong = functional_call(NET, {n: t.float() for n, t in there.items()}, (X,)).argmax(1) != Y
        for name, sample in (("loss", losses), ("excess", excess), ("error", wrong.double())):
            assert getattr(found, name)[k] == pytest.approx(float(sample.mean()), abs=1e-5)
            spread = float(sample.std()) / math.sqrt(N)
            assert getattr(found, f"{name}_stderr")[k] == pytest.approx(spread, abs=1e-5)
    assert found.n == N


def test_a_convex_loss_has_no_excess_inside_and_none_missing_outside():
    members = [_weights(1.0, -1.0), _weights(0.0, 2.0), _weights(3.0, 1.0)]
    assert (hull(QUADRATIC, members, inside(3, 20)).excess <= 0).all()
    assert (hull(QUADRATIC, members, outside(3, 20)).excess >= 0).all()


# The way down


def _climb_by_pairs(losses):
    pairs = ((i, j) for j in range(len(losses)) for i in range(j))
    return max([losses[j] - losses[i] for i, j in pairs] + [0.0])


@settings(max_examples=5, deadline=None)
@given(seeds, seeds)
def test_the_climb_is_the_largest_rise_between_two_points_of_the_line(a, b):
    found = descent(RISK, _point(a), _point(b), points=7)
    losses = line(RISK, _point(a), _point(b), 7).loss
    assert found.climb == pytest.approx(_climb_by_pairs(losses), abs=1e-6)
    assert (found.climb == 0) == bool((np.diff(losses) <= 0).all())
    if found.climb > 0:
        i, j = (int(round(6 * at)) for at in (found.climb_from, found.climb_to))
        low, high = (
            _naive(params.lerp(_point(a), _point(b), at)) for at in found.line.alphas[[i, j]]
        )
        spread = float((high - low).std()) / math.sqrt(N)
        assert i < j and found.climb_stderr == pytest.approx(spread, rel=1e-3)


def test_the_plateau_of_a_parabola_is_where_a_share_of_its_fall_is_done():
    """From 1 to 0 the loss is (1 - a)^2: a tenth of the fall is done at 1 - sqrt(0.9)."""
    start, end = _weights(1.0, 0.0), _weights(0.0, 0.0)
    found = descent(QUADRATIC, start, end, points=101)
    assert found.plateau == pytest.approx(1 - math.sqrt(0.9), abs=1e-3) and found.climb == 0
    assert descent(QUADRATIC, start, end, 101, share=0.75).plateau == pytest.approx(0.5, abs=1e-3)
    assert math.isnan(descent(QUADRATIC, end, start).plateau)


# Width and sharpness


def test_the_widths_of_a_quadratic_are_those_of_its_axes():
    """Along an axis the loss is a^2 r^2 / 2, which reaches 1 at sqrt(2) / a."""
    ways = [_weights(1.0, 0.0), _weights(0.0, 1.0)]
    found = basin(QUADRATIC, _weights(0.0, 0.0), ways, radii=np.linspace(0, 1, 201), level=1.0)
    expected = math.sqrt(2) / SLOPES.numpy()
    np.testing.assert_allclose(found.widths, expected, atol=2e-3)
    assert found.width == pytest.approx(expected.mean(), abs=2e-3)
    assert found.width_stderr == pytest.approx(np.ptp(expected) / 2, abs=2e-3)
    curve = found.radii**2 * (SLOPES.numpy() ** 2).mean() / 2
    np.testing.assert_allclose(found.mean, curve, rtol=1e-5)


def test_a_width_beyond_the_radii_is_not_made_up():
    ways = [_weights(1.0, 0.0), _weights(0.0, 1.0)]
    found = basin(QUADRATIC, _weights(0.0, 0.0), ways, radii=[0, 0.5], level=1.0)
    assert found.widths.tolist() == [math.inf, 0.25] and found.width == math.inf
    assert math.isnan(found.width_stderr)


def test_the_sharpness_of_a_quadratic_is_along_its_steepest_axis():
    """Around the minimum, moved a little so that there is a slope, it is a_max^2 rho^2 / 2."""
    centre = _weights(1e-4, 1e-4)
    found = sharpness(QUADRATIC, centre, rho=0.3, steps=30)
    assert found.value == pytest.approx(16 * 0.09 / 2, rel=1e-2)
    assert found.first <= found.value * (1 + 1e-6)
    assert float(params.norm(found.direction)) == pytest.approx(0.3, rel=1e-5)


def test_one_step_of_sharpness_is_that_of_sharpness_aware_minimisation():
    point = _point(3)
    slope = risk_gradient(RISK, point)
    step = params.scale(slope, 0.1 / float(params.norm(slope)))
    there = _naive(params.add(point, step)) - _naive(point)
    found = sharpness(RISK, point, rho=0.1, steps=1)
    assert found.value == found.first == pytest.approx(float(there.mean()), rel=1e-3)
    assert found.stderr == pytest.approx(float(there.std()) / math.sqrt(N), rel=1e-3)


def test_the_gradient_is_that_of_the_whole_mean():
    point = {n: t.clone().requires_grad_() for n, t in _point(5).items()}
    F.cross_entropy(functional_call(NET, point, (X,)), Y).backward()
    for name, tensor in risk_gradient(RISK, _point(5)).items():
        torch.testing.assert_close(tensor, point[name].grad)


# The same function elsewhere


@settings(max_examples=5, deadline=None)
@given(seeds, st.floats(-2, 2))
def test_a_rescaled_network_computes_the_same_function(seed, power):
    point = _point(seed)
    factors = 10 ** (power * torch.rand(6, generator=params.stream(str(seed))))
    twin = rescale(point, ["0.weight", "0.bias"], ["2.weight"], factors)
    torch.testing.assert_close(
        functional_call(NET, twin, (X,)), functional_call(NET, point, (X,)), rtol=1e-4, atol=1e-4
    )
    back = rescale(twin, ["0.weight", "0.bias"], ["2.weight"], 1 / factors)
    for name, tensor in point.items():
        torch.testing.assert_close(back[name], tensor)


def test_rescaling_a_convolution_and_what_reads_it():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
    theta, x = params.of(net), torch.randn(2, 1, 6, 6, generator=params.stream("images"))
    twin = rescale(theta, ["0.weight", "0.bias"], ["2.weight"], torch.tensor([0.5, 2.0, 9.0]))
    torch.testing.assert_close(functional_call(net, twin, (x,)), net(x))


def test_filter_normalised_directions_see_through_one_factor_for_a_layer_and_not_through_many():
    """Li et al. (2018) scale rows to rows: one factor goes through them, many mix in a row."""
    point = {n: t if t.dim() > 1 else torch.zeros_like(t) for n, t in _point(2).items()}
    radii = [0, 0.2, 0.4]

    def rises(at):
        return basin(RISK, at, [filter_normalised(at, k) for k in range(3)], radii=radii).rise

    layer = rescale(point, ["0.weight", "0.bias"], ["2.weight"], 8.0)
    np.testing.assert_allclose(rises(layer), rises(point), atol=1e-5)
    units = rescale(point, ["0.weight", "0.bias"], ["2.weight"], torch.logspace(-1, 1, 6))
    assert np.abs(rises(units) - rises(point)).max() > 1e-2


def test_directions_of_length_one_are_drawn_anew_each_time():
    ways = unit_directions(_point(0), 3, seed=4)
    for way in ways:
        assert float(params.norm(way)) == pytest.approx(1, abs=1e-6)
    assert abs(float(params.cosine(*ways[:2]))) < 0.5
    again = unit_directions(_point(1), 3, seed=4)
    assert all(torch.equal(again[2][name], ways[2][name]) for name in ways[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inside(1), "members: found 1"),
        (lambda: inside(2, 0), "points: found 0"),
        (lambda: inside(2, concentration=0.0), "concentration: found 0.0"),
        (lambda: outside(3, alphas=()), "alphas: found no position"),
        (lambda: hull(RISK, [_point(0), _point(1)], np.ones((2, 2))), "weights: found an array"),
        (lambda: hull(RISK, [_point(0), _point(1)], np.ones((2, 3)) / 3), "rows of 2 weights"),
        (lambda: descent(RISK, _point(0), _point(1), share=1.0), "share: found 1.0"),
        (lambda: basin(RISK, _point(0), [_point(1)], radii=[0, 1]), "directions: found 1"),
        (lambda: basin(RISK, _point(0), [_point(1)] * 2, radii=[1, 2]), "radii: found"),
        (lambda: basin(RISK, _point(0), [_point(1)] * 2, radii=[0, 1], level=0), "level: found 0"),
        (lambda: sharpness(RISK, _point(0), 0.0), "rho: found 0.0"),
        (lambda: sharpness(RISK, _point(0), 1.0, steps=0), "steps: found 0"),
        (lambda: sharpness(QUADRATIC, _weights(0.0, 0.0), 1.0), "a gradient of zero"),
        (lambda: rescale(_point(0), ["0.weight"], [], 0.0), "factors: found 0.0"),
        (lambda: rescale(_point(0), ["nine"], [], 1.0), "nine: found no such parameter"),
        (lambda: rescale(_point(0), [], ["0.bias"], 1.0), "0.bias: found shape"),
        (lambda: rescale(_point(0), ["0.weight"], [], torch.ones(5)), "expected 5 along"),
    ],
)
def test_what_cannot_be_used_is_named(call, message):
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(")):
        call()


def test_the_floor_of_a_bent_valley_has_the_curvature_of_the_formula():
    """The loss (w2 w1 - 1)^2 at (c, 1/c) has the largest eigenvalue 2 (c^2 + 1 / c^2)."""
    layers = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Flatten(0)
    x = torch.tensor([1.0, -1.0])
    risk = EmpiricalRisk(nn.Sequential(*layers).eval(), x[:, None], x, loss=F.mse_loss)
    one = {"0.weight": torch.ones(1, 1), "1.weight": torch.ones(1, 1)}
    for c in (0.4, 1.0, 3.0):
        twin = rescale(one, ["0.weight"], ["1.weight"], c)
        assert risk(twin).loss == pytest.approx(0, abs=1e-10)
        top = curvature.eigenpairs(curvature.hessian(risk, twin)).values[0]
        assert top == pytest.approx(2 * (c**2 + c**-2), rel=1e-4)
