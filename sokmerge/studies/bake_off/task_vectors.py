"""How the methods on task vectors enter."""

from __future__ import annotations

from collections.abc import Callable

from sokmerge import merge
from sokmerge.studies.bake_off.scene import GRID, Outcome, Predictor, Scene


def _with_best_step(name: str, **how: object) -> Callable[[Scene], Outcome]:
    def enter(scene: Scene) -> Outcome:
        return scene.best_step(getattr(merge, name), **how)

    return enter


__all__ = ["ENTRIES"]


def emr(scene: Scene) -> Outcome:
    made = merge.emr(scene.models, base=scene.base)
    return scene.per_task([made.task(k) for k in (0, 1)])


def grafting(scene: Scene) -> Outcome:
    losses = [scene.own_loss(k) for k in (0, 1)]
    made = merge.grafting(scene.models, base=scene.base, losses=losses)
    return scene.per_task([made.task(k) for k in (0, 1)])


def concrete(scene: Scene) -> Outcome:
    """With the step that is best for task arithmetic, and from the entropy of predictions.

    At the default rate the entropy falls by saying one class of all images.
    """
    how = {"loss": scene.entropy, "seed": 0, "scale": scene.step, "lr": 1e-3}
    return scene.at(merge.concrete(scene.models, base=scene.base, **how))


def module_arithmetic(scene: Scene) -> Outcome | None:
    """On networks that were tuned at low rank, which the zoo has for one start and two tasks."""
    factors = scene.relatives("low-rank")
    return factors and scene.best_step(merge.module_arithmetic, models=factors)


def tangent(scene: Scene) -> Outcome | None:
    """On networks that were tuned in the tangent space, for one start and two tasks."""
    models = scene.relatives("tangent")
    if models is None:
        return None
    inputs, targets = scene.examples

    def predictor(scale: float) -> Predictor:
        return merge.tangent(models, module=scene.module, base=scene.base, scale=scale)

    def accuracy(scale: float) -> float:
        return (predictor(scale)(inputs).argmax(dim=1) == targets).double().mean().item()

    # The function and its directional derivative are computed in one pass, at about twice the cost.
    return Outcome(predictor(max(GRID, key=accuracy)), passes=2)


ENTRIES = {
    **{
        name: _with_best_step(name)
        for name in (
            "task_arithmetic",
            "ties",
            "breadcrumbs",
            "consensus",
            "knots",
            "tsv",
            "iso_c",
        )
    },
    **{name: _with_best_step(name, seed=0) for name in ("dare", "della")},
    **{f.__name__: f for f in (emr, grafting, concrete, module_arithmetic, tangent)},
}
