"""How the methods of ensembling enter."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge.merge import ensembling
from sokmerge.merge.ensembling import Predictor
from sokmerge.params import Params
from sokmerge.studies.bake_off.scene import Outcome, Scene
from sokmerge.testbed import training

__all__ = ["ENTRIES"]

STEPS = 500
BATCH = 128


def _costing(predictor: Predictor) -> Outcome:
    return Outcome(predictor.function, passes=predictor.passes)


def probability_ensemble(scene: Scene) -> Outcome:
    return _costing(ensembling.probability_ensemble(scene.models, module=scene.module))


def logit_ensemble(scene: Scene) -> Outcome:
    return _costing(ensembling.logit_ensemble(scene.models, module=scene.module))


def snapshot_ensemble(scene: Scene) -> Outcome:
    """Five cycles of the better network's run, in as many epochs as it was trained."""
    cycle = scene.epochs // 5
    points = scene.run(schedule="cyclic", cycle=cycle)
    found = ensembling.snapshot_ensemble(points, module=scene.module, period=cycle)
    return _costing(found)


def fge(scene: Scene) -> Outcome:
    """From the better network on, with its own rate as the highest and a tenth as the lowest."""
    recipe = scene.told.models[scene.better]
    data = training.inputs_of(recipe, "train")

    def train(params: Params, rate: float) -> Params:
        once = replace(recipe, lr=rate, epochs=1, schedule="constant")
        return training.fine_tune(once, params, *data)

    how = {"train": train, "high": recipe.lr, "low": recipe.lr / 10, "period": 2, "cycles": 4}
    start = [scene.models[scene.better]]
    return _costing(ensembling.fge(start, module=scene.module, **how))


def learned_line(scene: Scene) -> Outcome:
    """Between the two networks; its middle is the merge."""
    line = ensembling.learned_line(scene.models, loss=_batches(scene), steps=STEPS)
    return scene.at(line.middle())


def simplex(scene: Scene) -> Outcome:
    """With two new corners that connect the two networks; an ensemble of six of its points."""
    found = ensembling.simplex(scene.models, loss=_batches(scene), steps=STEPS)
    return _costing(found.ensemble(6, module=scene.module, seed=0))


def branch_train_merge(scene: Scene) -> Outcome:
    posterior = ensembling.domains([x for x, _ in scene.own_examples])
    how = {"module": scene.module, "posterior": posterior}
    return _costing(ensembling.branch_train_merge(scene.models, **how))


def smear(scene: Scene) -> Outcome:
    inputs, targets = scene.examples

    def loss(outputs: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets[rows])

    how = {"module": scene.module, "inputs": inputs, "loss": loss}
    return _costing(ensembling.smear(scene.models, **how))


def wemoe(scene: Scene) -> Outcome:
    inputs = [x for x, _ in scene.own_examples]
    how = {"base": scene.base, "module": scene.module, "inputs": inputs}
    return _costing(ensembling.wemoe(scene.models, **how))


def twin_merging(scene: Scene) -> Outcome:
    inputs = [x for x, _ in scene.own_examples]
    how = {"base": scene.base, "module": scene.module, "inputs": inputs}
    return _costing(ensembling.twin_merging(scene.models, **how))


def _batches(scene: Scene):
    """Cross-entropy on a batch of the images of both networks; another one at each step."""
    parts = [training.inputs_of(recipe, "train") for recipe in scene.told.models]
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(scene.seed))
    batches = order.split(BATCH)

    def loss(params: Params, step: int) -> Tensor:
        rows = batches[step % len(batches)]
        outputs = torch.func.functional_call(scene.module, dict(params), (inputs[rows],))
        return F.cross_entropy(outputs, targets[rows])

    return loss


ENTRIES = {
    f.__name__: f
    for f in (
        probability_ensemble, logit_ensemble, snapshot_ensemble, fge, learned_line, simplex,
        branch_train_merge, smear, wemoe, twin_merging,
    )
}  # fmt: skip
