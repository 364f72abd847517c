r"""Ensembling: groups of networks asked together or averaged, and experts of four tasks.

* ``groups``: for each seed, seven groups of networks of width 128, trained on the same images:
  four in each, but for simplexes and lines, of which four points are drawn. Of each group: its
  members, the ensemble by probabilities and by logits, and the average of the parameters.
  ``EPOCHS`` passes over the images are the cost of one network. All groups but the independent
  networks and those of one start cost that much in all.
* ``singles``: one network for that cost: as the zoo's, with Adam begun anew at each epoch as for
  the line, the centre of the line, and the centre of the simplex.
* ``pairs``: of each pair of members the distance and how often their predictions differ.
* ``experts``: for each seed the zoo's experts of four kinds of spoiled images, judged on test
  images of all four whose kind is not told. What a method may see are ``SEEN`` training images of
  each kind, with labels only where it needs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.merge.ensembling import (
    Predictor,
    cosine_cycle,
    discover_domains,
    domains,
    embedding,
    posterior_average,
    task_router,
)
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe.calibration import brier_score, expected_calibration_error
from sokmerge.studies.study import Study
from sokmerge.testbed import data, models, training, zoo
from sokmerge.testbed.recipes import CORRUPTIONS, Recipe, master_seed
from sokmerge.testbed.tasks import Together

__all__ = ["EPOCHS", "MEMBERS", "SEEN", "STUDY", "TASKS", "rows"]

#: What one network costs, and how much of it is spent before a run is branched.
EPOCHS, TRUNK = 20, 13

#: How many networks, or points, make a group.
MEMBERS = 4

#: The first seed of networks that are not in the zoo.
FRESH = 800

#: The experts' tasks, and how many training images of each a method may see.
TASKS = tuple(CORRUPTIONS)
SEEN = 500

#: Lengths of the step of task arithmetic, chosen from by accuracy on the images seen.
SCALES = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

CHUNK = 250

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    yield from _groups(seed)
    yield from _experts(seed)


def row(part: str, group: str, method: str, i: int, j: int, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "method": method, "i": i, "j": j, "measure": measure}
    return {**said, "value": round(float(value), 6)}


# Groups -------------------------------------------------------------------------------------


def _groups(seed: int) -> Iterator[Row]:
    recipe = zoo.family("mlp-width-128")[seed]
    bench = Bench(recipe, seed)
    for name, make in GROUPS.items():
        members = make(bench)
        yield from _judged(bench, name, members)
        yield from _compared(bench, name, members)
    for name, point in bench.singles():
        for measure, value in bench.scores(bench.outputs(point)).items():
            yield row("singles", name, "", -1, -1, measure, value)


class Bench:
    """One seed: the images, the network of the zoo, and a trunk that is shared by branches."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = replace(recipe, family="ensembling"), seed
        self.module, self.single = zoo.load(recipe)
        self.network = Network(self.module)
        self.train = training.inputs_of(recipe, "train")
        self.test = data.fashion("test")
        self.trunk = self.trained(epochs=TRUNK)
        self.line, self.simplex = self._line(), self._simplex()

    def fresh(self, number: int) -> Recipe:
        """The same recipe from another start; numbers of one seed are not those of another."""
        own = 1000 * master_seed() + FRESH + 10 * self.seed + number
        return replace(self.recipe, seed=own, order_seed=own)

    def trained(self, start: Params | None = None, each=None, recipe=None, **how) -> Params:
        """Train on all images as the recipe says, from its own random weights by default."""
        recipe = replace(recipe or self.recipe, **how)
        if start is None:
            start = params.of(models.build(recipe.arch, recipe.seed))
        each = {} if each is None else {"each_epoch": each}
        return training.fine_tune(recipe, start, *self.train, **each)

    def loss(self, key: str) -> Callable[[Params, int], Tensor]:
        """The loss on one batch after the other, in an order of its own for each epoch."""
        inputs, targets = self.train
        size = self.recipe.batch
        per_epoch = self.steps(1)
        orders: dict[int, Tensor] = {}

        def loss(point: Params, step: int) -> Tensor:
            epoch, at = divmod(step, per_epoch)
            if epoch not in orders:
                generator = params.stream(f"{self.seed}:{key}:{epoch}")
                orders[epoch] = torch.randperm(len(targets), generator=generator)
            some = orders[epoch][size * at : size * (at + 1)]
            outputs = torch.func.functional_call(self.module, dict(point), (inputs[some],))
            return F.cross_entropy(outputs, targets[some])

        return loss

    def steps(self, epochs: float) -> int:
        """How many steps that many epochs have."""
        return round(epochs * -(-len(self.train[1]) // self.recipe.batch))

    def rates(self) -> list[float]:
        """The rate of each epoch where Adam begins anew at each."""
        high = self.recipe.lr
        return [cosine_cycle(epoch, period=EPOCHS, high=high) for epoch in range(EPOCHS)]

    def _line(self) -> merge.Simplexes:
        ends = [params.of(models.build(self.recipe.arch, self.fresh(k).seed)) for k in (5, 6)]
        found = merge.Simplexes((tuple(ends),))
        for epoch, rate in enumerate(self.rates()):
            how = {"steps": self.steps(1), "lr": rate, "beta": 1.0, "seed": 100 * self.seed + epoch}
            found = merge.learned_line(found.corners[0], loss=self.loss(f"line{epoch}"), **how)
        return found

    def _simplex(self) -> merge.Simplexes:
        each = self.steps((EPOCHS - TRUNK) / 2)
        how = {"corners": 2, "steps": each, "lr": self.recipe.lr / 2, "seed": self.seed}
        return merge.simplex([self.trunk], loss=self.loss("simplex"), volume=1e-3, **how)

    def singles(self) -> Iterator[tuple[str, Params]]:
        """One network each for the cost of one."""
        yield "one network", self.single
        anew = params.of(models.build(self.recipe.arch, self.recipe.seed))
        for epoch, rate in enumerate(self.rates()):
            order = 1000 * self.seed + epoch
            how = {"epochs": 1, "lr": rate, "schedule": "constant", "order_seed": order}
            anew = self.trained(anew, **how)
        yield "one network, Adam anew", anew
        yield "middle of the line", self.line.middle()
        yield "centre of the simplex", self.simplex.middle()

    @torch.no_grad()
    def outputs(self, predict: Params | Predictor) -> Tensor:
        """The logits on the test images, in double precision."""
        if not callable(predict):
            return self.network(predict, self.test[0]).double()
        return predict(self.test[0]).double()

    def scores(self, logits: Tensor) -> dict[str, float]:
        """What :func:`scores` says of the test images."""
        return scores(logits, self.test[1])


def scores(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return loss [nats], error [%], calibration error [%], Brier score and mean entropy [nats]."""
    logs = logits.double().log_softmax(1)
    probabilities = logs.exp()
    return {
        "loss": float(F.cross_entropy(logits.double(), targets)),
        "error": 100 * float((logits.argmax(1) != targets).double().mean()),
        "calibration": 100 * float(expected_calibration_error(probabilities, targets)),
        "brier": float(brier_score(probabilities, targets)),
        "entropy": float(-(probabilities * logs.clamp_min(-1e4)).sum(1).mean()),
    }


def _independent(bench: Bench) -> list[Params]:
    others = [bench.trained(recipe=bench.fresh(k)) for k in range(1, MEMBERS)]
    return [bench.single, *others]


def _short(bench: Bench) -> list[Params]:
    epochs = EPOCHS // MEMBERS
    return [bench.trained(recipe=bench.fresh(k), epochs=epochs) for k in range(MEMBERS)]


def _one_start(bench: Bench) -> list[Params]:
    how = {"epochs": EPOCHS - TRUNK}
    orders = (bench.fresh(k).order_seed for k in range(MEMBERS))
    return [bench.trained(bench.trunk, order_seed=order, **how) for order in orders]


def _snapshots(bench: Bench) -> list[Params]:
    points: list[Params] = []
    cycle = EPOCHS // MEMBERS
    bench.trained(
        schedule="cyclic",
        cycle=cycle,
        epochs=EPOCHS,
        each=lambda epoch, point: points.append(point) if epoch % cycle == 0 else None,
    )
    return points


def _fge(bench: Bench) -> list[Params]:
    """The points of fast geometric ensembling: those at which the rate is low."""
    low, high = bench.recipe.lr / 10, bench.recipe.lr
    points: list[Params] = []

    def train(point: Params, rate: float) -> Params:
        how = {"epochs": 1, "lr": rate, "schedule": "constant", "order_seed": len(points)}
        points.append(bench.trained(point, **how))
        return points[-1]

    merge.fge(
        [bench.trunk], module=bench.module, train=train, high=high, low=low, period=2,
        cycles=MEMBERS,
    )  # fmt: skip
    return points[::2]


def _tail(bench: Bench) -> list[Params]:
    points: list[Params] = []
    bench.trained(
        bench.trunk,
        schedule="constant",
        epochs=EPOCHS - TRUNK,
        each=lambda epoch, point: points.append(point),
    )
    return points[-MEMBERS:]


GROUPS: dict[str, Callable[[Bench], list[Params]]] = {
    "independent": _independent,
    "independent, short": _short,
    "one start": _one_start,
    "snapshots": _snapshots,
    "fast geometric": _fge,
    "tail of one run": _tail,
    "line": lambda bench: bench.line.sample(MEMBERS, seed=bench.seed),
    "simplex": lambda bench: bench.simplex.sample(MEMBERS, seed=bench.seed),
}


def _judged(bench: Bench, name: str, members: Sequence[Params]) -> Iterator[Row]:
    each = [bench.scores(bench.outputs(member)) for member in members]
    found = {"mean member": {m: sum(s[m] for s in each) / len(each) for m in each[0]}}
    found["best member"] = {m: min(s[m] for s in each) for m in each[0]}
    how = {"module": bench.module}
    for method, predict in {
        "probabilities": merge.probability_ensemble(members, **how),
        "logits": merge.logit_ensemble(members, **how),
        "average": merge.average(members),
    }.items():
        found[method] = bench.scores(bench.outputs(predict))
    for method, measured in found.items():
        for measure, value in measured.items():
            yield row("groups", name, method, -1, -1, measure, value)


def _compared(bench: Bench, name: str, members: Sequence[Params]) -> Iterator[Row]:
    said = [bench.outputs(member).argmax(1) for member in members]
    for i, j in itertools.combinations(range(len(members)), 2):
        differ = 100 * float((said[i] != said[j]).double().mean())
        wrong = [100 * float((said[k] != bench.test[1]).double().mean()) for k in (i, j)]
        apart = float(params.distance(members[i], members[j]))
        for measure, value in (
            ("disagreement", differ),
            ("disagreement over error", 2 * differ / sum(wrong)),
            ("distance", apart),
        ):
            yield row("pairs", name, "", i, j, measure, value)


# Experts ------------------------------------------------------------------------------------


def _experts(seed: int) -> Iterator[Row]:
    shop = Shop(seed)
    for method, predict in shop.methods():
        logits = [_in_chunks(predict, x) for x, _ in shop.tests]
        every = scores(torch.cat(logits), torch.cat([y for _, y in shop.tests]))
        for measure, value in every.items():
            yield row("experts", "all", method, -1, -1, measure, value)
        for task, said, (_, y) in zip(TASKS, logits, shop.tests, strict=True):
            wrong = 100 * float((said.argmax(1) != y).double().mean())
            yield row("experts", task, method, -1, -1, "error", wrong)
        if isinstance(predict, Predictor):
            costs = {"passes": predict.passes, "parameters": predict.parameters}
            for measure, value in {**costs, "merging": predict.merging}.items():
                yield row("experts", "all", method, -1, -1, measure, value)
    for who, right in shop.told():
        yield row("experts", "all", who, -1, -1, "kind told", right)


@torch.no_grad()
def _in_chunks(predict: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([predict(x) for x in inputs.split(CHUNK)])


class Shop:
    """Four experts and their base, images of their kinds, and what is merged of them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.module, self.base = zoo.load(zoo.family("broad")[seed])
        self.models = [zoo.load(zoo.family(task)[seed])[1] for task in TASKS]
        self.network = Network(self.module)
        images, test = data.fashion("train", limit=SEEN, seed=1), data.fashion("test", limit=1000)
        self.seen = [CORRUPTIONS[task](*images) for task in TASKS]
        self.tests = [CORRUPTIONS[task](*test) for task in TASKS]
        self.unlabelled = [x for x, _ in self.seen]
        self.features = embedding(self.module, self.base, "head")
        self.domains = domains(self.unlabelled)
        self.router = task_router(self.unlabelled, features=self.features)

    def methods(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Each method by its name, and what it gives."""
        one, many = {"module": self.module}, {"module": self.module, "base": self.base}
        (inputs, targets), told = map(torch.cat, zip(*self.seen, strict=True)), self.features
        yield "base", self.at(self.base)
        for task, expert in zip(TASKS, self.models, strict=True):
            yield f"expert of {task}", self.at(expert)
        yield "joint training", self.at(zoo.load(zoo.family("joint-tasks")[self.seed])[1])
        yield "average", self.at(merge.average(self.models))
        scale = self._scale(inputs, targets)
        merged = merge.task_arithmetic(self.models, base=self.base, scale=scale)
        yield "task arithmetic", self.at(merged)
        yield "uniform ensemble", merge.probability_ensemble(self.models, **one)
        how = {"posterior": self.domains, **one}
        yield "Branch-Train-Merge", merge.branch_train_merge(self.models, **how)
        yield "posterior average", self.by_kind()
        experts, clusters = self.clustered()
        yield "clusters, uniform", merge.probability_ensemble(experts, **one)
        yield (
            "clusters, posterior",
            merge.branch_train_merge(experts, posterior=clusters, **one),
        )

        def loss(outputs: Tensor, rows: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets[rows])

        how = {"inputs": inputs, "loss": loss, "features": told, "seed": self.seed, **one}
        yield "SMEAR", merge.smear(self.models, **how)
        how = {"inputs": self.unlabelled, "features": told, "seed": self.seed, **many}
        yield "WEMoE", merge.wemoe(self.models, layers=["hidden."], start=scale, batch=16, **how)
        for name, rank in (("Twin-Merging", None), ("Twin-Merging, rank 8", 8)):
            how = {"router": self.router, "rank": rank, "scale": scale, **many}
            yield name, merge.twin_merging(self.models, **how)

    def at(self, point: Params) -> Predictor:
        """One network."""
        return merge.probability_ensemble([point], module=self.module)

    def by_kind(self) -> Callable[[Tensor], Tensor]:
        """For the images that come together, the average by their mean posterior."""

        def predict(inputs: Tensor) -> Tensor:
            how = {"posterior": self.domains, "inputs": inputs}
            return self.network(posterior_average(self.models, **how), inputs)

        return predict

    def clustered(self) -> tuple[list[Params], Any]:
        """Experts of clusters of all training images, trained as the zoo's, and the clusters."""
        recipe = zoo.family(TASKS[0])[self.seed]
        inputs, targets = Together(tuple(CORRUPTIONS.values()))(*data.fashion("train"))
        how = {"features": self.features, "seed": self.seed}
        found = discover_domains(torch.cat(self.unlabelled), len(TASKS), **how)
        place = found(inputs).argmax(1)
        experts = [
            training.fine_tune(recipe, self.base, inputs[place == k], targets[place == k])
            for k in range(len(TASKS))
        ]
        return experts, found

    def told(self) -> Iterator[tuple[str, float]]:
        """How often the kind of a test image is told [%], by domains and by the router."""
        for who, posterior in (("domains", self.domains), ("router", self.router)):
            with torch.no_grad():
                right = [
                    (posterior(x).argmax(1) == k).double().mean()
                    for k, (x, _) in enumerate(self.tests)
                ]
            yield who, 100 * float(torch.stack(right).mean())

    def _scale(self, inputs: Tensor, targets: Tensor) -> float:
        def right(scale: float) -> float:
            point = merge.task_arithmetic(self.models, base=self.base, scale=scale)
            return float((self.network(point, inputs).argmax(1) == targets).double().mean())

        return max(SCALES, key=right)


STUDY = Study("ensembling", rows)
