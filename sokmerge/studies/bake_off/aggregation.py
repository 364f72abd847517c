"""How the methods of weight aggregation enter."""

from __future__ import annotations

from sokmerge import merge
from sokmerge.studies.bake_off.scene import Outcome, Scene

__all__ = ["ENTRIES"]


def average(scene: Scene) -> Outcome:
    return scene.at(merge.average(scene.models))


def slerp(scene: Scene) -> Outcome:
    return scene.at(merge.slerp(scene.models))


def fisher(scene: Scene) -> Outcome:
    fishers = [
        merge.fisher_diagonal(scene.module, model, inputs)
        for model, (inputs, _) in zip(scene.models, scene.own_examples, strict=True)
    ]
    return scene.at(merge.fisher(scene.models, fishers=fishers))


def regmean(scene: Scene) -> Outcome:
    grams = [
        merge.gram_matrices(scene.module, model, inputs)
        for model, (inputs, _) in zip(scene.models, scene.own_examples, strict=True)
    ]
    return scene.at(merge.regmean(scene.models, grams=grams))


def model_stock(scene: Scene) -> Outcome:
    return scene.at(merge.model_stock(scene.models, base=scene.base))


def greedy_soup(scene: Scene) -> Outcome:
    return scene.at(merge.greedy_soup(scene.models, score=scene.score))


def wise_ft(scene: Scene) -> Outcome:
    return scene.at(merge.wise_ft(scene.models, base=scene.base))


def learned_soup(scene: Scene) -> Outcome:
    return scene.at(merge.learned_soup(scene.models, loss=scene.loss))


def adamerging(scene: Scene) -> Outcome:
    inputs = [x for x, _ in scene.own_examples]
    how = {"base": scene.base, "module": scene.module, "inputs": inputs}
    return scene.at(merge.adamerging(scene.models, **how))


def representation_surgery(scene: Scene) -> Outcome:
    inputs = [x for x, _ in scene.own_examples]
    how = {"module": scene.module, "layer": "head", "inputs": inputs}
    return Outcome(merge.representation_surgery(scene.models, **how))


def evolutionary(scene: Scene) -> Outcome:
    return scene.at(merge.evolutionary(scene.models, score=scene.score, base=scene.base))


def ema(scene: Scene) -> Outcome:
    """Along a run of the better network at a constant rate, as with the two that follow."""
    return scene.at(merge.ema(scene.run(schedule="constant")))


def swa(scene: Scene) -> Outcome:
    """Over the second half of the run."""
    points = scene.run(schedule="constant")
    return scene.at(merge.swa(points[len(points) // 2 :]))


def lawa(scene: Scene) -> Outcome:
    return scene.at(merge.lawa(scene.run(schedule="constant")))


def fedavg(scene: Scene) -> Outcome:
    """A round after each epoch, from the common start or the initial weights of the first."""
    return scene.at(merge.fedavg(scene.base, scene.clients(1), rounds=scene.epochs))


def cold_fusion(scene: Scene) -> Outcome:
    """The same in five rounds, after a fifth of the epochs each."""
    clients = scene.clients(scene.epochs // 5)
    return scene.at(merge.cold_fusion(scene.base, clients, rounds=5))


def papa(scene: Scene) -> Outcome:
    """A pull of a tenth after each epoch, and the average of the population at the end."""
    population = merge.papa(scene.starts, scene.clients(1), rounds=scene.epochs, rate=0.1)
    return scene.at(merge.average(population))


ENTRIES = {
    f.__name__: f
    for f in (
        average, slerp, wise_ft, model_stock, fisher, regmean, greedy_soup, learned_soup,
        evolutionary, adamerging, representation_surgery, ema, swa, lawa, fedavg, cold_fusion, papa,
    )
}  # fmt: skip
