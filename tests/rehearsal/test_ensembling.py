"""Ensembling, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sokmerge import merge
from sokmerge.merge import ensembling
from sokmerge.network import Network


def _models(stage):
    return [stage.a, stage.b]


def _full(stage):
    """The models with the buffers of the module, which say what BatchNorm subtracts."""
    buffers = Network(stage.module).buffers
    return [{**buffers, **point} for point in (stage.a, stage.b, stage.c)]


def _even(stage):
    def router(x):
        return torch.full((len(x), 2), 0.5, device=x.device, dtype=x.dtype)

    return router


def _there(stage, predict):
    outputs = predict(stage.inputs)
    stage.require_there({"outputs": outputs})
    assert outputs.shape == (6, 3)


def _probability_ensemble(stage):
    how = {"module": stage.module, "calibration": stage.inputs}
    _there(stage, merge.probability_ensemble(_models(stage), **how))


def _logit_ensemble(stage):
    how = {"module": stage.module, "calibration": stage.inputs}
    _there(stage, merge.logit_ensemble(_models(stage), weights=[1, 2], **how))


def _snapshot_ensemble(stage):
    how = {"module": stage.module, "calibration": stage.inputs}
    _there(stage, merge.snapshot_ensemble(iter(_models(stage)), last=1, **how))


def _fge(stage):
    def train(point, rate):
        return merge.average([point, stage.c], weights=[1 - rate, rate])

    how = {"module": stage.module, "calibration": stage.inputs, "train": train}
    _there(stage, merge.fge([stage.a], high=0.5, low=0.1, period=2, cycles=1, **how))


def _loss(stage):
    network = Network(stage.module)

    def loss(point, step):
        return F.cross_entropy(network({**network.buffers, **point}, stage.inputs), stage.targets)

    return loss


def _learned_line(stage):
    steps = 1 if stage.differentiates else 0
    line = merge.learned_line(_models(stage), loss=_loss(stage), steps=steps, beta=1.0)
    stage.require_there(line.middle(), *line.sample(1, seed=0))


def _simplex(stage):
    steps = 1 if stage.differentiates else 0
    found = merge.simplex([stage.a], loss=_loss(stage), corners=1, steps=steps)
    stage.require_there(found.middle())
    assert ensembling.simplex_volume([stage.a, stage.b]).device.type == stage.device.type


def _branch_train_merge(stage):
    known = ensembling.domains([stage.inputs[:3], stage.inputs[3:]])
    found = ensembling.discover_domains(stage.inputs, 2, rounds=1)
    how = {"module": stage.module, "calibration": stage.inputs}
    _there(stage, merge.branch_train_merge(_models(stage), posterior=known, **how))
    assert found(stage.inputs).shape == (6, 2)
    averaged = ensembling.posterior_average(_models(stage), posterior=known, inputs=stage.inputs)
    stage.require_there(averaged)


def _smear(stage):
    a, b, _ = _full(stage)
    if not stage.differentiates:
        _there(stage, merge.smear([a, b], module=stage.module, router=_even(stage)))
        return

    def loss(outputs, rows):
        return F.cross_entropy(outputs, stage.targets[rows])

    how = {"module": stage.module, "inputs": stage.inputs, "loss": loss, "batch": 2}
    _there(stage, merge.smear([a, b], steps=1, **how))


def _wemoe(stage):
    a, b, base = _full(stage)
    how = {"base": base, "module": stage.module}
    if not stage.differentiates:
        _there(stage, merge.wemoe([a, b], router=_even(stage), **how))
        return
    _there(stage, merge.wemoe([a, b], inputs=[stage.inputs] * 2, steps=1, batch=2, **how))


def _twin_merging(stage):
    a, b, base = _full(stage)
    how = {"base": base, "module": stage.module, "rank": 1}
    if not stage.differentiates:
        _there(stage, merge.twin_merging([a, b], router=_even(stage), **how))
        return
    _there(stage, merge.twin_merging([a, b], inputs=[stage.inputs] * 2, steps=1, **how))


CASES = {
    "branch_train_merge": _branch_train_merge,
    "fge": _fge,
    "learned_line": _learned_line,
    "logit_ensemble": _logit_ensemble,
    "probability_ensemble": _probability_ensemble,
    "simplex": _simplex,
    "smear": _smear,
    "snapshot_ensemble": _snapshot_ensemble,
    "twin_merging": _twin_merging,
    "wemoe": _wemoe,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("ensembling")
