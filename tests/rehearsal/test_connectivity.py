"""The probes of mode connectivity and of representations, rehearsed where no number is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sokmerge import probe
from sokmerge.network import Network
from sokmerge.probe import connectivity


def _loss(stage):
    return lambda point, step: (
        torch.func.functional_call(stage.module, dict(point), (stage.inputs,)).square().mean()
    )


def _ends(stage):
    """The names of the linear layers, which the smallest networks are stitched at."""
    return [n for n, m in stage.module.named_modules() if isinstance(m, nn.Linear)]


def _representation(stage):
    layers = _ends(stage)[-1:]
    seen = probe.activations(Network(stage.module), stage.a, stage.inputs, layers, chunk=4)
    stage.require_there(seen)
    rows = seen[layers[0]].flatten(1)
    assert np.isnan(probe.linear_cka(rows, rows)) and np.isnan(probe.disagreement(rows, rows))
    stage.require_there({"cosine": probe.feature_cosine(rows, rows)})


def _curve(stage):
    curve = connectivity.Curve((stage.a, stage.b))
    stage.require_there(curve(0.3))
    found = connectivity.along(stage.risk, curve, points=2)
    assert np.isnan(found.barrier) and np.isnan(found.connectivity) and np.isnan(found.length)


def _training(stage):
    """On the smallest networks alone: nothing in it depends on what the layers are."""
    if stage.network != "mlp" or not stage.differentiates:
        return
    how = {"loss": _loss(stage), "steps": 1}
    stage.require_there(connectivity.geodesic(stage.a, stage.b, **how)(0.5))
    band = connectivity.autoneb(stage.a, stage.b, measure=lambda p: np.nan, cycles=1, **how)
    stage.require_there(band.curve(0.5))


def _layers(stage):
    names = [*stage.a][-1:]
    found = connectivity.layer_barriers(stage.risk, stage.a, stage.b, {"last": names}, points=2)
    assert np.isnan(found.loss).all()
    if stage.network in ("mlp", "cnn"):
        known = connectivity.feature_connectivity(
            Network(stage.module), stage.a, stage.b, stage.inputs, _ends(stage)[-1:]
        )
        assert np.isnan(known.gap).all() and np.isnan(known.cka).all()


def _stitches(stage):
    if stage.network == "mlp" and stage.differentiates:
        layers = _ends(stage)[-1:]
        how = {"fit": stage.risk, "steps": 1}
        found = connectivity.stitching(stage.risk, stage.a, stage.b, layers, **how)
        assert np.isnan(found.penalty).all()


def _spokes(stage):
    if stage.network != "mlp":
        return
    found = connectivity.spokes(stage.risk, stage.a, [stage.b, stage.c], points=2)
    assert np.isnan(found.lengths).all()


PARTS = (_representation, _curve, _training, _layers, _stitches, _spokes)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
