"""Who contributed, who stands out, and who was a member, rehearsed for devices not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge.probe.contributors import ingredients, outlyingness
from sokmerge.probe.membership import loss_scores, membership
from sokmerge.probe.roc import auc, roc


def _outlyingness(stage):
    found = outlyingness([stage.a, stage.b, stage.c], stage.a)
    for values in (found.norm, found.cosine, found.conflict, found.distance):
        assert values.shape == (3,) and np.isnan(values).all()


def _ingredients(stage):
    found = ingredients(stage.c, [stage.a, stage.b], stage.a)
    for values in (found.coefficient, found.stderr, found.cosine):
        assert values.shape == (2,) and np.isnan(values).all()
    assert np.isnan(found.residual)


def _membership(stage):
    assert loss_scores(stage.risk, stage.a).device.type == stage.device.type
    found = membership(stage.risk, stage.risk, stage.a)
    assert np.isnan(found.auc.value) and np.isnan(found.gap)


def _roc(stage):
    scores = torch.empty(4, device=stage.device)
    assert np.isnan(auc(scores, scores).value)
    assert roc(scores, scores).true_positive.shape == (2,)  # all unknowns are one value


PARTS = (_outlyingness, _ingredients, _membership, _roc)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    if stage.network == "mlp":  # the others have more tensors, and no other kinds of work
        ROUTINES[name](stage)
