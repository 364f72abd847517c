r"""Mode determinism: forks of a run, pushes, fine-tuning, pruning with rewinding, and two tasks.

* ``forks``: of each of ``RUNS`` a parent; at each step of ``STEPS`` children that go on from its
  state with the images in other orders. Between them and the parent, which is itself one
  continuation of that state: barriers, distance, cosine, disagreement and CKA. Step -1 stands for
  another start.
* ``parent``: on the way of the unstable parent its test error, the top eigenvalue of the Hessian,
  and how fast the tangent kernel turns.
* ``pushes``: the same parent, its state pushed by a share of its length, in one weight or in all,
  the order of images left as it was.
* ``halves``: two networks of one start, or of two, trained on disjoint halves of the images.
* ``tuning``: two fine-tunings of a pre-trained network on a shifted task at several rates, and two
  trainings of random starts by the same recipe.
* ``pruning``: iterative magnitude pruning with rewinding to several steps of two of the parents,
  and masks shuffled within each layer.
* ``tasks``: from a network of one task, on to a second task alone, or to both tasks together.

Barriers of pairs of one state are averaged. At a high rate a child may be thrown out of all good
regions; another order then takes its place, and the table says how often. Losses are in nats,
errors in percent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from torch import Tensor

from sokmerge import params, probe
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import curvature, determinism
from sokmerge.reader import Estimate, plots
from sokmerge.studies.study import Study
from sokmerge.testbed import data, forks, models, training, zoo
from sokmerge.testbed.recipes import Recipe, master_seed
from sokmerge.testbed.tasks import Rotated, Share, Together

__all__ = [
    "BARRIERS", "FROM_RANDOM", "PUSHED", "PUSHES", "RATES", "REWINDS", "RUNS", "STEPS", "STUDY",
    "TICKETS", "UNSTABLE", "chosen", "difference", "draw", "estimate", "rows",
]  # fmt: skip

#: Images, images a step, and passes over them: 500 steps.
LIMIT, BATCH, EPOCHS = 4_000, 32, 4

CNN, PERCEPTRON = models.PlainCNN((8, 16, 32)), models.MLP(64)

#: A child that ends with more errors than this was lost on the way, and another order is tried.
CHANCE, TRIES = 0.6, 3

#: When children are forked: of the unstable parent, and of the others.
STEPS, FEWER = (0, 5, 10, 25, 50, 100, 250), (0, 10, 50, 250)

#: Network and rate of each parent, how many children it has at a step, and at which steps.
RUNS: dict[str, tuple[models.Architecture, float, int, tuple[int, ...]]] = {
    "CNN, rate 0.15": (CNN, 0.15, 2, STEPS),
    "CNN, rate 0.02": (CNN, 0.02, 1, FEWER),
    "MLP, rate 0.02": (PERCEPTRON, 0.02, 1, FEWER),
}
UNSTABLE = "CNN, rate 0.15"

#: Lengths of pushes, as shares of the length of the parameters, and when they are given.
PUSHES: dict[str, tuple[float, ...]] = {"one weight": (1e-5, 1e-2), "all": (1e-5, 1e-2)}
PUSHED = (0, 25, 100)

#: Steps between the two kernels of a velocity, and images of the kernels.
LAG, KERNEL = 5, 100

#: Rates of fine-tuning; random starts are trained at the second one.
RATES = (5e-4, 2e-3, 1e-2, 3e-2)
FROM_RANDOM = 2e-3

#: Share pruned in a round, rounds, and the steps that are rewound to, of two of the parents.
PRUNED, ROUNDS = 0.6, 2
REWINDS = (0, 25, 100)
TICKETS = ("CNN, rate 0.15", "MLP, rate 0.02")

TURN = 45.0
POINTS = 7

#: The barriers that are measured between two networks.
BARRIERS = tuple(
    f"{split} {what} barrier" for what in ("error", "loss") for split in ("test", "train")
)

Row = dict[str, Any]


def row(part: str, run: str, kind: str, step: int, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "run": run, "kind": kind, "step": step, "x": x, "measure": measure}
    return {**said, "value": round(float(value), 6)}


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    own = 1000 * master_seed() + seed
    for name in RUNS:
        fork = Fork(name, own)
        yield from fork.rows()
        if name in TICKETS:
            yield from fork.pruning()
        if name == UNSTABLE:
            yield from fork.on_the_way()
            yield from fork.pushes()
    yield from halves(own)
    yield from tuning(zoo.family("broad")[seed], own)
    yield from tasks(own)


def chosen(table: pd.DataFrame, measure: str, by: str | None = None, **where: Any) -> Any:
    """Pick a measure from the table of results.

    Args:
        table: what :func:`sokmerge.studies.results` returns.
        measure: which measure.
        by: a column; by default none.
        **where: columns and the value that they have.

    Returns:
        A value for each seed, as a list; with ``by``, a series of such lists, one for each value of
        that column.
    """
    rows = table[(table[[*where]] == [*where.values()]).all(axis=1) & (table.measure == measure)]
    if by is None:
        return rows.groupby("seed").value.mean().tolist()
    return rows.groupby([by, "seed"]).value.mean().groupby(level=0).apply(list)


def estimate(
    table: pd.DataFrame, label: str, measure: str = BARRIERS[0], unit: str = "points", **where: Any
) -> Estimate:
    """Return the estimate of a measure over the seeds; ``where`` as in :func:`chosen`."""
    return Estimate.of(chosen(table, measure, **where), label=label, unit=unit)


def difference(
    table: pd.DataFrame,
    label: str,
    first: dict[str, Any],
    second: dict[str, Any],
    measure: str = BARRIERS[0],
    unit: str = "points",
    **both: Any,
) -> Estimate:
    """Return how much more a measure is in one place than in another, seed by seed."""
    pair = (chosen(table, measure, **both, **where) for where in (first, second))
    return Estimate.of_differences(*pair, label=label, unit=unit)


def draw(
    ax: Axes, found: pd.Series, label: str, places: Sequence[float] | None = None, **how: Any
) -> None:
    """Draw what :func:`chosen` found by a column: seeds as dots, means, and 95 % intervals.

    Args:
        ax: where to draw.
        found: lists of values, indexed by the column.
        label: for the legend.
        places: where each stands on the axis; by default at the value of the column.
        **how: passed to :func:`sokmerge.reader.plots.replicates`, such as ``marker``.
    """
    where = found.index if places is None else places
    plots.replicates(ax, where, found, [Estimate.of(values) for values in found], label, **how)


def sgd(arch: models.Architecture, rate: float, own: int, **how: Any) -> Recipe:
    """The recipe of all runs but fine-tuning: SGD whose rate falls to zero by a cosine."""
    settings = {"limit": LIMIT, "batch": BATCH, "epochs": EPOCHS, "optimizer": "sgd", "lr": rate}
    return Recipe("determinism", arch, seed=own, order_seed=order(own, 0), **settings | how)


def order(own: int, number: int) -> int:
    """Seed of an order of images; numbers of one seed are not those of another."""
    return 10_000 * (own + 1) + number


def last(recipe: Recipe, **how: Any) -> dict[str, Tensor]:
    """Train a recipe to its end, from its own random weights if no start is given."""
    end = forks.steps(recipe) if "targets" not in how else None
    if end is None:
        end = recipe.epochs * -(-len(how["targets"]) // recipe.batch)
    module = models.build(recipe.arch)
    state = forks.trajectory(recipe, [end], **how)[end].params
    return {name: state[name] for name in params.of(module)}


def risks(arch: models.Architecture, turn: float = 0.0) -> dict[str, probe.EmpiricalRisk]:
    """The risk on 2,000 test images and on 2,000 of the training images."""
    module = models.build(arch)
    found = {}
    for split in ("test", "train"):
        x, y = data.fashion(split, limit=2_000)
        found[split] = probe.EmpiricalRisk(module, *Rotated(turn)(x, y))
    return found


def between(
    risk: dict[str, probe.EmpiricalRisk], points: Sequence[Params], *, train: bool = True
) -> Iterator[tuple[str, float]]:
    """Barriers, distance and cosine of the pairs of some points, averaged."""
    for split in ("test", "train") if train else ("test",):
        found = determinism.instability(risk[split], points[: None if split == "test" else 2],
                                        points=POINTS)  # fmt: skip
        yield f"{split} loss barrier", found.loss.mean()
        yield f"{split} error barrier", 100 * found.error.mean()
        if split == "test":
            ends = [wall.line.error[[0, -1]].mean() for wall in found.barriers]
            yield "test error", 100 * sum(ends) / len(ends)
            yield "distance", found.distance.mean()
            yield "cosine", found.cosine.mean()


class Fork:
    """A parent with the states at which it is forked."""

    def __init__(self, name: str, own: int) -> None:
        arch, rate, self.children, self.steps = RUNS[name]
        self.name, self.own = name, own
        self.recipe = recipe = sgd(arch, rate, own)
        self.end = forks.steps(recipe)
        kept = [*STEPS, *PUSHED, *(step + LAG for step in STEPS), self.end]
        self.states = forks.trajectory(recipe, kept)
        self.network = Network(models.build(recipe.arch))
        self.risk = risks(recipe.arch)
        self.parent = self.at(self.end)
        self.inputs = data.fashion("test", limit=500)[0]

    def at(self, step: int) -> dict[str, Tensor]:
        """The parent's parameters at a step."""
        return {name: self.states[step].params[name] for name in self.network.parameters}

    def rows(self) -> Iterator[Row]:
        """What lies between continuations of each state, and between two starts."""
        head = models.chain(self.recipe.arch)[-1]
        for index, step in enumerate((-1, *self.steps)):
            points = [self.parent]
            for child in range(1, 1 + (self.children if step >= 0 else 1)):
                found, lost = self._continued(step, order(self.own, 10 * index + child))
                points.append(found)
                yield row("forks", self.name, "", step, child, "lost", lost)
            for measure, value in between(self.risk, points):
                yield row("forks", self.name, "", step, -1, measure, value)
            found = determinism.instability(
                self.risk["test"], points, points=2, inputs=self.inputs, layers=[head]
            )
            for measure, value in (
                ("disagreement", 100 * found.disagreement.mean()),
                ("cka", found.cka[head].mean()),
            ):
                yield row("forks", self.name, "", step, -1, measure, value)

    def _continued(self, step: int, seed: int) -> tuple[Params, int]:
        """A child, and how many were lost before it: runs that ended near chance."""
        for lost in range(TRIES):
            new = seed + 1_000 * lost
            if step >= 0:
                child = forks.resume(self.recipe, self.states[step], order_seed=new)
            else:
                child = last(replace(self.recipe, seed=5_000_000 + self.own, order_seed=new))
            if self.risk["test"](child).error < CHANCE:
                break
        return child, lost

    def on_the_way(self) -> Iterator[Row]:
        """The parent's own course."""
        x, y = data.fashion("train", limit=500)
        risk = probe.EmpiricalRisk(models.build(self.recipe.arch), x, y)
        seen = x[:: len(x) // KERNEL]

        def kernel(step: int) -> Tensor:
            return determinism.tangent_kernel(self.network, self.at(step), seen)

        final = kernel(self.end)
        for step in STEPS:
            here = kernel(step)
            velocity = determinism.kernel_velocity([here, kernel(step + LAG)], [step, step + LAG])
            top = curvature.eigenpairs(
                curvature.hessian(risk, self.at(step)), tol=1e-2, most=80, seed=self.own
            )
            for measure, value in (
                ("test error", 100 * self.risk["test"](self.at(step)).error),
                ("top eigenvalue", top.values[0]),
                ("kernel velocity", velocity[0]),
                ("kernel distance to the end", determinism.kernel_distance(here, final)),
                ("travel to the end", params.distance(self.at(step), self.parent)),
            ):
                yield row("parent", self.name, "", step, -1, measure, value)

    def pushes(self) -> Iterator[Row]:
        """The same order of images, from a state that was pushed a little."""
        push = {
            "one weight": determinism.push_one_weight,
            "all": determinism.push_all_weights,
        }
        for kind, sizes in PUSHES.items():
            for size, step in itertools.product(sizes, PUSHED):
                state, point = self.states[step], self.at(step)
                length = size * float(params.norm(point))
                moved = push[kind](point, length, self.own)
                child = forks.resume(
                    self.recipe,
                    replace(state, params={**state.params, **moved}),
                    order_seed=self.recipe.order_seed,
                )
                for measure, value in between(self.risk, [self.parent, child], train=False):
                    yield row("pushes", self.name, kind, step, size, measure, value)

    def pruning(self) -> Iterator[Row]:
        """Masks that were found by rewinding to a step, trained from that step, and a fork."""

        def said(kind: str, step: int, measure: str, value: float) -> Row:
            return row("pruning", self.name, kind, step, -1, measure, value)

        yield said("dense", -1, "test error", 100 * self.risk["test"](self.parent).error)
        for step in REWINDS:

            def train(mask: Params, seed: int = self.recipe.order_seed, step: int = step) -> Params:
                state = self.states[step]
                return forks.resume(self.recipe, state, order_seed=seed, mask=mask)

            how = {"share": PRUNED, "rounds": ROUNDS}
            mask = determinism.iterative_pruning(train, self.parent, **how)[-1]
            pair = [train(mask), train(mask, order(self.own, 700 + step))]
            for measure, value in between(self.risk, pair, train=False):
                yield said("found", step, measure, value)
            drawn = train(determinism.shuffled_mask(mask, self.own))
            yield said("shuffled", step, "test error", 100 * self.risk["test"](drawn).error)
            left = sum(float(m.sum()) for m in mask.values()) / sum(
                m.numel() for m in mask.values()
            )
            yield said("found", step, "weights left", 100 * left)


def halves(own: int) -> Iterator[Row]:
    """Disjoint halves of 8,000 images; the barrier on images of both, and on test images."""
    images = data.fashion("train", limit=2 * LIMIT)
    arch, rate, *_ = RUNS["MLP, rate 0.02"]
    found = []
    for half, start in ((0, 0), (1, 0), (1, 1)):
        recipe = sgd(arch, rate, own)
        recipe = replace(
            recipe, seed=own + 5_000_000 * start, order_seed=order(own, 500 + half + start)
        )
        inputs, targets = Share(half, 2)(*images)
        found.append(last(recipe, inputs=inputs, targets=targets))
    risk = risks(arch)
    risk["train"] = probe.EmpiricalRisk(models.build(arch), *images)
    for kind, pair in (("one start", found[:2]), ("two starts", found[::2])):
        for measure, value in between(risk, pair):
            yield row("halves", "MLP, rate 0.02", kind, -1, -1, measure, value)


def tuning(broad: Recipe, own: int) -> Iterator[Row]:
    """Two runs of one recipe on turned images, from one start or from two."""
    base = zoo.load(broad)[1]
    risk = risks(broad.arch, TURN)

    def tuned(rate: float, number: int, start: Params) -> Params:
        recipe = Recipe(
            "determinism", broad.arch, own, order(own, 600 + number), limit=LIMIT,
            tasks=(Rotated(TURN),), lr=rate, epochs=8,
        )  # fmt: skip
        return training.fine_tune(recipe, start)

    for number, rate in enumerate(RATES):
        pair = [tuned(rate, 2 * number + k, base) for k in (0, 1)]
        for measure, value in between(risk, pair):
            yield row("tuning", "pre-trained", "one start", -1, rate, measure, value)
        away = sum(float(params.distance(base, point)) for point in pair) / 2
        yield row("tuning", "pre-trained", "one start", -1, rate, "distance from start", away)
    starts = [params.of(models.build(broad.arch, own + 7_000_000 + k)) for k in (0, 1)]
    first, second, third = (tuned(FROM_RANDOM, 20 + k, starts[s]) for k, s in enumerate((0, 0, 1)))
    for kind, pair in (("one start", [first, second]), ("two starts", [first, third])):
        for measure, value in between(risk, pair):
            yield row("tuning", "random", kind, -1, FROM_RANDOM, measure, value)


def tasks(own: int) -> Iterator[Row]:
    """From the solution of one task to those of a second one, and of both."""
    arch = models.MLP(100, depth=2)
    images = data.fashion("train", limit=LIMIT)
    turned = Rotated(TURN)(*images)
    both = Together((Rotated(0.0), Rotated(TURN)))(*images)

    def trained(number: int, data: tuple[Tensor, Tensor], epochs: int, **start: Any) -> Params:
        recipe = replace(sgd(arch, 0.02, own, epochs=epochs), order_seed=order(own, 800 + number))
        return last(recipe, inputs=data[0], targets=data[1], **start)

    one = trained(0, images, EPOCHS)
    ends = {
        "second task alone": trained(1, turned, EPOCHS, start=one),
        "both tasks": trained(2, both, EPOCHS * LIMIT // len(both[1]), start=one),
    }
    module = models.build(arch)
    first = probe.EmpiricalRisk(module, *images)
    second = probe.EmpiricalRisk(module, *turned)
    top = curvature.eigenpairs(
        curvature.hessian(probe.EmpiricalRisk(module, images[0][::4], images[1][::4]), one),
        50, tol=5e-2, most=130, seed=own,
    )  # fmt: skip
    layout = curvature.hessian(first, one).layout
    for kind, end in ends.items():
        for task, risk in (("first", first), ("second", second)):
            wall = probe.barrier(risk, one, end, points=POINTS)
            for alpha, loss in zip(wall.line.alphas, wall.line.loss, strict=True):
                yield row("tasks", task, kind, -1, alpha, "loss", loss)
            yield row("tasks", task, kind, -1, -1, "loss barrier", wall.loss)
            yield row("tasks", task, kind, -1, -1, "error", 100 * wall.line.error[-1])
        way = layout.flatten(params.subtract(end, one))
        shares = (top.vectors @ way).square() / way.square().sum()
        for count in (10, 50):
            share = 100 * float(shares[:count].sum())
            yield row("tasks", "first", kind, -1, count, "share in top eigenvectors", share)
        yield row("tasks", "first", kind, -1, -1, "distance", float(way.norm()))
    across = probe.barrier(second, ends["both tasks"], ends["second task alone"], points=POINTS)
    yield row("tasks", "second", "between the two", -1, -1, "loss barrier", across.loss)


STUDY = Study("determinism", rows)
