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


def _trajectory(name, **options):
    def case(stage):
        points = [stage.a, stage.b, stage.c]
        stage.require_there(getattr(merge, name)(iter(points), **options))

    return case


def _trains(stage):
    """What a client does with parameters: something, in place and out of it."""

    def client(params):
        return {name: tensor.add_(1) * 2 for name, tensor in params.items()}

    return [client] * 3


def _fedavg(stage):
    stage.require_there(
        merge.fedavg(stage.a, _trains(stage), weights=[1, 2, 3], fraction=0.7),
        *merge.outer_step(stage.a, [stage.b, stage.c], stage.b, weights=[1, 2]),
    )
    assert merge.bytes_communicated(stage.a, clients=2, rounds=3) > 0


def _cold_fusion(stage):
    stage.require_there(merge.cold_fusion(stage.a, _trains(stage), number=2, own=[min(stage.a)]))


def _papa(stage):
    models = [stage.a, stage.b, stage.c]
    stage.require_there(*merge.papa(models, _trains(stage), rate=0.1, partners=2))


def _wise_ft(stage):
    stage.require_there(merge.wise_ft([stage.a, stage.b], base=stage.c, alpha=0.3))


def _squares(params):
    return sum(tensor.square().sum() for tensor in params.values())


def _learned_soup(stage):
    steps = 2 if stage.differentiates else 0
    models = [stage.a, stage.b]
    stage.require_there(merge.learned_soup(models, loss=_squares, steps=steps, layerwise=True))


def _adamerging(stage):
    stage.require_there(
        merge.adamerging(
            [stage.a, stage.b],
            base=stage.c,
            module=stage.module,
            inputs=[stage.inputs, stage.inputs[:3]],
            steps=1 if stage.differentiates else 0,
        )
    )


def _representation_surgery(stage):
    last = list(dict(stage.module.named_modules()))[-1]
    operated = merge.representation_surgery(
        [stage.a],
        module=stage.module,
        layer=last,
        inputs=[stage.inputs],
        rank=2,
        steps=1 if stage.differentiates else 0,
    )
    for each in operated:
        found = {"down": each.down, "up": each.up, "before": each.before, "after": each.after}
        stage.require_there(found, {"outputs": each(stage.inputs)})


def _evolutionary(stage):
    def score(point):
        return stage.risk(point).accuracy

    stage.require_there(merge.evolutionary([stage.a, stage.b], score=score, base=stage.c, budget=5))


CASES = {
    "adamerging": _adamerging,
    "average": _average,
    "cold_fusion": _cold_fusion,
    "ema": _trajectory("ema", decay=0.5, debias=True),
    "evolutionary": _evolutionary,
    "fedavg": _fedavg,
    "fisher": _fisher,
    "greedy_soup": _greedy_soup,
    "lawa": _trajectory("lawa", window=2),
    "learned_soup": _learned_soup,
    "model_stock": _model_stock,
    "papa": _papa,
    "regmean": _regmean,
    "representation_surgery": _representation_surgery,
    "slerp": _slerp,
    "swa": _trajectory("swa"),
    "wise_ft": _wise_ft,
}

# (method, network): why the method refuses it.
DOES_NOT_APPLY: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("name", CASES)
def test_it_runs_where_no_number_is_known(stage, rehearse, name):
    rehearse(CASES[name], stage, DOES_NOT_APPLY.get((name, stage.network)))


def test_every_declared_method_is_rehearsed(declared):
    assert set(CASES) == declared("aggregation")
