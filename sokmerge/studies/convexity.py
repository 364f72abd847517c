r"""Convexity of a mode: averages of a run, hulls, ways down from the start, widths, and a star.

* ``averages``: one run of a multilayer perceptron at a constant rate; its last point, the averages
  of its tail, and a run whose rate falls, with and without sharpness-aware minimisation. Of each:
  losses, curvature, sharpness and width; and of twins that compute the same function.
* ``hulls``: children of a convolutional network, forked at some steps, and independent networks:
  the risk at random points of their hull and beyond it.
* ``tuned``: networks tuned from one start, the same task or several: hulls, soups, clusters.
* ``descents``: lines from the start to the solution, for four architectures and two optimisers.
* ``star``: a centre trained to see several networks, and what it sees of others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import merge, params, symmetry
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, barrier, curvature, filter_normalised
from sokmerge.probe.convexity import (
    basin,
    descent,
    hull,
    inside,
    outside,
    rescale,
    sharpness,
    unit_directions,
)
from sokmerge.probe.star import star
from sokmerge.studies.study import Study
from sokmerge.testbed import data, forks, models, training, zoo
from sokmerge.testbed.recipes import CORRUPTIONS, Recipe, master_seed

__all__ = ["RUN", "STUDY", "WIDE_RATE", "rows", "sam"]

#: Test images on which all is judged, and training images on which curvature is measured.
SEEN, CURVED = 1000, 500

#: The run of experiments 1 and 5, its length and where its tail begins.
EPOCHS, TAIL = 20, 10
RUN = Recipe(
    "convexity", models.MLP(64), 0, 0, limit=6000, optimizer="sgd", lr=0.05, schedule="constant",
    batch=64, epochs=EPOCHS,
)  # fmt: skip

#: The radius of sharpness-aware minimisation, and that in which sharpness is measured.
RHO = 0.05

#: The convolutional network of the hulls, at a rate so high that its first steps matter.
WIDE_RATE = Recipe(
    "convexity", models.PlainCNN((8, 16, 32)), 0, 0, limit=3000, optimizer="sgd", lr=0.1,
    batch=64, epochs=8,
)  # fmt: skip
CHILDREN = 5
FORKS = (0, 47, 188)  # the start, one epoch, half of the run

#: Points drawn inside each hull, and outside.
POINTS = 30

#: Networks tuned on each task.
TUNED = 3

#: The short runs of the ways down.
SHORT = Recipe("convexity", models.MLP(64), 0, 0, limit=1500, batch=50, epochs=5)
ARCHES: dict[str, models.Architecture] = {
    "MLP": models.MLP(64),
    "CNN": models.PlainCNN((8, 16, 32)),
    "residual, BatchNorm": models.ResidualCNN("batch", (6, 12, 24)),
    "residual, LayerNorm": models.ResidualCNN("layer", (6, 12, 24)),
}
HOWS: dict[str, dict[str, Any]] = {
    "SGD, low rate": {"optimizer": "sgd", "lr": 0.03},
    "SGD, high rate": {"optimizer": "sgd", "lr": 0.1},
    "Adam, low rate": {"optimizer": "adam", "lr": 1e-3},
    "Adam, high rate": {"optimizer": "adam", "lr": 3e-2},
}

#: The star: networks it is trained to see, and networks that are held out.
SOURCES, HELD = 6, 3
SOURCE = Recipe("convexity", models.MLP(64), 0, 0, limit=4000, batch=64, epochs=8)
STAR_STEPS, STAR_RATE = 1500, 1e-3

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    yield from averages(seed)
    yield from hulls(seed)
    yield from tuned(seed)
    yield from descents(seed)
    yield from stars(seed)


def row(part: str, group: str, name: str, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "name": name, "x": round(float(x), 4)}
    return {**said, "measure": measure, "value": round(float(value), 6)}


def own(recipe: Recipe, seed: int, number: int = 0) -> Recipe:
    """The recipe with a start and an order of its own; numbers tell those of one seed apart."""
    mine = 100_000 + 1000 * master_seed() + 20 * seed + number
    return replace(recipe, seed=mine, order_seed=mine)


def start_of(recipe: Recipe) -> dict[str, Tensor]:
    """The state that a recipe starts from, buffers among it."""
    return dict(models.build(recipe.arch, recipe.seed).state_dict())


def test_images(*, task: Any = None, where: slice = slice(SEEN)) -> tuple[Tensor, Tensor]:
    """Test images, as they are or after a task."""
    x, y = data.fashion("test")
    return task(x[where], y[where]) if task else (x[where], y[where])


# 1 and 5: averages and widths ------------------------------------------------------------------


def averages(seed: int) -> Iterator[Row]:
    """Points of one run and their averages, and how flat it is around them."""
    recipe = own(RUN, seed)
    module = models.build(recipe.arch)
    start, images = start_of(recipe), training.inputs_of(recipe, "train")
    points: list[Params] = []
    training.fine_tune(recipe, start, *images, each_epoch=lambda _, point: points.append(point))
    tail = points[TAIL:]
    falling = replace(recipe, schedule="cosine")
    cooled = training.fine_tune(falling, start, *images)
    found = {
        "last": tail[-1],
        "SWA": merge.swa(tail),
        "EMA": merge.ema(tail, decay=0.8),
        "cooled": cooled,
        "SAM": sam(falling, start, *images, rho=RHO),
    }
    twins = {
        "cooled, layer rescaled": rescale(cooled, *LAYER, 10.0),
        "cooled, units rescaled": rescale(cooled, *LAYER, _factors(recipe)),
    }
    test = EmpiricalRisk(module, *data.fashion("test"))
    train = EmpiricalRisk(module, *(tensor[:CURVED] for tensor in images))
    for name, point in {**found, **twins}.items():
        yield from _judged(name, point, test, train, recipe.seed)


#: The layer whose units are rescaled.
LAYER = (("hidden.1.weight", "hidden.1.bias"), ("hidden.2.weight",))


def _factors(recipe: Recipe) -> Tensor:
    """Factors of the units of one layer, log-uniform between 1/10 and 10."""
    generator = params.stream(f"factors:{recipe.seed}")
    return 10 ** (2 * torch.rand(recipe.arch.width, generator=generator) - 1)


#: Radii along filter-normalised directions, and along directions of length one.
FILTER, PLAIN = np.linspace(0, 1.5, 11), np.linspace(0, 30, 11)
WAYS = 6


def _judged(
    name: str, point: Params, test: EmpiricalRisk, train: EmpiricalRisk, seed: int
) -> Iterator[Row]:
    def told(measure: str, value: float, x: float = -1) -> Row:
        return row("averages", "", name, x, measure, value)

    there, here = test(point), train(point)
    yield told("test loss", there.loss)
    yield told("test error", 100 * there.error)
    yield told("train loss", here.loss)
    yield told("norm", float(params.norm(point)))
    operator = curvature.hessian(train, point)
    yield told("top eigenvalue", curvature.eigenpairs(operator, 1, tol=1e-2).values[0])
    yield told("trace", curvature.trace(operator, relative=0.05, deflation=10, most=60).value)
    yield told("sharpness", sharpness(train, point, RHO, steps=5).value)
    ways = {
        "filter": ([filter_normalised(point, seed=k) for k in range(WAYS)], FILTER),
        "plain": (unit_directions(point, WAYS, seed=seed), PLAIN),
    }
    for kind, (directions, radii) in ways.items():
        around = basin(train, point, directions, radii=radii, level=LEVEL)
        yield told(f"{kind} width", min(around.width, radii[-1]))
        for r, rise in zip(radii, around.mean, strict=True):
            yield told(f"{kind} rise", rise, r)


#: The rise at which a width is read off, in nats.
LEVEL = 0.1


def sam(
    recipe: Recipe, start: Params, inputs: Tensor, targets: Tensor, *, rho: float
) -> dict[str, Tensor]:
    r"""Train by sharpness-aware minimisation, with the rate, batches and order of a recipe.

    Each step takes the gradient at :math:`\theta+\rho\,g/\lVert g\rVert` instead of that at
    :math:`\theta`, with the gradient g of the same batch (Foret et al. 2020).

    Args:
        recipe: of a network without BatchNorm, trained by SGD with a rate that falls by a cosine.
        start: the parameters to start from.
        inputs: images.
        targets: their classes.
        rho: the radius.
    """
    module = models.build(recipe.arch)
    module.load_state_dict(dict(start))
    weights = list(module.parameters())
    optimizer = torch.optim.SGD(weights, lr=recipe.lr, momentum=0.9, nesterov=True)
    steps = recipe.epochs * -(-len(targets) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(recipe.order_seed)

    def gradient(some: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(module(inputs[some]), targets[some])
        return list(torch.autograd.grad(loss, weights))

    for _ in range(recipe.epochs):
        for some in torch.randperm(len(targets), generator=order).split(recipe.batch):
            uphill = gradient(some)
            length = torch.stack([g.norm() for g in uphill]).norm() + 1e-12
            with torch.no_grad():
                torch._foreach_add_(weights, torch._foreach_mul(uphill, float(rho / length)))
            there = gradient(some)
            with torch.no_grad():
                torch._foreach_sub_(weights, torch._foreach_mul(uphill, float(rho / length)))
            for weight, grad in zip(weights, there, strict=True):
                weight.grad = grad
            optimizer.step()
            schedule.step()
    return params.of(module)


# 2: hulls of children --------------------------------------------------------------------------


def hulls(seed: int) -> Iterator[Row]:
    """Children of one run from some steps, and independent networks: their hulls and beyond."""
    recipe = own(WIDE_RATE, seed)
    states = forks.trajectory(recipe, FORKS)
    groups = {
        f"fork at {step}": [
            forks.resume(recipe, states[step], order_seed=recipe.seed + 1 + child)
            for child in range(CHILDREN)
        ]
        for step in FORKS
    }
    others = [own(WIDE_RATE, seed, number) for number in range(1, CHILDREN)]
    groups["independent"] = [
        groups[f"fork at {FORKS[0]}"][0],
        *(training.fine_tune(other, start_of(other)) for other in others),
    ]
    module = models.build(recipe.arch)
    risk = EmpiricalRisk(module, *test_images())
    for group, members in groups.items():
        yield from _hull(risk, "hulls", group, members, recipe.seed)
        yield from _alike(risk, "hulls", group, members)


def _hull(
    risk: EmpiricalRisk, part: str, group: str, members: Sequence[Params], seed: int
) -> Iterator[Row]:
    m = len(members)
    drawn = {
        "inside": inside(m, POINTS, seed=seed),
        "outside": outside(m, POINTS, seed=seed),
        "centre": np.full((1, m), 1 / m),
    }
    for place, weights in drawn.items():
        found = hull(risk, members, weights)
        for k in range(len(weights)):
            yield row(part, group, place, k, "loss", found.loss[k])
            yield row(part, group, place, k, "error", 100 * found.error[k])
            yield row(part, group, place, k, "excess", found.excess[k])
        if place == "centre":
            for k in range(m):
                yield row(part, group, "member", k, "loss", found.member_loss[k])
                yield row(part, group, "member", k, "error", 100 * found.member_error[k])


def _alike(risk: EmpiricalRisk, part: str, group: str, members: Sequence[Params]) -> Iterator[Row]:
    """How far apart members are, how often two differ, and what share all have right."""
    with torch.no_grad():
        said = torch.stack(
            [
                torch.cat([risk.network(risk.state(member), x).argmax(1) for x, _ in risk.chunks()])
                for member in members
            ]
        )
    truth = torch.cat([y for _, y in risk.chunks()])
    pairs = list(itertools.combinations(range(len(members)), 2))
    differ = [100 * float((said[i] != said[j]).double().mean()) for i, j in pairs]
    apart = [float(params.distance(members[i], members[j])) for i, j in pairs]
    yield row(part, group, "pairs", -1, "disagreement", np.mean(differ))
    yield row(part, group, "pairs", -1, "distance", np.mean(apart))
    yield row(part, group, "all", -1, "right", 100 * float((said == truth).all(0).double().mean()))


# 3: networks tuned from one start --------------------------------------------------------------


def shelf(seed: int) -> tuple[nn.Module, Params, list[Params], list[Recipe]]:
    """The zoo's small pre-trained network, what was tuned from it, and recipes for its tasks."""
    module, base = zoo.load(zoo.family("broad")[seed])
    soup = [zoo.load(zoo.family(f"tuned-{k}")[seed])[1] for k in range(4)]
    return module, base, soup, [zoo.family(task)[seed] for task in CORRUPTIONS]


def tuned(seed: int) -> Iterator[Row]:
    """Hulls and soups of networks tuned on one task, and clusters of those of several."""
    module, base, soup, recipes = shelf(seed)
    yield from _soups(module, base, soup, seed)
    x, y = data.fashion("train", limit=3000)
    members: dict[str, list[Params]] = {}
    for (task, spoil), recipe in zip(CORRUPTIONS.items(), recipes, strict=True):
        spoilt = spoil(x, y)
        orders = (recipe.order_seed + 500_000 * (1 + k) for k in range(TUNED))
        members[task] = [
            training.fine_tune(replace(recipe, order_seed=order), base, *spoilt) for order in orders
        ]
    yield from _clusters(base, members)
    risks = {t: EmpiricalRisk(module, *test_images(task=s)) for t, s in CORRUPTIONS.items()}
    for task, here in members.items():
        yield from _hull(risks[task], "tuned", task, here, seed)
    every = EmpiricalRisk(module, *_together())
    one_each = [here[0] for here in members.values()]
    yield from _hull(every, "tuned", "all tasks", one_each, seed)
    value = every(base)
    yield row("tuned", "all tasks", "base", -1, "loss", value.loss)
    yield row("tuned", "all tasks", "base", -1, "error", 100 * value.error)


def _together() -> tuple[Tensor, Tensor]:
    """Test images of all tasks, a quarter of the number of each."""
    quarter = slice(SEEN // 4)
    pairs = [test_images(task=spoil, where=quarter) for spoil in CORRUPTIONS.values()]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _soups(module: nn.Module, base: Params, soup: list[Params], seed: int) -> Iterator[Row]:
    choose, report = (
        EmpiricalRisk(module, *test_images(where=where))
        for where in (slice(2000), slice(2000, 4000))
    )
    yield from _hull(report, "tuned", "rates", soup, seed)
    greedy = merge.greedy_soup(soup, score=lambda point: -choose(point).loss)
    for name, point in {
        "base": base,
        "uniform soup": merge.average(soup),
        "greedy soup": greedy,
    }.items():
        value = report(point)
        yield row("tuned", "rates", name, -1, "loss", value.loss)
        yield row("tuned", "rates", name, -1, "error", 100 * value.error)


def _clusters(base: Params, members: dict[str, list[Params]]) -> Iterator[Row]:
    """Whether task vectors, by their directions alone, fall into clusters of one task each."""
    steps = [params.subtract(point, base) for here in members.values() for point in here]
    truth = np.repeat(np.arange(len(members)), TUNED)
    n = len(steps)
    cosines = np.eye(n)
    for i, j in itertools.combinations(range(n), 2):
        cosines[i, j] = cosines[j, i] = float(params.cosine(steps[i], steps[j]))
    upper = np.triu_indices(n, 1)
    same = truth[upper[0]] == truth[upper[1]]
    yield row("tuned", "clusters", "same task", -1, "cosine", cosines[upper][same].mean())
    yield row("tuned", "clusters", "other task", -1, "cosine", cosines[upper][~same].mean())
    tree = linkage(1 - cosines[upper], "average")
    labels = fcluster(tree, len(members), "maxclust")
    table = np.array([[((labels == c) & (truth == t)).sum() for t in set(truth)]
                      for c in sorted(set(labels))])  # fmt: skip
    right = table[linear_sum_assignment(-table)].sum() / n
    yield row("tuned", "clusters", "all", -1, "accuracy", 100 * right)


# 4: ways down ----------------------------------------------------------------------------------


def descents(seed: int) -> Iterator[Row]:
    """Lines from the start to the solution."""
    for number, (arch_name, arch) in enumerate(ARCHES.items(), 5):
        mine = own(replace(SHORT, arch=arch), seed, number)
        begin = params.of(models.build(arch, mine.seed))
        for how, settings in HOWS.items():
            # The two residual networks take most of the time, and learn little at a low rate.
            if not (arch_name.startswith("residual") and how.endswith("low rate")):
                yield from _way(arch_name, how, replace(mine, **settings), begin)
        if arch_name == "MLP":
            slow, fast = (replace(mine, **HOWS[f"Adam, {rate} rate"]) for rate in ("low", "high"))
            yield from _way(arch_name, "long", replace(fast, epochs=6 * fast.epochs), begin)
            yield from _way(arch_name, "start tripled", slow, params.scale(begin, 3.0))
            x, y = training.inputs_of(slow, "train")
            shuffled = y[torch.randperm(len(y), generator=params.stream(f"wrong:{slow.seed}"))]
            astray = training.fine_tune(replace(slow, epochs=4 * slow.epochs), begin, x, shuffled)
            yield from _way(arch_name, "start trained on wrong labels", slow, astray)


def _way(arch: str, how: str, recipe: Recipe, start: Params) -> Iterator[Row]:
    module = models.build(recipe.arch, recipe.seed)
    images = training.inputs_of(recipe, "train")
    end = training.fine_tune(recipe, {**module.state_dict(), **start}, *images)

    def told(measure: str, value: float, x: float = -1) -> Row:
        return row("descents", arch, how, x, measure, value)

    diverged = not all(tensor.isfinite().all() for tensor in end.values())
    yield told("diverged", diverged)
    if diverged:
        return
    train = EmpiricalRisk(module, *(tensor[:500] for tensor in images))
    found = descent(train, start, end, points=21)
    test = EmpiricalRisk(module, *test_images(), calibration=images[0][:500])(end)

    yield told("climb", found.climb)
    yield told("climb, standard error", found.climb_stderr)
    yield told("plateau", 1.0 if np.isnan(found.plateau) else found.plateau)
    yield told("train loss", found.line.loss[-1])
    yield told("test error", 100 * test.error)
    moved = params.norm(params.subtract(end, start)) / params.norm(start)
    yield told("moved", float(moved))
    for alpha, loss in zip(found.line.alphas, found.line.loss, strict=True):
        yield told("loss", loss, alpha)


# 6: a star -------------------------------------------------------------------------------------


def stars(seed: int) -> Iterator[Row]:
    """Barriers from a trained centre to networks it was trained to see and to others."""
    recipes = [own(SOURCE, seed, number) for number in range(SOURCES + HELD)]
    images = training.inputs_of(SOURCE, "train")
    nets = [training.fine_tune(recipe, start_of(recipe), *images) for recipe in recipes]
    module = models.build(SOURCE.arch)
    group = symmetry.chain(module, models.chain(SOURCE.arch))
    risk = EmpiricalRisk(module, *test_images())

    def to(reference: Params, net: Params) -> Params:
        return group.act(merge.weight_matching(reference, net, group).permutation, net)

    given, held = nets[:SOURCES], nets[SOURCES:]
    for how in ("as trained", "aligned"):
        fit = to if how == "aligned" else lambda reference, net: net
        sources = [fit(given[0], net) for net in given]
        centre = star(
            sources, loss=_batches(module, images, seed), steps=STAR_STEPS, lr=STAR_RATE, seed=seed
        ).centre
        lines = {
            "pairs": [(net, fit(net, other)) for other in held for net in given[:HELD]],
            "star to held out": [(centre, fit(centre, other)) for other in held],
            "star to sources": [(centre, net) for net in sources[1:]],
        }
        for kind, ends in lines.items():
            found = [barrier(risk, a, b, points=11) for a, b in ends]
            losses = [each.loss for each in found]
            yield row("star", how, kind, -1, "loss barrier", np.mean(losses))
            errors = [100 * each.error for each in found]
            yield row("star", how, kind, -1, "error barrier", np.mean(errors))
            mean = np.mean([each.line.loss for each in found], axis=0)
            for alpha, loss in zip(found[0].line.alphas, mean, strict=True):
                yield row("star", how, kind, alpha, "loss", loss)
        points = {"star": [centre], "network": nets, "mean of sources": [merge.average(sources)]}
        for name, some in points.items():
            values = [risk(point) for point in some]
            yield row("star", how, name, -1, "loss", np.mean([v.loss for v in values]))
            yield row("star", how, name, -1, "error", 100 * np.mean([v.error for v in values]))


def _batches(module: nn.Module, images: tuple[Tensor, Tensor], seed: int) -> Any:
    """The loss on one batch after the other, in an order of its own for each epoch."""
    inputs, targets = images
    size = SOURCE.batch
    each = len(targets) // size
    orders: dict[int, Tensor] = {}

    def loss(point: Params, step: int) -> Tensor:
        epoch, at = divmod(step, each)
        if epoch not in orders:
            generator = params.stream(f"star:{master_seed()}:{seed}:{epoch}")
            orders[epoch] = torch.randperm(len(targets), generator=generator)
        some = orders[epoch][size * at : size * (at + 1)]
        outputs = torch.func.functional_call(module, dict(point), (inputs[some],))
        return F.cross_entropy(outputs, targets[some])

    return loss


STUDY = Study("convexity", rows)
