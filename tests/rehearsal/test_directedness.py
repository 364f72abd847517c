"""The probes of directedness, rehearsed for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sokmerge import probe
from sokmerge.network import Network
from sokmerge.probe import directedness as d
from sokmerge.probe.curvature import Layout


def _subspaces(stage):
    layout = Layout({name: tensor.shape for name, tensor in stage.a.items()})
    basis = torch.empty(2, layout.size, device=stage.device)
    vector = layout.flatten(stage.b)
    assert np.isnan(d.share(basis, vector).values).all() and np.isnan(d.overlap(basis, basis))
    stage.require_there(*(layout.unflatten(part) for part in d.split(vector, basis)))


def _descent(stage):
    if not stage.differentiates or stage.network != "mlp":
        return
    network = Network(stage.module)
    layout = Layout({name: tensor.shape for name, tensor in stage.a.items()})

    def loss(point, step):
        return F.cross_entropy(network(point, stage.inputs), stage.targets)

    def subspace(point):
        return torch.empty(2, layout.size, device=stage.device)

    found = d.projected_descent(
        stage.a, loss=loss, subspace=subspace, keep="outside", lr=0.1, steps=2, at=[0]
    )
    stage.require_there(*found.points)
    assert np.isnan(found.shares).all()


def _random_subspaces(stage):
    for kind in ("sparse", "dense"):
        space = d.random_subspace(stage.a, 3, seed=0, kind=kind)
        stage.require_there(space.point(torch.empty(3, device=stage.device)))


def _disentanglement(stage):
    if stage.network not in ("mlp", "transformer"):
        return  # what predicts here has no statistics to estimate
    found = d.disentanglement(
        Network(stage.module), stage.a, (stage.b, stage.c), (stage.inputs, stage.inputs),
        alphas=[0.0, 1.0], betas=[1.0], chunk=4,
    )  # fmt: skip
    assert found.error.shape == (2, 1) and np.isnan(found.stderr).all()


def _entries(stage):
    turned = [d.flip_signs(stage.b, 0.2, which=which) for which in ("largest", "random")]
    stage.require_there(*turned)
    if stage.network not in ("mlp", "cnn"):
        return
    risk = probe.EmpiricalRisk(stage.module, stage.inputs, stage.targets, chunk=4)
    assert np.isnan(d.gains(risk, stage.a, stage.b, turned).kept).all()


PARTS = (_subspaces, _descent, _random_subspaces, _disentanglement, _entries)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
