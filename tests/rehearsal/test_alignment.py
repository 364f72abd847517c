"""Neuron alignment, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import merge


def _weight_matching(stage):
    found = merge.weight_matching(stage.a, stage.b, stage.group)
    assert found.passes == 1 and np.isnan(found.similarity)
    stage.require_there(stage.group.act(found.permutation, stage.b))


def _activation_matching(stage):
    for similarity in ("inner product", "correlation"):
        found = merge.activation_matching(
            stage.module,
            stage.a,
            stage.b,
            stage.group,
            stage.inputs,
            similarity=similarity,
            chunk=4,
        )
        stage.require_there(stage.group.act(found.permutation, stage.b))


CASES = {
    "activation_matching": _activation_matching,
    "weight_matching": _weight_matching,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("alignment")


def test_elements_of_the_group_run_where_no_number_is_known(stage):
    group = stage.group
    p, q = group.sample(0), group.sample(1)
    element = group.compose(group.invert(p), q)
    there = {name: order.to(stage.device) for name, order in element.items()}
    stage.require_there(group.act(element, stage.a), group.act(there, stage.a))


def test_the_groups_of_the_rehearsal_are_symmetries(real):
    state = {**dict(real.module.named_parameters()), **dict(real.module.named_buffers())}
    for seed in range(3):
        element = real.group.sample(seed)
        moved = real.group.act(element, state)
        assert any((moved[k] - t).abs().max() > 1e-3 for k, t in state.items()), "it moves"
        with torch.no_grad():
            expected = torch.func.functional_call(real.module, state, (real.inputs,))
            found = torch.func.functional_call(real.module, moved, (real.inputs,))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert expected.std() > 1e-2, "the outputs say something"
