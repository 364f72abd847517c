"""Neuron alignment: the matchings on one set of pairs, many networks at once, and a deep pair.

* ``matchings``: all ten pairs of the five networks of ``mlp-width-128``, two with each seed. What a
  method may see is the same thousand training images, with labels only where it needs a loss.
* ``many``: two, three and five networks, for each seed others, merged at once or in pairs.
* ``deep``: for each seed two networks of six hidden layers.
* ``tasks``: for each seed two pairs of experts from different starts, for two kinds of spoiled
  images and for two halves of the classes, judged by their errors on each task's test images.

Elsewhere all are judged on two thousand training images that no method has seen and on two
thousand test images, as they are and after REPAIR. The excess is the loss (or the percentage of
errors) of the merge less the mean of that of the networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import merge, symmetry
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk
from sokmerge.reader import Estimate, plots
from sokmerge.studies.study import Study
from sokmerge.symmetry import PermutationGroup
from sokmerge.testbed import data, models, zoo
from sokmerge.testbed.recipes import Recipe, master_seed
from sokmerge.testbed.training import train

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COUNTS", "GAMMAS", "STUDY", "TASKS", "Bench", "Measured", "draw", "estimate", "images"]

#: The first seed of the networks that are not in the zoo.
FRESH = 500

#: The regularisations of CCA Merge that are tried.
GAMMAS = (0.01, 0.1, 1.0)

#: How many networks are merged at once.
COUNTS = (2, 3, 5)

#: Pairs of tasks for which the zoo has experts from different starts.
TASKS = {"spoiled": ("noisy", "bright"), "classes": ("class-half-a", "class-half-b")}

#: The parts in which each seed has networks of its own.
BY_SEED = ("many", "deep", "tasks")

Row = dict[str, Any]


def images() -> tuple[tuple[Tensor, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Return the images that methods see, and those of the two splits that judge."""
    inputs, targets = data.fashion("train", limit=3000)
    judges = {"train": (inputs[:2000], targets[:2000]), "test": data.fashion("test", limit=2000)}
    return (inputs[2000:], targets[2000:]), judges


class Bench:
    """Networks of one architecture, and what is asked of a merge of some of them."""

    def __init__(self, part: str, module: nn.Module, recipe: Recipe) -> None:
        self.part, self.module = part, module
        self.group: PermutationGroup = symmetry.chain(module, models.chain(recipe.arch))
        (self.seen, self.labels), judges = images()
        self.risks = {split: EmpiricalRisk(module, *judge) for split, judge in judges.items()}

    def row(self, i: int, j: int, method: str, repaired: str, split: str, what: str, x: float):
        """A row of the table; the columns that do not apply hold an empty text."""
        return {
            "part": self.part,
            "i": i,
            "j": j,
            "method": method,
            "repaired": repaired,
            "split": split,
            "measure": what,
            "value": round(float(x), 6),
        }

    def judge(
        self, i: int, j: int, method: str, ends: Sequence[Params], merged: Params | None = None
    ) -> Iterator[Row]:
        """Rows of the excess of a merge, by default the average, without and with REPAIR."""
        plain = merge.average(ends) if merged is None else merged
        fixed = merge.repair(self.module, ends, self.group, self.seen, merged=plain)
        for split, risk in self.risks.items():
            own = [risk(end) for end in ends]
            for repaired, point in (("no", plain), ("yes", fixed)):
                found = risk(point)
                loss = found.loss - sum(each.loss for each in own) / len(own)
                error = found.error - sum(each.error for each in own) / len(own)
                yield self.row(i, j, method, repaired, split, "excess loss", loss)
                yield self.row(i, j, method, repaired, split, "excess error", 100 * error)

    def fading(self, i: int, j: int, ends: Sequence[Params]) -> Iterator[Row]:
        """Rows of the share of the variance that is left half way, layer by layer."""
        a, b = ends
        product = 1.0
        layers = merge.variance_ratio(self.module, a, b, self.group, self.seen)
        for at, each in enumerate(layers, start=1):
            product *= each.predicted
            shares = {"measured": each.measured, "one layer": each.predicted, "product": product}
            for what, share in shares.items():
                yield self.row(i, j, f"layer {at}", "", "", what, share)

    def loss(self, point: Params) -> Tensor:
        """The loss on the images seen, which can be differentiated."""
        outputs = torch.func.functional_call(self.module, dict(point), (self.seen,))
        return F.cross_entropy(outputs, self.labels)


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    yield from _matchings(seed)
    yield from _many(seed)
    yield from _deep(seed)
    yield from _tasks(seed)


def _matchings(seed: int) -> Iterator[Row]:
    family = zoo.family("mlp-width-128")
    bench = Bench("matchings", models.build(family[0].arch), family[0])
    for step in (1, 2):
        i, j = sorted((seed, (seed + step) % len(family)))
        a, b = (zoo.load(family[k])[1] for k in (i, j))
        yield from bench.judge(i, j, "as trained", [a, b])
        for method, permutation in _permutations(bench, a, b):
            yield from bench.judge(i, j, method, [a, bench.group.act(permutation, b)])
        matched = bench.group.act(merge.weight_matching(a, b, bench.group).permutation, b)
        for gamma in GAMMAS:
            merged = merge.cca_merge(
                bench.module, [a, b], bench.group, bench.seen, regularisation=gamma
            )
            # The targets of REPAIR are those of corresponding units: a's, and b's in a's order.
            yield from bench.judge(i, j, f"CCA, {gamma:g}", [a, matched], merged)


def _permutations(bench: Bench, a: Params, b: Params) -> Iterator[tuple[str, Any]]:
    group, few = bench.group, EmpiricalRisk(bench.module, bench.seen[:500], bench.labels[:500])
    by_units = merge.activation_matching(bench.module, a, b, group, bench.seen)
    yield "weights", merge.weight_matching(a, b, group).permutation
    yield "activations", by_units.permutation
    found = merge.straight_through_matching(a, b, group, loss=bench.loss)
    yield "straight-through", found.permutation
    yield "Sinkhorn, distance", merge.sinkhorn_matching(a, b, group).permutation
    yield "Sinkhorn, loss", merge.sinkhorn_matching(a, b, group, loss=bench.loss).permutation
    yield (
        "annealing",
        merge.annealed_matching(
            a, b, group, score=lambda point: -few(point).loss, steps=2000, hot=0.01
        ).permutation,
    )


def _many(seed: int) -> Iterator[Row]:
    first = zoo.family("mlp-width-128")[seed]
    networks = [zoo.load(first)[1], *(_fresh(first, 10 * seed + k) for k in range(4))]
    bench = Bench("many", models.build(first.arch), first)
    group = bench.group
    for count in COUNTS:
        some = networks[:count]
        to_first = [merge.weight_matching(some[0], m, group).permutation for m in some]
        universe = merge.cycle_consistent_matching(some, group)
        for method, maps in (
            ("as trained", [group.identity()] * count),
            ("pairwise", to_first),
            ("cycle-consistent", universe.permutations),
        ):
            placed = [group.act(p, m) for p, m in zip(maps, some, strict=True)]
            yield from bench.judge(count, 0, method, placed)
        for i, j, k in [(0, 1, 2)] if count == 3 else []:
            pairs = {
                pair: merge.weight_matching(some[pair[0]], some[pair[1]], group).permutation
                for pair in itertools.permutations((i, j, k), 2)
            }
            through = {pair: universe.between(*pair) for pair in pairs}
            for method, maps in (("pairwise", pairs), ("cycle-consistent", through)):
                trip = group.compose(maps[i, j], group.compose(maps[j, k], maps[k, i]))
                home = [
                    (trip[b.name] == torch.arange(b.size)).double().mean() for b in group.blocks
                ]
                away = 100 * (1 - torch.stack(home).mean())
                yield bench.row(count, 0, method, "", "", "units away from home", away)


def _deep(seed: int) -> Iterator[Row]:
    shallow = zoo.family("mlp-width-128")[seed]
    recipe = replace(shallow, family="mlp-depth-6", arch=models.MLP(width=128, depth=6))
    a, b = (_fresh(recipe, 10 * seed + k) for k in range(2))
    bench = Bench("deep", models.build(recipe.arch), recipe)
    matched = bench.group.act(merge.weight_matching(a, b, bench.group).permutation, b)
    for method, end in (("as trained", b), ("weights", matched)):
        yield from bench.judge(0, 1, method, [a, end])
    yield from bench.fading(0, 1, [a, matched])


def _tasks(seed: int) -> Iterator[Row]:
    for kind, names in TASKS.items():
        recipes = [zoo.family(f"lone-{name}")[seed] for name in names]
        bench = Bench("tasks", models.build(recipes[0].arch), recipes[0])
        a, b = (zoo.load(recipe)[1] for recipe in recipes)
        b = bench.group.act(merge.weight_matching(a, b, bench.group).permutation, b)
        plain = merge.average([a, b])
        spoil = [recipe.tasks[0] for recipe in recipes]
        given = [task(bench.seen, bench.labels)[0] for task in spoil]
        fixed = merge.repair(bench.module, [a, b], bench.group, torch.cat(given))
        by_task = merge.tact(bench.module, [a, b], bench.group, given)
        for k, task in enumerate(spoil):
            risk = EmpiricalRisk(bench.module, *task(*data.fashion("test")))
            for method, point in (
                ("expert", (a, b)[k]), ("average", plain), ("REPAIR", fixed), ("TACT", by_task[k]),
            ):  # fmt: skip
                error = 100 * risk(point).error
                yield bench.row(k, 0, f"{kind}: {method}", "", "test", "error", error)


def _fresh(recipe: Recipe, number: int) -> Params:
    """Train a network that is not in the zoo."""
    seed = 1000 * master_seed() + FRESH + number
    trained = train(replace(recipe, seed=seed, order_seed=seed))
    return {name: tensor.float() for name, tensor in trained.state.items()}


Values = dict[Hashable, float]
_KEYS = ["part", "method", "repaired", "split", "measure"]


class Measured:
    """A table of such rows, asked for replicates and for estimates.

    Args:
        table: with the columns of :meth:`Bench.row`, and ``seed``.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._found = dict(iter(table.groupby(_KEYS)))

    def values(
        self,
        part: str,
        method: str,
        repaired: str = "no",
        split: str = "train",
        measure: str = "excess loss",
        count: int | None = None,
    ) -> Values:
        """Return the replicates of one measurement.

        Where pairs of the same networks were measured, they are named by the pair; otherwise by
        the seed. ``count`` says how many networks were merged, or which task is meant.
        """
        found = self._found[part, method, repaired, split, measure]
        if count is not None:
            found = found[found.i == count]
        keys = found.seed if part in BY_SEED else zip(found.i, found.j, strict=True)
        return dict(zip(keys, found.value, strict=True))

    def shares(self, part: str, layer: int, what: str) -> Values:
        """Return what is left of the variance in a layer, measured or predicted."""
        return self.values(part, f"layer {layer}", "", "", what)

    def gap(self, part: str, first: str, second: str, split: str = "train", **which) -> Estimate:
        """Return by how much the first method's excess loss lies above the second's."""
        a, b = (self.values(part, name, split=split, **which) for name in (first, second))
        label = f"{first} less {second}, {split} images"
        return estimate({k: x - b[k] for k, x in a.items()}, label=label, unit="nats")

    def removed(self, part: str, label: str) -> Estimate:
        """Return the share of the excess loss after matching that REPAIR removes."""
        plain, fixed = (self.values(part, "weights", repaired) for repaired in ("no", "yes"))
        return estimate({k: 1 - fixed[k] / x for k, x in plain.items()}, label=label)


def draw(ax: Axes, at: Sequence[float], found: Sequence[Values], label: str, look: str) -> None:
    """Draw replicates, their means and intervals at some positions."""
    dots = [[*values.values()] for values in found]
    plots.replicates(ax, at, dots, [*map(estimate, found)], label, fmt=look)


def estimate(values: Values, **told: str) -> Estimate:
    """Return the mean of replicates, which are pairs of networks or independent."""
    paired = isinstance(next(iter(values)), tuple)
    return Estimate.of_pairs(values, **told) if paired else Estimate.of([*values.values()], **told)


STUDY = Study("neuron-alignment", rows)
