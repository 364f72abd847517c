"""Task vectors: four spoiled kinds of images, one base, and every method on the same grid.

What must be chosen, a scale or a share, is chosen on one half of the test images and reported on
the other; the halves hold as many images of each class. Every method may choose its scale from
:data:`SCALES` and one further option from a short list. A loss that is learned from takes
training images, an entropy the images of the half for choosing, without their labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.merge import task_vectors
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk
from sokmerge.studies.study import Study
from sokmerge.testbed import data, zoo
from sokmerge.testbed.adapters import Tangent
from sokmerge.testbed.recipes import CORRUPTIONS, HALVES, Recipe
from sokmerge.testbed.tasks import Share, Task
from sokmerge.testbed.training import train

__all__ = [
    "SCALES",
    "STUDY",
    "TASKS",
    "Setting",
    "gain_kept",
    "images",
    "nulls",
    "rows",
]

TASKS = tuple(CORRUPTIONS)

#: The scales from which every method chooses.
SCALES = (
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8),
    *(1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0),
)

Merge = Callable[..., Params]
Risks = Mapping[str, EmpiricalRisk]

KEPT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DROPPED = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
GRAFT = {"steps": 60, "lr": 0.1, "penalty": 0.3}


def images(task: str | Task | None, half: str) -> tuple[Tensor, Tensor]:
    """Return the test images of a task, those to choose by or those to report.

    Args:
        task: the name of one of :data:`TASKS`, a task, or None for images as they are.
        half: ``"choose"`` or ``"report"``.
    """
    task = CORRUPTIONS.get(task, task) if isinstance(task, str) else task
    chosen = Share(("report", "choose").index(half), 2)(*data.fashion("test"))
    return task(*chosen) if task else chosen


def nulls(vector: Params, seed: int) -> dict[str, dict[str, Tensor]]:
    """Return two steps that are as long as a task vector, tensor by tensor, and know no task.

    ``"shuffled"`` has the vector's own entries in a random order, ``"random"`` normal noise.
    """
    noise = params.normal_like(vector, seed)
    shuffled, random = {}, {}
    for name, tensor in vector.items():
        generator = params.stream(f"shuffled:{seed}:{name}")
        order = torch.randperm(tensor.numel(), generator=generator)
        shuffled[name] = tensor.flatten()[order].reshape(tensor.shape)
        random[name] = noise[name] * (tensor.norm() / noise[name].norm())
    return {"shuffled": shuffled, "random": random}


def gain_kept(
    risks: Risks, base: Params, whole: Sequence[Params], thinned: Sequence[Params]
) -> float:
    """Return how much of their gain thinned task vectors keep, in per cent, the mean over tasks.

    The gain of a task vector is what it adds to the accuracy of the base on its own task.
    """
    kept = []
    for risk, vector, less in zip(risks.values(), whole, thinned, strict=True):
        start, end, there = (
            risk(point).accuracy
            for point in (base, params.add(base, vector), params.add(base, less))
        )
        kept.append(100 * (there - start) / (end - start))
    return sum(kept) / len(kept)


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Measure all of it with the networks of one seed."""
    setting = Setting(seed)
    parts = (_references, _methods, _surer, _per_task, _ablation, _modules, _tangent, _thinned)
    for part in (*parts, _negation, _analogy):
        for method, option, task, x, value in part(setting):
            yield {
                "part": part.__name__[1:],
                "method": method,
                "option": option,
                "task": task,
                "x": float(x),
                "value": round(float(value), 6),
            }


class Setting:
    """The networks of one seed, and their risks on both halves of the test images.

    Attributes:
        base: the start of the four networks.
        models: one network fine-tuned on each of :data:`TASKS`.
        choose, report: for each task the risk on the images to choose by, and on those to report.
        module, network: the architecture.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.module, self.base = self.load("broad")
        self.network = Network(self.module)
        self.models = [self.load(task)[1] for task in TASKS]
        self.choose, self.report = (
            {task: EmpiricalRisk(self.module, *images(task, half)) for task in TASKS}
            for half in ("choose", "report")
        )

    def recipe(self, family: str) -> Recipe:
        return zoo.family(family)[self.seed]

    def load(self, family: str) -> tuple[nn.Module, Params]:
        return zoo.load(self.recipe(family))

    def outputs(self, point: Params, inputs: Tensor) -> Tensor:
        """Return what the network says, differentiable in the point."""
        return self.network({**self.network.buffers, **point}, inputs)


Measured = Iterator[tuple[str, str, str, float, float]]


def _accuracy(risks: Risks, point: Params) -> dict[str, float]:
    return {task: 100 * risk(point).accuracy for task, risk in risks.items()}


def _mean(accuracies: Mapping[str, float]) -> float:
    return sum(accuracies.values()) / len(accuracies)


def _tuned(
    setting: Setting, merges: Mapping[str, Merge], models: Sequence[Params], base: Params
) -> tuple[str, float, Params]:
    """Return the option, the scale and the network that do best on the half for choosing."""
    best = (-1.0, "", 0.0, base)
    for option, function in merges.items():
        # Every merge here is a base and a step; only the length of the step is tried.
        whole = function(models, base=base)
        for scale in SCALES:
            point = merge.task_arithmetic([whole], base=base, scale=scale)
            score = _mean(_accuracy(setting.choose, point))
            if score > best[0]:
                best = (score, option, scale, point)
    return best[1:]


def _references(setting: Setting) -> Measured:
    """The base, each network on each task, and training on all tasks together."""
    known = dict(zip(TASKS, setting.models, strict=True))
    known |= {"base": setting.base, "joint": setting.load("joint-tasks")[1]}
    for name, point in known.items():
        for task, value in _accuracy(setting.report, point).items():
            yield name, "", task, 1.0, value
            if name == task:
                yield "alone", "", task, 1.0, value


def _families() -> dict[str, dict[str, Merge]]:
    """Each method with the options from which it chooses."""
    grid = {
        "task_arithmetic": {"": {}},
        "ties": {f"density {d}": {"density": d} for d in (0.1, 0.2, 0.5, 1.0)},
        "dare": {f"drop {p}": {"drop": p, "seed": 0} for p in (0.3, 0.5, 0.9)},
        "breadcrumbs": {
            f"smallest {s}, largest {g}": {"smallest": s, "largest": g}
            for s, g in ((0.5, 0.005), (0.5, 0.01), (0.85, 0.005), (0.85, 0.01))
        },
        "consensus": {f"mask scale {s}": {"mask_scale": s} for s in (0.2, 0.4, 0.6, 0.8)},
        "della": {f"drop {p}": {"drop": p, "seed": 0} for p in (0.3, 0.5, 0.8)},
        "tsv": {"": {}},
        "iso_c": {"": {}},
        "knots": {f"density {d}": {"density": d} for d in (0.1, 0.2, 0.5, 1.0)},
    }
    families = {
        name: {
            option: partial(getattr(merge, name), **chosen) for option, chosen in options.items()
        }
        for name, options in grid.items()
    }
    families["knots"] = {
        option: partial(merge.knots, merge=partial(merge.ties, **chosen))
        for option, chosen in grid["knots"].items()
    }
    return families


def _methods(setting: Setting) -> Measured:
    """Every method that gives one network, with its option and its scale chosen."""
    families = _families() | _concrete(setting)
    for name, merges in families.items():
        option, scale, point = _tuned(setting, merges, setting.models, setting.base)
        for task, value in _accuracy(setting.report, point).items():
            yield name, option, task, scale, value


#: Near the scale that suits the sum without a mask; the scale is chosen after the mask is learned.
LEARNED_AT = 0.4
RATES = (0.1, 0.01, 0.001)


def _entropy(setting: Setting) -> Callable[[Params], Tensor]:
    """Return the entropy of the predictions on unlabelled images, the sum over tasks."""
    inputs = [images(task, "choose")[0][:500] for task in TASKS]

    def entropy(point: Params) -> Tensor:
        logs = (F.log_softmax(setting.outputs(point, x), 1) for x in inputs)
        return torch.stack([-(log.exp() * log).sum(1).mean() for log in logs]).sum()

    return entropy


def _labelled(setting: Setting) -> Callable[[Params], Tensor]:
    """Return the loss on 500 training images with labels, the sum over tasks."""
    batches = [CORRUPTIONS[task](*data.fashion("train", limit=500)) for task in TASKS]

    def loss(point: Params) -> Tensor:
        each = [F.cross_entropy(setting.outputs(point, x), y) for x, y in batches]
        return torch.stack(each).sum()

    return loss


def _learned(
    models: Sequence[Params],
    *,
    base: Params,
    loss: Callable[[Params], Tensor],
    lr: float,
    seed: int,
) -> Params:
    """Return the base and the whole step under a learned mask."""
    options = {"loss": loss, "lr": lr, "scale": LEARNED_AT, "steps": 60, "seed": seed}
    point = merge.concrete(models, base=base, **options)
    return merge.task_arithmetic([point], base=base, scale=1 / LEARNED_AT)


def _concrete(setting: Setting) -> dict[str, dict[str, Merge]]:
    """Masks learned from the entropy of predictions, as in the paper, or from labels."""
    losses = {"concrete": _entropy(setting), "concrete with labels": _labelled(setting)}
    return {
        name: {f"lr {lr}": partial(_learned, loss=loss, lr=lr, seed=setting.seed) for lr in RATES}
        for name, loss in losses.items()
    }


def _surer(setting: Setting) -> Measured:
    """What lowering the entropy does: to the entropy, in per cent of the most, and to accuracy."""
    entropy, base, most = _entropy(setting), setting.base, len(TASKS) * math.log(10)
    whole = merge.task_arithmetic(setting.models, base=base)
    sure = _learned(setting.models, base=base, loss=entropy, lr=RATES[0], seed=setting.seed)
    for when, lr, end in (("before", 0.0, whole), ("after", RATES[0], sure)):
        point = merge.task_arithmetic([end], base=base, scale=LEARNED_AT)
        yield f"entropy {when}", "", "mean", lr, 100 * float(entropy(point)) / most
        yield f"accuracy {when}", "", "mean", lr, _mean(_accuracy(setting.report, point))


def _per_task(setting: Setting) -> Measured:
    """What gives every task a network of its own, against the task's own network."""
    models, base = setting.models, setting.base
    modulated = merge.emr(models, base=base)
    merged = merge.task_arithmetic(models, base=base)
    for i, task in enumerate(TASKS):
        yield "emr", "", task, 1.0, _accuracy(setting.report, modulated.task(i))[task]
        found = []
        for scale in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
            mask = task_vectors.tall_mask(models[i], base, merged, scale)
            point = task_vectors.apply_mask(mask, merged, base)
            found.append((setting.choose[task](point).accuracy, scale, point, mask))
        _, scale, point, mask = max(found, key=lambda each: each[0])
        yield "tall_mask", f"scale {scale}", task, scale, _accuracy(setting.report, point)[task]
        share = sum(float(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
        yield "tall_mask share", "", task, scale, 100 * share
        for rank in (2, 5, 10):
            cut = merge.tsv([models[i]], base=base, rank=rank)
            yield "truncated", f"rank {rank}", task, 1.0, _accuracy(setting.report, cut)[task]


def _ablation(setting: Setting) -> Measured:
    """TIES without one of its steps, the others chosen as for the whole."""
    ties = merge.ties
    kept = (0.1, 0.2, 0.5)
    variants: dict[str, dict[str, Merge]] = {
        "whole": {f"density {d}": partial(ties, density=d) for d in kept},
        "no trimming": {"density 1": partial(ties, density=1.0)},
        "no election": {f"density {d}": partial(_unelected, density=d) for d in kept},
    }
    for name, merges in variants.items():
        option, scale, point = _tuned(setting, merges, setting.models, setting.base)
        yield name, option, "mean", scale, _mean(_accuracy(setting.report, point))
    found = []
    for density in kept:
        point = ties(setting.models, base=setting.base, density=density)
        found.append((_mean(_accuracy(setting.choose, point)), density, point))
    _, density, point = max(found, key=lambda each: each[0])
    yield "no scale", f"density {density}", "mean", 1.0, _mean(_accuracy(setting.report, point))


def _unelected(models: Sequence[Params], *, base: Params, density: float) -> Params:
    """Trim, then the mean of what was kept, whatever its sign."""
    trimmed = [task_vectors.trim(t, density) for t in task_vectors.task_vectors(models, base)]
    step = {}
    for name in base:
        stack = torch.stack([t[name] for t in trimmed])
        step[name] = stack.sum(0) / (stack != 0).sum(0).clamp(min=1)
    return params.add(base, step)


def _modules(setting: Setting) -> Measured:
    """The same tasks, learned as modules of rank 4."""
    base = setting.base
    modules = [setting.load(f"low-rank-{task}")[1] for task in TASKS]
    models = [task_vectors.expand(module, base=base) for module in modules]
    for task, model in zip(TASKS, models, strict=True):
        yield "alone", "", task, 1.0, _accuracy(setting.report, model)[task]
        yield "base", "", task, 1.0, _accuracy(setting.report, base)[task]
    rank = 4 * len(TASKS)
    densities = (0.1, 0.2, 0.5, 1.0)
    families: dict[str, dict[str, Merge]] = {
        "task_arithmetic": {"": merge.task_arithmetic},
        "ties": {f"density {d}": partial(merge.ties, density=d) for d in densities},
        "knots": {
            f"density {d}": partial(merge.knots, merge=partial(merge.ties, density=d), rank=rank)
            for d in densities
        },
        "tsv": {"": partial(merge.tsv, rank=4)},
        "iso_c": {"": merge.iso_c},
    }
    for name, merges in families.items():
        option, scale, point = _tuned(setting, merges, models, base)
        for task, value in _accuracy(setting.report, point).items():
            yield name, option, task, scale, value

    def factors(_: Sequence[Params], *, base: Params) -> Params:
        return merge.module_arithmetic(modules, base=base)

    option, scale, point = _tuned(setting, {"": factors}, models, base)
    for task, value in _accuracy(setting.report, point).items():
        yield "module_arithmetic", option, task, scale, value


def _tangent(setting: Setting) -> Measured:
    """Two tasks, learned and added by the network and by its first-order model."""
    pair, base = ("noisy", "bright"), setting.base
    linear = Tangent().adapt(setting.module, 0).eval()
    kinds = (
        ("task_arithmetic", "network", "", setting.module),
        ("tangent", "first-order model", "tangent-", linear),
    )
    for name, kind, prefix, module in kinds:
        risks = {
            half: {t: EmpiricalRisk(module, *images(t, half)) for t in pair}
            for half in ("choose", "report")
        }
        models = [setting.load(prefix + task)[1] for task in pair]
        rename = (lambda p: {f"network.{k}": t for k, t in p.items()}) if prefix else dict
        for task, model in zip(pair, models, strict=True):
            yield f"{kind} alone", "", task, 1.0, _accuracy(risks["report"], rename(model))[task]
        best = (-1.0, 0.0, {})
        for scale in SCALES:
            point = rename(merge.task_arithmetic(models, base=base, scale=scale))
            score = _mean(_accuracy(risks["choose"], point))
            best = max(best, (score, scale, point), key=lambda each: each[0])
        for task, value in _accuracy(risks["report"], best[2]).items():
            yield name, "", task, best[1], value


def _thinned(setting: Setting) -> Measured:
    """How much of a task's gain a part of its task vector keeps, in per cent of the gain."""
    x, y = data.fashion("train", limit=1000)
    base = setting.base
    vectors = task_vectors.task_vectors(setting.models, base)
    for (task, spoil), model, tau in zip(CORRUPTIONS.items(), setting.models, vectors, strict=True):
        inputs, targets = spoil(x, y)

        def loss(point: Params, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(setting.outputs(point, inputs), targets)

        thin: dict[str, tuple[Sequence[float], Callable[[float], Params]]] = {
            "largest": (KEPT, partial(task_vectors.trim, tau)),
            "learned": (DENSITIES, partial(_graft, model, base, loss)),
            "rescaled": (DROPPED, partial(_drop, tau, setting.seed, task, True)),
            "not rescaled": (DROPPED, partial(_drop, tau, setting.seed, task, False)),
        }
        risk = {task: setting.report[task]}
        for how, (shares, function) in thin.items():
            for share in shares:
                yield how, "", task, share, gain_kept(risk, base, [tau], [function(share)])


def _graft(model: Params, base: Params, loss: Callable[..., Tensor], density: float) -> Params:
    found = merge.grafting([model], base=base, losses=[loss], density=density, **GRAFT)
    return task_vectors.task_vectors([found.task(0)], base)[0]


def _drop(tau: Params, seed: int, task: str, rescale: bool, p: float) -> Params:
    return task_vectors.drop_and_rescale(tau, p, seed, stream=task, rescale=rescale)


def _negation(setting: Setting) -> Measured:
    """Forget classes: take away a task vector, as far as the control tolerates it."""
    targets = {"class-half-b": ("class-half-b", "class-half-a")}
    targets |= {task: (task, None) for task in TASKS}
    for family, (target, control) in targets.items():
        model = setting.load(family)[1]
        tasks = [HALVES.get(t, CORRUPTIONS.get(t)) if t else None for t in (target, control)]
        risks = {
            half: [EmpiricalRisk(setting.module, *images(t, half)) for t in tasks]
            for half in ("choose", "report")
        }
        kept = 100 * risks["choose"][1](setting.base).accuracy - 2
        chosen = (0.0, setting.base)
        for scale in SCALES:
            point = merge.task_arithmetic([model], base=setting.base, scale=scale, weights=[-1])
            if 100 * risks["choose"][1](point).accuracy < kept:
                break
            chosen = (scale, point)
        for which, risk in zip(("target", "control"), risks["report"], strict=True):
            before, after = (100 * risk(p).accuracy for p in (setting.base, chosen[1]))
            yield family, "before", which, 0.0, before
            yield family, "after", which, chosen[0], after


def _analogy(setting: Setting) -> Measured:
    """As plain images of classes 0-4 are to bright ones, so are those of classes 5-9.

    Three task vectors, none of which knows bright images of classes 5-9, make the fourth.
    """
    base, bright = setting.base, CORRUPTIONS["bright"]
    plain = {half: setting.load(half)[1] for half in ("class-half-a", "class-half-b")}
    spoiled = {}
    for half in plain:
        recipe = setting.recipe(half)
        recipe = replace(recipe, family=f"bright-{half}", tasks=(*recipe.tasks, bright))
        spoiled[half] = train(recipe, start=base).state
    choose, report = (
        EmpiricalRisk(setting.module, *bright(*images(HALVES["class-half-b"], half)))
        for half in ("choose", "report")
    )
    three = [spoiled["class-half-a"], plain["class-half-b"], plain["class-half-a"]]
    best = (-1.0, 0.0, base)
    for scale in SCALES:
        point = merge.task_arithmetic(three, base=base, scale=scale, weights=[1, 1, -1])
        best = max(best, (choose(point).accuracy, scale, point), key=lambda each: each[0])
    known = {
        "base": base,
        "classes 5-9": plain["class-half-b"],
        "bright classes 0-4": spoiled["class-half-a"],
        "analogy": best[2],
        "trained on it": spoiled["class-half-b"],
    }
    for name, point in known.items():
        yield name, "", "bright classes 5-9", best[1], 100 * report(point).accuracy


STUDY = Study("task-vectors", rows)
