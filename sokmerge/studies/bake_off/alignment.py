"""How the methods of neuron alignment enter."""

from __future__ import annotations

from sokmerge import merge
from sokmerge.studies.bake_off.scene import Outcome, Scene

__all__ = ["ENTRIES"]


def weight_matching(scene: Scene) -> Outcome:
    return scene.matched(merge.weight_matching(*scene.models, scene.group))


def activation_matching(scene: Scene) -> Outcome:
    first, second = scene.models
    found = merge.activation_matching(scene.module, first, second, scene.group, scene.examples[0])
    return scene.matched(found)


def straight_through_matching(scene: Scene) -> Outcome:
    found = merge.straight_through_matching(*scene.models, scene.group, loss=scene.loss)
    return scene.matched(found)


def sinkhorn_matching(scene: Scene) -> Outcome:
    return scene.matched(merge.sinkhorn_matching(*scene.models, scene.group, loss=scene.loss))


def annealed_matching(scene: Scene) -> Outcome:
    first, second = scene.models

    def score(params):
        return -scene.risk(merge.average([first, params])).loss

    return scene.matched(merge.annealed_matching(first, second, scene.group, score=score))


def cycle_consistent_matching(scene: Scene) -> Outcome:
    found = merge.cycle_consistent_matching(scene.models, scene.group)
    orders = zip(found.permutations, scene.models, strict=True)
    return scene.at(merge.average([scene.group.act(order, model) for order, model in orders]))


def cca_merge(scene: Scene) -> Outcome:
    return scene.at(merge.cca_merge(scene.module, scene.models, scene.group, scene.examples[0]))


def repair(scene: Scene) -> Outcome:
    """After weight matching."""
    models = scene.aligned(merge.weight_matching(*scene.models, scene.group))
    return scene.at(merge.repair(scene.module, models, scene.group, scene.examples[0]))


def tact(scene: Scene) -> Outcome:
    """After weight matching."""
    models = scene.aligned(merge.weight_matching(*scene.models, scene.group))
    inputs = [x for x, _ in scene.own_examples]
    return scene.per_task(merge.tact(scene.module, models, scene.group, inputs))


def ot_fusion(scene: Scene) -> Outcome:
    """By what the weights of the units say."""
    return scene.at(merge.ot_fusion(scene.module, scene.models, scene.group))


def pfnm(scene: Scene) -> Outcome:
    """It chooses its own width."""
    return scene.resized(merge.pfnm(scene.models, scene.group))


def fedma(scene: Scene) -> Outcome:
    """In a single pass, without training between the layers; it chooses its own width."""
    return scene.resized(merge.fedma(scene.module, scene.models, scene.group))


def zipit(scene: Scene) -> Outcome:
    return scene.at(merge.zipit(scene.module, scene.models, scene.group, scene.examples[0]))


def pleas(scene: Scene) -> Outcome:
    return scene.at(merge.pleas(scene.module, scene.models, scene.group, scene.examples[0]))


ENTRIES = {
    f.__name__: f
    for f in (
        weight_matching, activation_matching, straight_through_matching, sinkhorn_matching,
        annealed_matching, cycle_consistent_matching, ot_fusion, pfnm, fedma, cca_merge, zipit,
        pleas, repair, tact,
    )
}  # fmt: skip
