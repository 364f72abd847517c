"""Task vectors, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from sokmerge import merge
from sokmerge.merge import task_vectors
from sokmerge.network import Network


def _task_arithmetic(stage):
    models = [stage.a, stage.b]
    stage.require_there(
        merge.task_arithmetic(models, base=stage.c, weights=[1, -1]),
        *task_vectors.task_vectors(models, stage.c),
    )


def _ties(stage):
    stage.require_there(
        merge.ties([stage.a, stage.b], base=stage.c),
        merge.ties(stage.halves[:2], base=stage.halves[2], weights=[1, 2], scope="tensor"),
    )


def _dare(stage):
    stage.require_there(
        merge.dare([stage.a, stage.b], base=stage.c, seed=0),
        task_vectors.drop_and_rescale(stage.c, 0.5, seed=0),
    )


def _breadcrumbs(stage):
    stage.require_there(merge.breadcrumbs([stage.a, stage.b], base=stage.c))


def _consensus(stage):
    mask = task_vectors.tall_mask(stage.a, stage.c, stage.b)
    stage.require_there(
        merge.consensus([stage.a, stage.b], base=stage.c),
        task_vectors.apply_mask(mask, stage.b, stage.c),
    )


def _emr(stage):
    stage.require_there(merge.emr([stage.a, stage.b], base=stage.c).task(1))


def _della(stage):
    stage.require_there(
        merge.della([stage.a, stage.b], base=stage.c, seed=0),
        task_vectors.drop_by_magnitude(stage.c, 0.5, seed=0),
    )


def _loss(stage):
    network = Network(stage.module)

    def loss(point):
        outputs = network({**network.buffers, **point}, stage.inputs)
        return F.cross_entropy(outputs, stage.targets)

    return loss


def _grafting(stage):
    steps = 2 if stage.differentiates else 0
    losses = [_loss(stage)] * 2
    found = merge.grafting([stage.a, stage.b], base=stage.c, losses=losses, steps=steps)
    stage.require_there(found.task(0), found.task(1))


def _concrete(stage):
    steps = 2 if stage.differentiates else 0
    models = [stage.a, stage.b]
    stage.require_there(
        merge.concrete(models, base=stage.c, loss=_loss(stage), seed=0, steps=steps)
    )


def _tangent(stage):
    predict = merge.tangent([stage.a, stage.b], module=stage.module, base=stage.c)
    stage.require_there({"outputs": predict(stage.inputs)})


def _module_arithmetic(stage):
    models = [task_vectors.low_rank(m, base=stage.c, rank=2) for m in (stage.a, stage.b)]
    stage.require_there(
        *models,
        merge.module_arithmetic(models, base=stage.c, weights=[1, -1]),
        task_vectors.expand(models[0], base=stage.c),
    )


def _knots(stage):
    models = [stage.a, stage.b]
    stage.require_there(merge.knots(models, base=stage.c, merge=merge.ties, rank=3))


def _tsv(stage):
    stage.require_there(
        merge.tsv([stage.a, stage.b], base=stage.c),
        merge.tsv(stage.halves[:2], base=stage.halves[2], rank=1),
    )


def _iso_c(stage):
    stage.require_there(merge.iso_c([stage.a, stage.b], base=stage.c))


CASES = {
    "breadcrumbs": _breadcrumbs,
    "concrete": _concrete,
    "consensus": _consensus,
    "dare": _dare,
    "della": _della,
    "emr": _emr,
    "grafting": _grafting,
    "iso_c": _iso_c,
    "knots": _knots,
    "module_arithmetic": _module_arithmetic,
    "tangent": _tangent,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "tsv": _tsv,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("task_vectors")
