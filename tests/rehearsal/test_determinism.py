"""The probes of determinism, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest

from sokmerge.network import Network
from sokmerge.probe import determinism


def _instability(stage):
    found = determinism.instability(stage.risk, [stage.a, stage.b], points=2, inputs=stage.inputs)
    assert np.isnan(found.loss).all() and np.isnan(found.distance).all() and not found.stable()


def _tangent_kernel(stage):
    if not stage.differentiates or stage.network not in ("mlp", "cnn"):
        return  # a gradient has many operations: the smallest network, and one with BatchNorm
    kernel = determinism.tangent_kernel(Network(stage.module), stage.a, stage.inputs[:2])
    stage.require_there({"kernel": kernel})
    assert kernel.shape == (6, 6) and np.isnan(determinism.kernel_distance(kernel, kernel))


def _pushes(stage):
    stage.require_there(
        determinism.push_one_weight(stage.a, 0.1, 0), determinism.push_all_weights(stage.a, 0.1, 0)
    )


def _pruning(stage):
    first, second = determinism.iterative_pruning(
        lambda mask: determinism.masked(stage.b, mask), stage.a, share=0.5, rounds=2
    )
    drawn = determinism.shuffled_mask(second, 0)
    stage.require_there(first, second, drawn)


PARTS = (_instability, _tangent_kernel, _pushes, _pruning)
ROUTINES = {f.__name__[1:]: f for f in PARTS}


@pytest.mark.parametrize("name", ROUTINES)
def test_it_runs_where_no_number_is_known(stage, name):
    ROUTINES[name](stage)
