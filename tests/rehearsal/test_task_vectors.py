"""Task vectors, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import pytest

from sokmerge import merge
from sokmerge.merge import task_vectors


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


CASES = {
    "breadcrumbs": _breadcrumbs,
    "consensus": _consensus,
    "dare": _dare,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("task_vectors")


def test_emr_runs_where_no_number_is_known(stage):
    stage.require_there(task_vectors.emr([stage.a, stage.b], base=stage.c).task(1))
