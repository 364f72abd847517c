"""The algebra and the probes, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import params, probe
from sokmerge.network import Network
from sokmerge.probe import curvature


def _algebra(stage):
    a, b = stage.a, stage.b
    stage.require_there(
        params.add(a, b),
        params.subtract(a, b),
        params.scale(a, 2.0),
        params.lerp(a, b, 0.3),
        params.combine([0.1, 0.2, 0.7], [a, b, stage.c]),
        params.normal_like(a, seed=0),
        params.to(a, dtype=torch.float16),
        params.lerp(*stage.halves[:2], 0.5),
    )
    for scalar in (params.inner(a, b), params.norm(a), params.distance(a, b), params.cosine(a, b)):
        assert scalar.device.type == stage.device.type and scalar.shape == ()
    params.require_finite(a=a, b=b)


def _risk(stage):
    value = stage.risk(stage.a)
    assert value.n == 6 and np.isnan(value.loss)
    losses, errors = stage.risk.per_example(stage.a)
    assert losses.device.type == errors.device.type == stage.device.type


def _points(stage):
    """Several points in a pass, as is the rule on what is no processor."""
    losses, errors = stage.risk.per_example_at((stage.a, stage.b))
    assert losses.shape == errors.shape == (2, 6)
    assert losses.device.type == errors.device.type == stage.device.type


def _statistics(stage):
    network = Network(stage.module)
    stage.require_there(network.state(stage.a, stage.inputs))


def _line(stage):
    found = probe.line(stage.risk, stage.a, stage.b, points=3, together=1)
    assert found.loss.shape == (3,) and np.isnan(found.excess_loss_stderr).all()


def _barrier(stage):
    assert np.isnan(probe.barrier(stage.risk, stage.a, stage.b, points=3, together=1).loss)


def _adaptive(stage):
    if stage.network != "mlp":  # it is a line, with more positions
        return
    found = probe.adaptive_barrier(stage.risk, stage.a, stage.b, most=9, together=1)
    assert np.isnan(found.loss) and not found.converged and found.evaluations == 9


def _plane(stage):
    frame = probe.through(stage.a, stage.b, stage.c)
    direction = probe.filter_normalised(stage.a, seed=0)
    stage.require_there(direction, frame.v)
    grid = {"alphas": [0, 1], "betas": [0, 1]}
    found = probe.plane(stage.risk, stage.a, direction, frame.v, **grid, together=1)
    assert found.loss.shape == (2, 2)


def _products(stage):
    """The Hessian's on every network; the others, and many at once, on the smallest."""
    if not stage.differentiates:
        return
    risk = probe.EmpiricalRisk(stage.module, stage.inputs, stage.targets)
    operator = curvature.hessian(risk, stage.a)
    found = [operator.gradient, operator @ operator.gradient]
    if stage.network == "mlp":
        found.append(operator.products(operator.noise(2, "v"))[1])
        for kind in (curvature.gauss_newton, curvature.fisher, curvature.empirical_fisher):
            found.append(kind(stage.risk, stage.a, memory=0) @ operator.gradient)
        double = curvature.hessian(risk, stage.a, dtype=torch.float64)
        assert (double @ double.gradient).dtype == torch.float64
    for vector in found:
        stage.require_there(operator.layout.unflatten(vector))


def _spectrum(stage):
    """Of a layer of the smallest network, elsewhere of a matrix that is there in name only."""
    if stage.differentiates and stage.network == "mlp":
        operator = curvature.gauss_newton(stage.risk, stage.a, names=stage.linear[-1:])
    else:
        operator = curvature.of_matrix(torch.empty(30, 30, device=stage.device))
    found = curvature.spectrum(operator, k=2, most=3, steps=2, probes=2)
    stage.require_there(operator.layout.unflatten(found.top.vectors))
    assert np.isnan(found.top.residuals).all() and not found.top.converged
    assert np.isnan(found.trace) and found.products == 7
    assert np.isnan(curvature.density(operator, steps=2).nodes).all()
    total = curvature.trace(operator, deflation=2, fewest=2, most=3)
    assert np.isnan(total.value) and not total.converged and total.products == 5


PARTS = (
    _algebra, _risk, _points, _statistics, _line, _barrier, _adaptive, _plane, _products, _spectrum,
)  # fmt: skip
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
