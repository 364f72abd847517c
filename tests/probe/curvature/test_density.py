"""Density and trace against spectra that are known, and the estimators against their theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.curvature import density, gauss_newton, of_matrix, spectrum, trace

BULK = np.linspace(-0.5, 2.0, 140)
SPECTRUM = np.concatenate([BULK, [10, 14, 30, 50, 80, 100]])


def _smooth(values, grid, width):
    bells = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2)
    return bells.sum(1) / (len(values) * width * math.sqrt(2 * math.pi))


def test_one_probe_knows_the_moments_of_its_own_vector(symmetric):
    """m nodes integrate every polynomial of degree 2m - 1 exactly."""
    matrix, _ = symmetric(SPECTRUM)
    operator = of_matrix(matrix)
    found = density(operator, steps=5, probes=2)
    for i, u in enumerate(operator.noise(2, "0:probe")):
        u = u / u.norm()
        for power in range(10):
            expected = float(u @ torch.linalg.matrix_power(matrix, power) @ u)
            moment = (found.weights[i] * found.nodes[i] ** power).sum()
            assert moment == pytest.approx(expected, rel=1e-8)
    tenth = float(u @ torch.linalg.matrix_power(matrix, 10) @ u)
    assert (found.weights[1] * found.nodes[1] ** 10).sum() != pytest.approx(tenth, rel=1e-8)


@pytest.mark.parametrize("deflation", [0, 12])
def test_the_curve_is_the_smoothed_spectrum_within_its_error(symmetric, deflation):
    matrix, _ = symmetric(SPECTRUM)
    found = density(of_matrix(matrix), steps=60, probes=30, deflation=deflation)
    curve = found.curve(width=0.3, grid=np.linspace(-2, 110, 4000))
    expected = _smooth(SPECTRUM, curve.grid, 0.3)
    assert (np.abs(curve.values - expected) <= 5 * curve.stderr + 2e-3).all()
    assert curve.values.sum() * (curve.grid[1] - curve.grid[0]) == pytest.approx(1, abs=1e-3)
    assert (curve.stderr > 0).any() and curve.values.max() > 0.2
    assert found.products == 30 * 60 + deflation


def test_deflation_gives_isolated_eigenvalues_their_exact_weight(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    plain, exact = (density(of_matrix(matrix), steps=40, deflation=d) for d in (0, 12))

    def above_five(found):
        return found.weights[found.nodes > 5].sum() + (found.deflated > 5).sum() / found.size

    share = 6 / len(SPECTRUM)
    assert above_five(exact) == pytest.approx(share, rel=1e-6)
    assert abs(above_five(plain) / share - 1) > 0.02
    assert exact.weights.sum() == pytest.approx(1 - 12 / len(SPECTRUM))


def test_a_density_of_everything_is_the_spectrum(symmetric):
    matrix, _ = symmetric([1.0, 2.0, 3.0, 7.0])
    found = density(of_matrix(matrix), deflation=9, probes=2)
    np.testing.assert_allclose(np.sort(found.deflated), [1, 2, 3, 7])
    assert found.nodes.size == 0 and found.products == 4
    assert found.trace == pytest.approx(13) and found.trace_stderr == 0
    curve = found.curve(width=0.1)
    np.testing.assert_allclose(curve.values, _smooth(np.array([1, 2, 3, 7]), curve.grid, 0.1))


def test_a_spectrum_of_one_value_has_a_width():
    curve = density(of_matrix(torch.eye(20) * 3), steps=4).curve()
    assert curve.width == pytest.approx(0.03) and np.isfinite(curve.values).all()
    assert curve.grid[curve.values.argmax()] == pytest.approx(3, abs=0.03)
    assert np.isnan(curve.stderr).all()


@pytest.mark.parametrize("deflation", [0, 12])
def test_the_trace_keeps_its_word(symmetric, deflation):
    """Over many seeds the estimate is unbiased, and its standard error is its spread."""
    matrix, _ = symmetric(SPECTRUM)
    expected, operator = SPECTRUM.sum(), of_matrix(matrix)
    aim = 0.1 if deflation == 0 else 0.01
    found = [trace(operator, relative=aim, deflation=deflation, seed=s) for s in range(40)]
    assert all(f.converged and f.stderr <= aim * abs(f.value) for f in found)
    scores = np.array([(f.value - expected) / f.stderr for f in found])
    assert abs(scores.mean()) < 4 / math.sqrt(40)
    assert 0.6 < scores.std() < 1.7  # a small sample stops early when its spread is too small
    assert all(0 <= f.products - f.n - deflation < 8 for f in found)


def test_deflation_needs_a_fraction_of_the_products(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    plain, deflated = (
        trace(of_matrix(matrix), relative=0.02, deflation=d, most=5000) for d in (0, 15)
    )
    assert plain.converged and deflated.converged
    assert plain.products > 3 * deflated.products
    variance = 2 * (SPECTRUM**2).sum()
    assert plain.stderr**2 * plain.n == pytest.approx(variance, rel=0.5)


def test_the_trace_of_a_deflated_matrix_is_exact(symmetric):
    matrix, _ = symmetric([1.0, 2.0, 3.0, 7.0])
    found = trace(of_matrix(matrix))
    assert found.value == pytest.approx(13) and (found.stderr, found.n) == (0, 0)
    assert found.converged and found.products == 4 and found.deflated == found.value


def test_a_trace_that_does_not_get_there_says_so(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    found = trace(of_matrix(matrix), stderr=1e-6, most=12, deflation=3)
    assert not found.converged and found.n == 12 and found.stderr > 1e-6
    assert found == trace(of_matrix(matrix), stderr=1e-6, most=12, deflation=3)
    assert found != trace(of_matrix(matrix), stderr=1e-6, most=12, deflation=3, seed=1)


def test_how_many_go_at_once_does_not_count(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    together, single = of_matrix(matrix), of_matrix(matrix)
    object.__setattr__(single, "together", 1)
    object.__setattr__(together, "together", 4)
    for estimate in (
        lambda a: trace(a, stderr=1e-6, most=11).value,
        lambda a: trace(a, relative=0.1).n,
        lambda a: density(a, steps=8, probes=6, deflation=3).curve().values,
    ):
        np.testing.assert_allclose(estimate(together), estimate(single), rtol=1e-7)


def test_one_run_gives_all_three(symmetric):
    matrix, rotation = symmetric(SPECTRUM)
    found = spectrum(of_matrix(matrix), k=4, tol=1e-6, steps=30, probes=6)
    np.testing.assert_allclose(found.top.values, [100, 80, 50, 30], rtol=1e-9)
    assert abs(found.trace - SPECTRUM.sum()) < 4 * found.trace_stderr
    assert found.trace_stderr < 0.05 * SPECTRUM.sum()
    assert found.products == found.top.products + 180 == found.density.products
    assert set(found.top.values) <= set(found.density.deflated)
    assert (found.trace, found.trace_stderr) == (found.density.trace, found.density.trace_stderr)


def test_the_gauss_newton_matrix_of_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    risk = EmpiricalRisk(net, torch.randn(40, 6), torch.randint(3, (40,)), chunk=16)
    operator = gauss_newton(risk, params.of(net), dtype=torch.float64)
    values = torch.linalg.eigvalsh(operator @ torch.eye(53).double()).numpy()
    found = spectrum(operator, k=3, probes=8, steps=30)
    np.testing.assert_allclose(found.top.values, values[::-1][:3], rtol=1e-5)
    assert abs(found.trace - values.sum()) < 4 * found.trace_stderr
    assert abs(trace(operator).value / values.sum() - 1) < 0.04


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda a: density(a, steps=0), "steps: found 0; expected at least one"),
        (lambda a: density(a, probes=0), "probes: found 0; expected at least one"),
        (lambda a: density(a, deflation=-1), "deflation: found -1; expected 0 or more"),
        (lambda a: trace(a, deflation=-1), "deflation: found -1; expected 0 or more"),
        (lambda a: trace(a, relative=0), "relative: found 0; expected a finite number above"),
        (lambda a: trace(a, stderr=math.nan), "stderr: found nan"),
        (lambda a: trace(a, fewest=1), "fewest: found 1; expected 2 to 1000"),
        (lambda a: trace(a, most=5), "fewest: found 10; expected 2 to 5"),
        (lambda a: density(a, steps=2).curve(width=0.0), "width: found 0.0"),
        (lambda a: spectrum(a, k=9), "k: found 9; expected 1 to 3"),
    ],
)
def test_bad_arguments_are_named(run, message):
    with pytest.raises(ArgumentError, match=message):
        run(of_matrix(torch.eye(3)))
