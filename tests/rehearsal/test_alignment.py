"""Neuron alignment, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import merge
from sokmerge.symmetry import PermutationGroup


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


def _fit(stage):
    """A loss that can be differentiated."""

    def loss(point):
        outputs = torch.func.functional_call(
            stage.module, {**dict(stage.module.named_buffers()), **point}, (stage.inputs,)
        )
        return torch.nn.functional.cross_entropy(outputs, stage.targets)

    return loss


def _straight_through(stage):
    if not stage.differentiates:
        return
    found = merge.straight_through_matching(
        stage.a, stage.b, stage.group, loss=_fit(stage), steps=1
    )
    stage.require_there(stage.group.act(found.permutation, stage.b))


def _sinkhorn(stage):
    if not stage.differentiates:
        return
    found = merge.sinkhorn_matching(
        stage.a, stage.b, stage.group, loss=_fit(stage), steps=1, iterations=1
    )
    assert np.isnan(found.similarity)
    assert merge.sinkhorn_matching(stage.a, stage.b, stage.group, steps=1, iterations=1).passes == 1


def _annealed(stage):
    found = merge.annealed_matching(
        stage.a, stage.b, stage.group, score=lambda point: -stage.risk(point).loss, steps=1
    )
    stage.require_there(stage.group.act(found.permutation, stage.b))


def _cycle_consistent(stage):
    if not stage.differentiates:
        return
    models = [stage.a, stage.b]
    found = merge.cycle_consistent_matching(models, stage.group)
    assert np.isnan(found.similarity) and found.passes == 1
    stage.require_there(stage.group.act(found.between(0, 1), stage.b))


# The blocks whose units a linear map may mix; all of them where the network has none.
MIXABLE = {"cnn": ("3", "6"), "transformer": ("layers.0.up", "layers.1.up")}


def _cca(stage):
    names = MIXABLE.get(stage.network, tuple(block.name for block in stage.group.blocks))
    group = PermutationGroup(tuple(b for b in stage.group.blocks if b.name in names))
    models = [stage.a, stage.b]
    stage.require_there(merge.cca_merge(stage.module, models, group, stage.inputs, chunk=4))


def _repair(stage):
    models = [stage.a, stage.b]
    stage.require_there(
        merge.repair(stage.module, models, stage.group, stage.inputs, weights=[1, 2], chunk=4)
    )


def _tact(stage):
    tasks = [stage.inputs, stage.inputs]
    stage.require_there(*merge.tact(stage.module, [stage.a, stage.b], stage.group, tasks))


def _ot_fusion(stage):
    models = [stage.a, stage.b]
    stage.require_there(
        merge.ot_fusion(stage.module, models, stage.group),
        merge.ot_fusion(stage.module, models, stage.group, inputs=stage.inputs, chunk=4),
    )


def _pfnm(stage):
    counts = [torch.ones(len(stage.a[stage.linear[-1]]), device=stage.device)] * 2
    stage.require_there(
        merge.pfnm([stage.a, stage.b], stage.group, counts=counts, passes=1),
    )


def _fedma(stage):
    models = [stage.a, stage.b]
    stage.require_there(
        merge.fedma(stage.module, models, stage.group, train=lambda j, point, frozen: point)
    )


def _zipit(stage):
    models = [stage.a, stage.b]
    stage.require_there(merge.zipit(stage.module, models, stage.group, stage.inputs, chunk=4))
    if stage.network in ("mlp", "cnn"):
        stage.require_there(
            *merge.partial_zipit(stage.module, models, stage.group, stage.inputs, layers=1)
        )


# The blocks whose units one linear layer makes; all of them where the network has none.
LINEAR = {"cnn": ("6",), "transformer": ("layers.0.up", "layers.1.up")}


def _pleas(stage):
    names = LINEAR.get(stage.network, tuple(block.name for block in stage.group.blocks))
    group = PermutationGroup(tuple(b for b in stage.group.blocks if b.name in names))
    models = [stage.a, stage.b]
    stage.require_there(merge.pleas(stage.module, models, group, stage.inputs, width=1.5, chunk=4))


CASES = {
    "fedma": _fedma,
    "ot_fusion": _ot_fusion,
    "pfnm": _pfnm,
    "pleas": _pleas,
    "zipit": _zipit,
    "annealed_matching": _annealed,
    "cca_merge": _cca,
    "cycle_consistent_matching": _cycle_consistent,
    "repair": _repair,
    "sinkhorn_matching": _sinkhorn,
    "straight_through_matching": _straight_through,
    "tact": _tact,
    "activation_matching": _activation_matching,
    "weight_matching": _weight_matching,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {
    ("cca_merge", "residual"): "all its units pass through a normalisation of single units",
    ("fedma", "residual"): "several layers make the units of the residual stream",
    ("fedma", "transformer"): "several layers make the units of the residual stream",
    ("pfnm", "cnn"): "it is for chains of linear layers",
    ("pfnm", "residual"): "it is for chains of linear layers",
    ("pfnm", "transformer"): "it is for chains of linear layers",
    ("pleas", "residual"): "it fits linear layers, and here convolutions make the units",
}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("alignment")


def test_the_loss_of_variance_runs_where_no_number_is_known(stage):
    layers = dict(stage.module.named_modules())
    group = PermutationGroup(tuple(b for b in stage.group.blocks if b.name in layers))
    found = merge.variance_ratio(stage.module, stage.a, stage.b, group, stage.inputs)
    assert len(found) >= 1 and all(np.isnan(each.measured) for each in found)


# What it is made of is rehearsed everywhere; here there are BatchNorm and layers to repair.
@pytest.mark.parametrize("stage", [("meta", "cnn")], ids="-".join, indirect=True)
def test_alignment_in_one_call_runs_where_no_number_is_known(stage):
    models = [stage.a, stage.b]
    found = merge.aligned(stage.module, models, stage.inputs, group=stage.group, chunk=4)
    stage.require_there(found.params)
    with pytest.warns(UserWarning, match="no inputs"):
        stage.require_there(merge.aligned(stage.module, models, group=stage.group).params)


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
