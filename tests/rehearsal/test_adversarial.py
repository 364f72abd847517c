"""Attacks, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest

from sokmerge.network import Network
from sokmerge.probe.adversarial import fgsm, pgd


def _there(stage, found):
    assert found.inputs.shape == stage.inputs.shape and found.success.shape == (6,)
    stage.require_there({"inputs": found.inputs, "success": found.success, "loss": found.loss})
    assert np.isnan(found.accuracy)


def _fgsm(stage):
    if not stage.differentiates or stage.network not in ("cnn", "transformer"):
        return  # a gradient has many operations: each network meets one of the two
    found = fgsm(
        Network(stage.module), stage.a, stage.inputs, stage.targets, epsilon=0.1, bounds=(0.0, 1.0)
    )
    _there(stage, found)


def _pgd(stage):
    """Where no gradient can be rehearsed, the starts alone."""
    if stage.network not in ("mlp", "residual"):
        return
    found = pgd(
        Network(stage.module), stage.a, stage.inputs, stage.targets, epsilon=0.1,
        steps=int(stage.differentiates), bounds=(0.0, 1.0), key="r", chunk=4,
    )  # fmt: skip
    _there(stage, found)


PARTS = (_fgsm, _pgd)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
