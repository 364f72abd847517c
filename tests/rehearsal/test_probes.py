"""The algebra and the probes, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import params, probe
from sokmerge.network import Network


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


def _statistics(stage):
    network = Network(stage.module)
    stage.require_there(network.state(stage.a, stage.inputs))


def _line(stage):
    found = probe.line(stage.risk, stage.a, stage.b, points=3)
    assert found.loss.shape == (3,) and np.isnan(found.excess_loss_stderr).all()


def _barrier(stage):
    assert np.isnan(probe.barrier(stage.risk, stage.a, stage.b, points=3).loss)


def _plane(stage):
    frame = probe.through(stage.a, stage.b, stage.c)
    direction = probe.filter_normalised(stage.a, seed=0)
    stage.require_there(direction, frame.v)
    found = probe.plane(stage.risk, stage.a, direction, frame.v, alphas=[0, 1], betas=[0, 1])
    assert found.loss.shape == (2, 2)


ROUTINES = {f.__name__[1:]: f for f in (_algebra, _risk, _statistics, _line, _barrier, _plane)}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
