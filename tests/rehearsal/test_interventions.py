"""Interventions on units and exchanged features, rehearsed where no number is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import params
from sokmerge.probe import ablation, exchange, steering


def _last(stage):
    return stage.linear[-1].removesuffix(".weight")


def _fixed(stage):
    if stage.network not in ("mlp", "cnn"):  # their last layers are as in these
        return
    found = ablation.mean_ablation(stage.risk, stage.a, _last(stage), [[0, 1]], at="input")
    assert np.isnan(found.loss).all() and found.n == 6


def _transplanted(stage):
    if stage.network != "mlp":  # rows are rows
        return
    stage.require_there(ablation.transplant(stage.a, stage.b, {_last(stage): [1]}))
    found = ablation.transplant_effects(stage.risk, stage.a, stage.b, _last(stage), [0])
    assert np.isnan(found.loss).all()


def _steered(stage):
    size = stage.a[stage.linear[-1]].shape[1]
    rows = torch.empty(6, size, device=stage.device)
    found = steering.difference_of_means(rows, rows)
    stage.require_there({"v": found.vector, "s": found.stderr, "r": found.reliability})
    if stage.network == "mlp":
        value = steering.steered(stage.risk, stage.a, _last(stage), found.vector, at="input")
        assert np.isnan(value.loss)
    if f"{_last(stage)}.bias" in stage.a:
        stage.require_there(steering.absorbed(stage.a, _last(stage), found.vector))


def _exchanged(stage):
    if stage.network != "mlp":  # features are features
        return
    rows = torch.empty(6, 4, device=stage.device)
    stage.require_there({"r": exchange.relative(rows, rows[:2])})
    found = exchange.exchange(
        (rows, stage.targets), (rows[:2], rows[:2]), (rows, rows, stage.targets), 3
    )
    assert np.isnan(list(found.error.values())).all() and not params.has_values(rows)


PARTS = (_fixed, _transplanted, _steered, _exchanged)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
