"""Merging with a derived symmetry: residual networks and vision transformers, aligned, corrected.

All ten pairs of the five networks of three families of the zoo are measured, two with each seed:
residual networks with BatchNorm and with layer normalisation, and small vision transformers. The
group of each is derived from its graph.

* The second network is placed as it was trained, by its weights, or by its activations (their
  correlations). Each pair is averaged and judged as it is, with the BatchNorm statistics averaged
  like all else, and corrected: statistics estimated anew where there are any, REPAIR elsewhere.
* For the transformers parts of the group are held while the rest is matched by weights: the
  residual stream, the heads, all of the attention, or all but the hidden units.

What a method may see are a thousand training images without labels; judges are a thousand other
training images and a thousand test images. The excess is the loss (or the percentage of errors)
of the average less the mean of that of the two networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sokmerge import merge, params, symmetry
from sokmerge.merge.alignment.weight_matching import climb
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.reader import Estimate
from sokmerge.studies.neuron_alignment import Measured, images
from sokmerge.studies.study import Study
from sokmerge.symmetry import Permutation, PermutationGroup
from sokmerge.testbed import models, training, zoo
from sokmerge.testbed.models import Architecture

__all__ = ["FAMILIES", "HELD", "PLACED", "STUDY", "Bench", "Found", "held", "parts"]

#: The families, and what they are called in a figure.
FAMILIES = {"residual-batch": "BatchNorm", "residual-layer": "layer norm", "vit": "transformer"}

#: How the second network is placed.
PLACED = ("as trained", "weights", "activations")

#: What of a transformer keeps its order while the rest is matched.
HELD = ("stream", "heads", "attention", "all but hidden")

#: Images of each split by which an average is judged.
JUDGED = 1000

#: Random orders of the layers of which weight matching keeps the best.
ORDERS = 5

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure two pairs of each family for one seed."""
    for family in FAMILIES:
        recipes = zoo.family(family)
        bench = Bench(family, recipes[0].arch)
        for step in (1, 2):
            pair = sorted((seed, (seed + step) % len(recipes)))
            yield from bench.pair(*pair, *(zoo.load(recipes[k])[0].state_dict() for k in pair))


class Bench:
    """Networks of one architecture, with the group of it, and what is asked of two of them."""

    def __init__(self, family: str, arch: Architecture) -> None:
        self.family, self.module = family, models.build(arch)
        (self.seen, _), judges = images()
        self.judges = {split: (x[:JUDGED], y[:JUDGED]) for split, (x, y) in judges.items()}
        self.group = symmetry.of(self.module, self.seen[:1])
        self.network = Network(self.module)

    def pair(self, i: int, j: int, a: Params, b: Params) -> Iterator[Row]:
        """Rows of all that is measured of two networks."""
        own = [self.judged(end) for end in (a, b)]
        for placed, permutation in self.permutations(a, b):
            end = self.group.act(permutation, b)
            corrected = ("no", "yes") if placed in PLACED else ("no",)
            for how in corrected:
                found = self.judged(self.merged([a, end], how == "yes"))
                for (split, measure), value in found.items():
                    base = sum(each[split, measure] for each in own) / 2
                    yield self.row(i, j, placed, how, split, f"excess {measure}", value - base)
            apart = [{name: p[name] for name in self.network.parameters} for p in (a, end)]
            yield self.row(i, j, placed, "", "", "distance", params.distance(*apart))

    def permutations(self, a: Params, b: Params) -> Iterator[tuple[str, Permutation]]:
        """The ways of placing b, and the element of the group that does it."""
        yield "as trained", self.group.identity()
        yield "weights", held(a, b, self.group)
        found = merge.activation_matching(
            self.module, a, b, self.group, self.seen, similarity="correlation"
        )
        yield "activations", found.permutation
        if self.family == "vit":
            some = parts(self.group)
            for what in HELD:
                yield f"weights, {what} held", held(a, b, self.group, some[what])

    def merged(self, ends: Sequence[Params], corrected: bool) -> Params:
        """The average of networks that are in one order, as :func:`merge.aligned` makes it."""
        point = merge.average(ends)
        if not corrected:
            return point
        if self.network.keeps_statistics:
            return self.network.state(point, self.seen)
        return merge.repair(self.module, ends, self.group, self.seen, merged=point)

    def judged(self, point: Params) -> dict[tuple[str, str], float]:
        """Loss and percentage of errors on both splits, with the statistics that the point has."""
        self.module.load_state_dict(dict(point))
        found = {}
        for split, (inputs, targets) in self.judges.items():
            score = training.score(self.module, inputs, targets, chunk=125)
            found[split, "loss"], found[split, "error"] = score.loss, 100 * (1 - score.accuracy)
        return found

    def row(
        self, i: int, j: int, placed: str, how: str, split: str, measure: str, x: Tensor | float
    ) -> Row:
        """A row of the table; the columns that do not apply hold an empty text."""
        said = {"part": self.family, "i": i, "j": j, "method": placed, "repaired": how}
        return {**said, "split": split, "measure": measure, "value": round(float(x), 6)}


def parts(group: PermutationGroup) -> dict[str, tuple[str, ...]]:
    """Return the names of the blocks of a transformer that make each of :data:`HELD`."""
    heads = {b.within for b in group.blocks if b.within is not None}
    attention = {b.name for b in group.blocks if b.name in heads or b.within is not None}
    stream = {b.name for b in group.blocks if any(x.parameter == "head.weight" for x in b.axes)}
    found = {
        "stream": stream,
        "heads": heads,
        "attention": attention,
        "all but hidden": stream | attention,
    }
    return {what: tuple(sorted(names)) for what, names in found.items()}


def held(a: Params, b: Params, group: PermutationGroup, names: Sequence[str] = ()) -> Permutation:
    """Return the best of several weight matchings in which some blocks keep their order."""
    settled = {name: group.identity()[name] for name in names}
    found = (climb(a, b, group, seed, 100, settled) for seed in range(ORDERS))
    return max(found, key=lambda matching: matching.similarity).permutation


class Found(Measured):
    """The table of this study, asked for estimates over the ten pairs of a family."""

    def less(
        self, family: str, first: str, second: str, split: str = "test", repaired: str = "no"
    ) -> Estimate:
        """By how much one way of placing leaves more excess loss than another."""
        a, b = (self.values(family, way, repaired, split) for way in (first, second))
        told = f"{FAMILIES[family]}: {first} less {second}, {split} images"
        return Estimate.of_differences(a, b, label=told, unit="nats")

    def share_removed(self, family: str, placed: str = "weights", split: str = "train") -> Estimate:
        """The share of the excess loss that the correction takes away."""
        plain, fixed = (self.values(family, placed, how, split) for how in ("no", "yes"))
        told = f"{FAMILIES[family]}, {placed}: share removed, {split} images"
        return Estimate.of_pairs({k: 1 - fixed[k] / x for k, x in plain.items()}, label=told)

    def left(
        self, family: str, placed: str, repaired: str, split: str = "test", what: str = "error"
    ) -> Estimate:
        """The excess error, or loss, of one way."""
        found = self.values(family, placed, repaired, split, f"excess {what}")
        told = f"{FAMILIES[family]}, {placed}: excess {what}, {split} images"
        return Estimate.of_pairs(found, label=told, unit="nats" if what == "loss" else "points")

    def distance(self, family: str, placed: str) -> Estimate:
        """How far apart the two networks are in parameter space."""
        return Estimate.of_pairs(self.values(family, placed, "", "", "distance"))


STUDY = Study("symmetry", rows)
"""What the chapter on derived symmetries reads."""
