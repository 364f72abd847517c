"""Weight aggregation: averages along a run, soups, statistics, coefficients, rounds of training.

Test images are in two halves: by one of them methods choose, where they choose, and on the other
one all is reported. Accuracies and errors are in percent, losses in nats.

* ``run``: a run at a constant rate, read after every epoch: the network itself and three averages
  of the points so far; and for comparison a run of the same length whose rate falls.
* ``soups``: networks fine-tuned from one start, with other rates and lengths or other orders.
* ``line``: the line from the base to what was fine-tuned from it on one task.
* ``statistics``: averages weighted by Fisher information or Gram matrices.
* ``stock``: Model Stock from two networks.
* ``coefficients``: four tasks, and coefficients that are chosen, learned or searched for.
* ``surgery``: the representation of the best sum of task vectors, before and after.
* ``rounds``: FedAvg with clients that hold a share of the images, or two of the classes.
* ``population``: PAPA at several rates, from random starts of their own.
* ``fusion``: ColD Fusion on three tasks, and fine-tuning on a fourth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk
from sokmerge.studies.study import Study
from sokmerge.testbed import data, models, zoo
from sokmerge.testbed.recipes import CORRUPTIONS, TUNINGS, WIDE, Recipe, master_seed
from sokmerge.testbed.tasks import ClassSplit, Share, Task
from sokmerge.testbed.training import fine_tune, inputs_of

__all__ = ["STUDY", "TASKS", "images", "rows"]

TASKS: dict[str, Task | None] = {"clean": None, **CORRUPTIONS}
FOUR = tuple(CORRUPTIONS)

#: Epochs of the run, and the epoch after which SWA and the moving average begin.
EPOCHS, BEGIN = 20, 10

#: The steps along a line, and the scales from which the common step is chosen.
ALPHAS = tuple(k / 10 for k in range(11))
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)

#: Steps of AdaMerging, by layer and by task; the last number is the authors'.
STEPS = {"by layer": (50, 200, 500), "by task": (500,)}

CLIENTS, ROUNDS, LOCAL = 5, 5, (1, 2, 5)
MEMBERS, PULLS, RATES = 4, 10, (0.0, 0.01, 0.03, 0.1, 0.3)

#: Seeds of random starts that no network of the zoo has.
FRESH = 700

Measured = Iterator[tuple[str, str, str, float, float]]


def images(task: str, half: str) -> tuple[Tensor, Tensor]:
    """Return test images of a task, those to choose by or those to report.

    Args:
        task: one of :data:`TASKS`.
        half: ``"choose"`` or ``"report"``.
    """
    chosen = Share(("report", "choose").index(half), 2)(*data.fashion("test"))
    corrupt = TASKS[task]
    return corrupt(*chosen) if corrupt else chosen


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Measure all of it with the networks of one seed."""
    setting = Setting(seed)
    for part in (
        *(_run, _soups, _line, _statistics, _stock, _coefficients, _surgery),
        *(_rounds, _population, _fusion),
    ):
        for method, task, measure, x, value in part(setting):
            yield {
                "part": part.__name__[1:],
                "method": method,
                "task": task,
                "measure": measure,
                "x": float(x),
                "value": round(float(value), 6),
            }


class Setting:
    """The networks of one seed, and their risks on both halves."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.module, self.base = self.load("broad")
        self.network = Network(self.module)
        self.choose, self.report = (
            {task: EmpiricalRisk(self.module, *images(task, half)) for task in TASKS}
            for half in ("choose", "report")
        )

    @cached_property
    def four(self) -> list[Params]:
        """The networks of the four tasks."""
        return [self.load(task)[1] for task in FOUR]

    @cached_property
    def soup(self) -> list[Params]:
        """The networks that were tuned in other ways."""
        return [self.load(f"tuned-{k}")[1] for k in range(len(TUNINGS))]

    @cached_property
    def alike(self) -> list[Params]:
        """Networks tuned as ``tuned-3`` was, with the images in other orders."""
        recipe = zoo.family("tuned-3")[self.seed]
        orders = [recipe.order_seed + FRESH + 1000 * k for k in range(len(TUNINGS) - 1)]
        more = [fine_tune(replace(recipe, order_seed=order), self.base) for order in orders]
        return [self.soup[-1], *more]

    @cached_property
    def summed(self) -> Params:
        """Task arithmetic of the four, with the scale that is best on the half for choosing."""

        def made(scale: float) -> Params:
            return merge.task_arithmetic(self.four, base=self.base, scale=scale)

        return made(max(SCALES, key=lambda scale: self.score(made(scale))))

    def load(self, family: str) -> tuple[nn.Module, Params]:
        return zoo.load(zoo.family(family)[self.seed])

    def fresh(self, number: int, **how: Any) -> Recipe:
        """The recipe of a network that is not in the zoo."""
        own = 1000 * master_seed() + FRESH + 10 * self.seed + number
        return Recipe("fresh", WIDE, own, own, **how)

    def score(self, point: Params, tasks: Sequence[str] = FOUR) -> float:
        """Mean accuracy on the half for choosing."""
        return _mean([self.choose[task](point).accuracy for task in tasks])

    def told(
        self, method: str, point: Params, tasks: Sequence[str] = tuple(TASKS), x: float = 0.0
    ) -> Measured:
        """Error and loss on the half that is reported."""
        for task in tasks:
            found = self.report[task](point)
            yield method, task, "error", x, 100 * found.error
            yield method, task, "loss", x, found.loss

    def loss_on(self, *examples: tuple[Tensor, Tensor]) -> Callable[[Params], Tensor]:
        """The sum of mean losses, differentiable in the parameters."""

        def loss(point: Params) -> Tensor:
            each = [F.cross_entropy(self.network(point, x), y) for x, y in examples]
            return torch.stack(each).sum()

        return loss


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _run(setting: Setting) -> Measured:
    """Averages of the points at the ends of epochs, and a run that is cooled down instead."""
    recipe = setting.fresh(0, schedule="constant", epochs=EPOCHS)
    start = params.of(models.build(recipe.arch, recipe.seed))
    points: list[Params] = []
    fine_tune(recipe, start, each_epoch=lambda _, point: points.append(point))
    train = EmpiricalRisk(setting.module, *data.fashion("train", limit=2000))
    for epoch in range(1, EPOCHS + 1):
        so_far = points[:epoch]
        averages = {"iterate": so_far[-1], "lawa": merge.lawa(so_far, window=3)}
        if epoch > BEGIN:
            averages["swa"] = merge.swa(so_far[BEGIN:])
            averages["ema"] = merge.ema(so_far[BEGIN:], decay=0.7, debias=True)
        for method, point in averages.items():
            yield from setting.told(method, point, ["clean"], epoch)
            yield method, "train", "loss", epoch, train(point).loss
    cooled = fine_tune(replace(recipe, schedule="cosine"), start)
    yield from setting.told("cooled", cooled, ["clean"], EPOCHS)
    yield "cooled", "train", "loss", EPOCHS, train(cooled).loss


def _soups(setting: Setting) -> Measured:
    """Soups of four networks tuned in other ways, and of four that differ in the order alone."""
    for name, ingredients in (("other rates", setting.soup), ("other orders", setting.alike)):
        for method, *rest in _soup(setting, ingredients):
            yield f"{method}, {name}", *rest


def _soup(setting: Setting, ingredients: Sequence[Params]) -> Measured:
    """Soups against their ingredients and against what these say together."""

    def score(point: Params) -> float:
        return setting.score(point, ["clean"])

    loss = setting.loss_on(images("clean", "choose"))
    made = {
        "best ingredient": max(ingredients, key=score),
        "uniform soup": merge.average(ingredients),
        "greedy soup": merge.greedy_soup(ingredients, score=score),
        "learned soup": merge.learned_soup(ingredients, loss=loss),
        "learned soup, by layer": merge.learned_soup(ingredients, loss=loss, layerwise=True),
    }
    for k, point in enumerate(ingredients):
        yield from setting.told(f"ingredient {k}", point)
    for method, point in made.items():
        yield from setting.told(method, point)
    for task in TASKS:
        inputs, targets = images(task, "report")
        with torch.no_grad():
            said = torch.stack([setting.network(p, inputs).softmax(1) for p in ingredients]).mean(0)
        wrong = (said.argmax(1) != targets).double().mean()
        yield "ensemble", task, "error", 0, 100 * float(wrong)
        yield "ensemble", task, "loss", 0, float(F.nll_loss(said.log(), targets))


def _line(setting: Setting) -> Measured:
    """From the base to each fine-tuned network: its own task, and the four others."""
    for task, family in {"clean": "tuned-3", **{t: t for t in FOUR}}.items():
        model = setting.load(family)[1]
        for alpha in ALPHAS:
            point = merge.wise_ft([model], base=setting.base, alpha=alpha)
            errors = {t: 100 * setting.report[t](point).error for t in TASKS}
            own = errors.pop(task)
            yield "wise_ft", task, "own task", alpha, own
            yield "wise_ft", task, "other tasks", alpha, _mean([*errors.values()])


def _statistics(setting: Setting) -> Measured:
    """Fisher merging and RegMean against the average, on pairs and on four tasks at once."""
    groups = {
        "halves of the images": (["image-half-a", "image-half-b"], ["clean"]),
        "halves of the classes": (["class-half-a", "class-half-b"], ["clean"]),
        "noisy and bright": (["noisy", "bright"], ["noisy", "bright"]),
        "four corruptions": ([*FOUR], [*FOUR]),
    }
    for group, (families, tasks) in groups.items():
        ends = [setting.load(family)[1] for family in families]
        seen = [_some(setting, family, 500)[0] for family in families]
        few = [x[:100] for x in seen]
        fishers = [
            merge.fisher_diagonal(setting.module, end, x, chunk=50)
            for end, x in zip(ends, few, strict=True)
        ]
        grams = [merge.gram_matrices(setting.module, e, x) for e, x in zip(ends, seen, strict=True)]
        made = {
            "average": merge.average(ends),
            "fisher": merge.fisher(ends, fishers=fishers),
            "regmean": merge.regmean(ends, grams=grams),
            "regmean, 0.1": merge.regmean(ends, grams=grams, scale=0.1),
        }
        for method, point in made.items():
            errors = [100 * setting.report[task](point).error for task in tasks]
            losses = [setting.report[task](point).loss for task in tasks]
            yield method, group, "error", 0, _mean(errors)
            yield method, group, "loss", 0, _mean(losses)


def _some(setting: Setting, family: str, number: int) -> tuple[Tensor, Tensor]:
    """Return some training images of a network, chosen by their place in a shuffled order."""
    inputs, targets = inputs_of(zoo.family(family)[setting.seed], "train")
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(setting.seed))
    return inputs[order[:number]], targets[order[:number]]


def _stock(setting: Setting) -> Measured:
    """Two networks and their base, against the average of the two and of four."""
    ends = setting.soup
    yield from setting.told("average of 2", merge.average(ends[:2]))
    yield from setting.told("average of 4", merge.average(ends))
    for number in (2, 4):
        point = merge.model_stock(ends[:number], base=setting.base)
        yield from setting.told(f"model_stock of {number}", point)
        length = params.distance(point, setting.base) / params.distance(
            merge.average(ends[:number]), setting.base
        )
        yield f"model_stock of {number}", "", "share of the way", 0, float(length)


def _coefficients(setting: Setting) -> Measured:
    """Four tasks: one scale, or coefficients by entropy, by loss or by search."""
    base, ends = setting.base, setting.four
    few = {
        task: EmpiricalRisk(setting.module, *(each[:500] for each in images(task, "choose")))
        for task in FOUR
    }

    def score(point: Params) -> float:
        return _mean([few[task](point).accuracy for task in FOUR])

    made = {
        "base": base,
        "best single network": max(ends, key=setting.score),
        "average": merge.average(ends),
        "task arithmetic, 0.3": merge.task_arithmetic(ends, base=base, scale=0.3),
        "task arithmetic, chosen": setting.summed,
        "evolutionary": merge.evolutionary(ends, score=score, base=base, budget=200),
        "joint training": setting.load("joint-tasks")[1],
    }
    for method, point in made.items():
        yield from setting.told(method, point, FOUR)
        yield method, "", "entropy", 0, _mean([_entropy(setting, point, t) for t in FOUR])
    unlabelled = [images(task, "choose")[0][:200] for task in FOUR]
    options = {"base": base, "module": setting.module, "inputs": unlabelled}
    for how, numbers in STEPS.items():
        for steps in numbers:
            layerwise = how == "by layer"
            point = merge.adamerging(ends, layerwise=layerwise, steps=steps, **options)
            yield from setting.told(f"adamerging, {how}", point, FOUR, steps)
            entropy = _mean([_entropy(setting, point, task) for task in FOUR])
            yield f"adamerging, {how}", "", "entropy", steps, entropy


def _entropy(setting: Setting, point: Params, task: str) -> float:
    with torch.no_grad():
        logs = setting.network(point, images(task, "report")[0]).log_softmax(1)
    return float(-(logs.exp() * logs).sum(1).mean())


def _surgery(setting: Setting) -> Measured:
    """Distance of representations and error, before and after, on images not fitted to."""
    body = copy.deepcopy(setting.module)
    body.head = nn.Identity().eval()
    network = Network(body)

    def represented(point: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return network({k: t for k, t in point.items() if not k.startswith("head.")}, inputs)

    for rank in (4, 16):
        operated = merge.representation_surgery(
            setting.four,
            module=setting.module,
            layer="head",
            inputs=[images(task, "choose")[0] for task in FOUR],
            merged=setting.summed,
            rank=rank,
        )
        for task, own, each in zip(FOUR, setting.four, operated, strict=True):
            inputs, targets = images(task, "report")
            z, target = (represented(p, inputs) for p in (setting.summed, own))
            corrected = z - (z @ each.down.T).relu() @ each.up.T
            head = {**setting.summed, "head.weight": own["head.weight"]}
            head["head.bias"] = own["head.bias"]
            if rank == 4:
                yield "before", task, "distance", 0, float((z - target).abs().mean())
                yield "before", task, "error", 0, 100 * setting.report[task](setting.summed).error
                yield "own head", task, "error", 0, 100 * setting.report[task](head).error
                yield "own network", task, "error", 0, 100 * setting.report[task](own).error
            wrong = (each(inputs).argmax(1) != targets).double().mean()
            yield f"rank {rank}", task, "distance", 0, float((corrected - target).abs().mean())
            yield f"rank {rank}", task, "error", 0, 100 * float(wrong)


def _rounds(setting: Setting) -> Measured:
    """FedAvg from a random start: epochs in a round, and what a client holds."""
    recipe = setting.fresh(0, optimizer="sgd", lr=0.02, schedule="constant", batch=64, limit=6000)
    start = params.of(models.build(recipe.arch, recipe.seed))
    holdings = {
        "share of the images": [Share(k, CLIENTS) for k in range(CLIENTS)],
        "two classes": [ClassSplit((2 * k, 2 * k + 1)) for k in range(CLIENTS)],
    }
    for holding, shares in holdings.items():
        for local in LOCAL:
            yield from _federated(setting, recipe, start, holding, shares, local)
    central = fine_tune(replace(recipe, epochs=ROUNDS), start)
    yield "central", "all images", "error", ROUNDS, 100 * setting.report["clean"](central).error


def _federated(
    setting: Setting,
    recipe: Recipe,
    start: Params,
    holding: str,
    shares: Sequence[Task],
    local: int,
) -> Measured:
    def client(k: int, number: int) -> merge.Client:
        own = replace(recipe, tasks=(shares[k],), epochs=local, order_seed=100 * number + k)
        return lambda point: fine_tune(own, point)

    point = start
    for number in range(1, ROUNDS + 1):
        point = merge.fedavg(point, [client(k, number) for k in range(CLIENTS)])
        found = setting.report["clean"](point)
        yield f"{local} epochs", holding, "error", number, 100 * found.error
        yield f"{local} epochs", holding, "loss", number, found.loss


def _population(setting: Setting) -> Measured:
    """Four networks from random starts, pulled to their mean after every tenth step."""
    recipes = [
        setting.fresh(k, optimizer="sgd", lr=0.05, schedule="constant", epochs=1, limit=5000)
        for k in range(MEMBERS)
    ]
    starts = [params.of(models.build(recipe.arch, recipe.seed)) for recipe in recipes]
    inputs, targets = inputs_of(recipes[0], "train")
    size = PULLS * recipes[0].batch
    report, (seen, truth) = setting.report["clean"], images("clean", "report")
    for rate in RATES:
        steppers = [_Stepper(recipe, inputs, targets, size) for recipe in recipes]
        rounds = 10 * (len(targets) // size)
        population = merge.papa(starts, steppers, rounds=rounds, rate=rate)
        errors = [100 * report(member).error for member in population]
        with torch.no_grad():
            said = torch.stack([setting.network(p, seen).softmax(1) for p in population]).mean(0)
        soup = merge.average(population)
        yield "members", "clean", "error", rate, _mean(errors)
        yield (
            "ensemble",
            "clean",
            "error",
            rate,
            100 * float((said.argmax(1) != truth).double().mean()),
        )
        yield "soup", "clean", "error", rate, 100 * report(soup).error
        away = [float(params.distance(member, soup)) for member in population]
        yield "members", "clean", "distance to the mean", rate, _mean(away)


class _Stepper:
    """A client that takes the next few steps of a run through shuffled images."""

    def __init__(self, recipe: Recipe, inputs: Tensor, targets: Tensor, size: int) -> None:
        self.recipe, self.inputs, self.targets, self.size = recipe, inputs, targets, size
        self.order = torch.Generator().manual_seed(recipe.order_seed)
        self.left = torch.empty(0, dtype=torch.int64)

    def __call__(self, point: Params) -> Params:
        if len(self.left) < self.size:
            self.left = torch.randperm(len(self.targets), generator=self.order)
        rows, self.left = self.left[: self.size], self.left[self.size :]
        return fine_tune(self.recipe, point, self.inputs[rows], self.targets[rows])


def _fusion(setting: Setting) -> Measured:
    """Three tasks make a base; the fourth is then learned from few images."""
    for unseen in FOUR:
        recipe = zoo.family(unseen)[setting.seed]
        others = [task for task in FOUR if task != unseen]

        def contributor(task: str) -> merge.Client:
            own = zoo.family(task)[setting.seed]
            own = replace(own, start=None, epochs=1, schedule="constant", limit=6000)
            return lambda point: fine_tune(own, point)

        starts = {"base": setting.base}
        contributors = [contributor(task) for task in others]
        starts["1 round"] = merge.cold_fusion(setting.base, contributors)
        starts["3 rounds"] = merge.cold_fusion(starts["1 round"], contributors, rounds=2)
        few = _some(setting, unseen, 500)
        for method, start in starts.items():
            seen = [100 * setting.report[task](start).error for task in others]
            tuned = fine_tune(replace(recipe, epochs=20), start, *few)
            yield method, unseen, "seen tasks", 0, _mean(seen)
            yield method, unseen, "before tuning", 0, 100 * setting.report[unseen](start).error
            yield method, unseen, "after tuning", 0, 100 * setting.report[unseen](tuned).error


STUDY = Study("weight-aggregation", rows)
