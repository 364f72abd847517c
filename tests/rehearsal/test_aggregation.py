"""Weight aggregation, rehearsed on every network for devices that are not there."""

from __future__ import annotations

import pytest

from sokmerge import merge


def _average(stage):
    stage.require_there(merge.average([stage.a, stage.b, stage.c], weights=[1, 2, 3]))


def _slerp(stage):
    stage.require_there(merge.slerp([stage.a, stage.b], alpha=0.3), merge.slerp(stage.halves[:2]))


def _model_stock(stage):
    stage.require_there(merge.model_stock([stage.a, stage.b], base=stage.c))


def _greedy_soup(stage):
    def score(point):
        return stage.risk(point).accuracy

    stage.require_there(merge.greedy_soup([stage.a, stage.b], score=score))


def _fisher(stage):
    models = [stage.a, stage.b]
    fishers = models
    if stage.differentiates:
        fishers = [merge.fisher_diagonal(stage.module, stage.a, stage.inputs, chunk=6)] * 2
        stage.require_there(fishers[0])
        assert fishers[0].keys() == stage.a.keys()
    stage.require_there(merge.fisher(models, fishers=fishers, weights=[1, 2]))


def _regmean(stage):
    models = [stage.a, stage.b]
    grams = [merge.gram_matrices(stage.module, m, stage.inputs, chunk=4) for m in models]
    stage.require_there(grams[0])
    assert grams[0].keys() == set(stage.linear)
    stage.require_there(merge.regmean(models, grams=grams, weights=[1, 2]))


CASES = {
    "average": _average,
    "fisher": _fisher,
    "greedy_soup": _greedy_soup,
    "model_stock": _model_stock,
    "regmean": _regmean,
    "slerp": _slerp,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("aggregation")
