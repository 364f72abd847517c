"""Probes of convexity and the star, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sokmerge import probe
from sokmerge.probe import convexity
from sokmerge.probe.star import star


def _hull(stage):
    found = convexity.hull(stage.risk, [stage.a, stage.b], convexity.inside(2, 1))
    assert found.excess.shape == (1,) and np.isnan(found.member_loss).all()


def _descent(stage):
    """On the smallest network; the line itself is rehearsed on all."""
    if stage.network != "mlp":
        return
    found = convexity.descent(stage.risk, stage.a, stage.b, points=2)
    assert np.isnan(found.plateau) and found.line.loss.shape == (2,)


def _basin(stage):
    ways = [probe.filter_normalised(stage.a, seed=0), *convexity.unit_directions(stage.a, 1)]
    stage.require_there(*ways)
    if stage.network != "mlp":
        return
    found = convexity.basin(stage.risk, stage.a, ways, radii=[0, 1])
    assert found.rise.shape == (2, 2) and np.isnan(found.rise).all()


def _sharpness(stage):
    if not stage.differentiates:
        return
    found = convexity.sharpness(stage.risk, stage.a, rho=0.1, steps=1 + (stage.network == "mlp"))
    stage.require_there(found.direction)
    assert np.isnan(found.value)


def _rescale(stage):
    first, *_ = stage.linear
    units = stage.a[first].shape[0]
    for factors in (2.0, torch.ones(units, device=stage.device)):
        stage.require_there(convexity.rescale(stage.a, [first], [], factors))


def _star(stage):
    if not stage.differentiates:
        return
    network = stage.risk.network
    fixed = {**network.buffers}

    def loss(point, step):
        return F.cross_entropy(network({**fixed, **point}, stage.inputs), stage.targets)

    found = star([stage.a, stage.b], loss=loss, steps=1 + (stage.network == "mlp"))
    stage.require_there(found.centre)
    assert np.isnan(found.losses).all()


PARTS = (_hull, _descent, _basin, _sharpness, _rescale, _star)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
