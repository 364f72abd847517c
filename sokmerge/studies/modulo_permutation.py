"""Connectivity modulo permutation: barriers over depth, time and channels, and their limits.

Each seed makes networks of its own, two from different random starts, A and B; only the residual
networks are the zoo's, and there all ten pairs of its five are measured, two with each seed.

* ``depth``, ``epochs``, ``channels``: barriers between A and B as trained, and after B was
  re-indexed by its weights or by its activations. The measure of a random order is the barrier
  between A and a copy of A whose units were shuffled. ``epochs`` follows two runs, and re-indexes
  B with the permutation of the same epoch or with the one of the last; there the accuracy half way
  is measured, too.
* ``repair``: the excess half way, before and after the statistics of the units are put right: by
  REPAIR in chains without normalisation, by fresh statistics where there is BatchNorm.
* ``split``: A and B see disjoint images, eight of ten from five of the classes each.
* ``zip``, ``features``: networks of six layers, merged in the first layers only, for two pairs of
  tasks; and the correlation of their matched units.

A barrier is read at three places, the ends of the line and its middle. Judges are two thousand of
the images trained on and two thousand test images; what a method may see are a thousand training
images without labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sokmerge import merge, params, symmetry
from sokmerge.merge.alignment.mapping import moments
from sokmerge.merge.alignment.matching import assign
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.probe.calibration import brier_score, expected_calibration_error
from sokmerge.reader import Estimate, plots
from sokmerge.studies.study import Study
from sokmerge.symmetry import Permutation, PermutationGroup
from sokmerge.testbed import data, models, zoo
from sokmerge.testbed.models import Architecture
from sokmerge.testbed.recipes import HALVES, Recipe, master_seed
from sokmerge.testbed.training import fine_tune

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CHANNELS", "DEPTHS", "EPOCHS", "HOW", "LAYERS", "STUDY", "WAYS", "WIDTHS", "Measured",
    "counterexample", "scores", "skewed", "tempered",
]  # fmt: skip

#: Hidden layers of width 64, and how many passes over 6,000 images all of them train for.
DEPTHS = (1, 2, 3, 4, 5, 6)
LENGTH, IMAGES = 12, 6000

#: The epochs of a run of width 256 at which it is looked at; the last is its end.
EPOCHS = (0, 1, 2, 4, 8, 16, 20)

#: By how much the channels of the narrowest plain CNN are multiplied, and those of a deep one.
CHANNELS = (1, 2, 4)
NARROW = (6, 12, 24)
DEEP = (12, 12, 24, 24, 48, 48)

#: Widths of the networks that are trained on skewed data.
WIDTHS = (128, 256)

#: Hidden layers of the networks whose first layers are merged.
LAYERS = 6

#: How B is placed.
WAYS = ("as trained", "weight matching", "activation matching")

#: How the first layers are merged.
HOW = ("permutation", "ZipIt!", "ZipIt!, free")

#: The first seed of these networks.
FRESH = 600

HALF = 5
Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    yield from _depth(seed)
    yield from _epochs(seed)
    yield from _channels(seed)
    yield from _deep(seed)
    yield from _residual(seed)
    yield from _split(seed)
    yield from _zip(seed)


def row(
    part: str, group: str, at: int, method: str, split: str, measure: str, value: Tensor | float
) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "at": at, "method": method, "split": split}
    return {**said, "measure": measure, "value": round(float(value), 6)}


class Bench:
    """Two networks of one chain from different starts, and what is asked of the line between."""

    def __init__(self, arch: Architecture, seed: int, **how: Any) -> None:
        settings = {"epochs": LENGTH, "limit": IMAGES} | how
        own = [1000 * master_seed() + FRESH + 20 * seed + which for which in (0, 1)]
        self.recipes = [Recipe("modulo-permutation", arch, s, s, **settings) for s in own]
        self.arch, self.seed, self.module = arch, seed, models.build(arch)
        self.group: PermutationGroup = symmetry.chain(self.module, models.chain(arch))
        inputs, targets = data.fashion("train", limit=self.recipes[0].limit)
        self.seen = inputs[2000:3000]
        judges = {
            "train": (inputs[:2000], targets[:2000]),
            "test": data.fashion("test", limit=2000),
        }
        self.risks = {split: EmpiricalRisk(self.module, *judge) for split, judge in judges.items()}

    def start(self, which: int) -> Params:
        """The random weights from which A, 0, or B, 1, sets out."""
        return params.of(models.build(self.arch, self.recipes[which].seed))

    def train(self, which: int, images: tuple[Tensor, Tensor] | None = None, **each: Any) -> Params:
        """Train A or B, on other images than its recipe's if so told."""
        return fine_tune(self.recipes[which], self.start(which), *(images or ()), **each)

    def near(self, a: Params, b: Params) -> Permutation:
        """The permutation of B that weight matching finds."""
        return merge.weight_matching(a, b, self.group).permutation

    def placed(self, a: Params, b: Params, near: Permutation | None = None) -> dict[str, Params]:
        """B as it was trained and re-indexed, by its weights in a given order if there is one."""
        near = self.near(a, b) if near is None else near
        alike = merge.activation_matching(self.module, a, b, self.group, self.seen).permutation
        ends = (b, *(self.group.act(found, b) for found in (near, alike)))
        return dict(zip(WAYS, ends, strict=True))

    def shuffled(self, a: Params) -> Params:
        """A copy of A with its units in a random order."""
        return self.group.act(self.group.sample(self.recipes[0].seed), a)

    def barriers(self, part: str, at: int, a: Params, ends: Mapping[str, Params]) -> Iterator[Row]:
        """Rows of the barriers from A to some ends, in nats and in points of error."""
        for (method, end), (split, risk) in itertools.product(ends.items(), self.risks.items()):
            found = barrier(risk, a, end, points=3)
            for measure, height in (("loss", found.loss), ("error", 100 * found.error)):
                yield row(part, "", at, method, split, measure, height)

    def repaired(self, group: str, a: Params, ends: Mapping[str, Params]) -> Iterator[Row]:
        """Rows of the excess half way, as it is and after REPAIR."""
        for method, b in ends.items():
            plain = merge.average([a, b])
            fixed = merge.repair(self.module, [a, b], self.group, self.seen, merged=plain)
            for split, risk in self.risks.items():
                own = (risk(a).loss + risk(b).loss) / 2
                for way, point in ((method, plain), (f"{method}, REPAIR", fixed)):
                    yield row("repair", group, -1, way, split, "loss", risk(point).loss - own)


# Barriers -----------------------------------------------------------------------------------


def _depth(seed: int) -> Iterator[Row]:
    for depth in DEPTHS:
        bench = Bench(models.MLP(64, depth), seed)
        a, b = bench.train(0), bench.train(1)
        ends = bench.placed(a, b)
        yield from bench.barriers("depth", depth, a, ends | {"shuffled copy": bench.shuffled(a)})
        yield from _own("depth", bench, depth, a, b)
        if depth == DEPTHS[-1]:
            yield from bench.repaired("MLP, six layers", a, ends)


def _epochs(seed: int) -> Iterator[Row]:
    bench = Bench(models.MLP(256), seed, epochs=EPOCHS[-1])
    runs: list[dict[int, Params]] = []
    for which in (0, 1):
        run = {0: bench.start(which)}
        bench.train(which, each_epoch=lambda epoch, point, run=run: run.update({epoch: point}))
        runs.append(run)
    last = bench.near(*(run[EPOCHS[-1]] for run in runs))
    for epoch in EPOCHS:
        a, b = (run[epoch] for run in runs)
        now = bench.near(a, b)
        ends = bench.placed(a, b, now) | {"last permutation": bench.group.act(last, b)}
        yield from bench.barriers("epochs", epoch, a, ends)
        for method, end in ends.items():
            right = 100 * bench.risks["test"](merge.average([a, end])).accuracy
            yield row("epochs", "", epoch, method, "test", "accuracy", right)
        yield from _own("epochs", bench, epoch, a, b)
        same = torch.cat([now[block.name] == last[block.name] for block in bench.group.blocks])
        yield row(
            "epochs", "", epoch, "", "", "units placed as at the end", 100 * same.double().mean()
        )


def _channels(seed: int) -> Iterator[Row]:
    for factor in CHANNELS:
        arch = models.PlainCNN(tuple(factor * channels for channels in NARROW))
        bench = Bench(arch, seed, limit=4000, epochs=6, lr=5e-3, batch=64)
        a, b = bench.train(0), bench.train(1)
        ends = bench.placed(a, b) | {"shuffled copy": bench.shuffled(a)}
        yield from bench.barriers("channels", factor, a, ends)
        yield from _own("channels", bench, factor, a, b)


def _own(part: str, bench: Bench, at: int, a: Params, b: Params) -> Iterator[Row]:
    """Rows of the networks' own mean loss and error."""
    for split, risk in bench.risks.items():
        own = [risk(end) for end in (a, b)]
        yield row(part, "", at, "own", split, "loss", sum(each.loss for each in own) / 2)
        yield row(part, "", at, "own", split, "error", 50 * sum(each.error for each in own))


# Repair -------------------------------------------------------------------------------------


def _deep(seed: int) -> Iterator[Row]:
    bench = Bench(models.PlainCNN(DEEP), seed, limit=4000, epochs=8, lr=3e-3, batch=64)
    a, b = bench.train(0), bench.train(1)
    yield from bench.repaired("CNN, six layers", a, bench.placed(a, b))
    yield from _own("repair", bench, -1, a, b)


def _residual(seed: int) -> Iterator[Row]:
    """Two of the ten pairs of the residual networks of the zoo, with old and with fresh statistics.

    The statistics of an end are those of five hundred images seen; the old ones half way are the
    means of those of both ends. A thousand images of each split judge.
    """
    family = zoo.family("residual-batch")
    module = models.build(family[0].arch)
    inputs, targets = data.fashion("train", limit=2000)
    seen = inputs[1000:1500]
    group = symmetry.of(module, seen[:2]).plain()
    judges = {"train": (inputs[:1000], targets[:1000]), "test": data.fashion("test", limit=1000)}
    network = Network(module)
    for step in (1, 2):
        i, j = sorted((seed, (seed + step) % len(family)))
        a, b = (network.state(zoo.load(family[k])[1], seen) for k in (i, j))
        own = {
            split: (_loss(network, a, *judge) + _loss(network, b, *judge)) / 2
            for split, judge in judges.items()
        }
        found = (
            merge.weight_matching(a, b, group),
            merge.activation_matching(module, a, b, group, seen),
        )
        ends = (b, *(group.act(each.permutation, b) for each in found))
        for way, end in zip(WAYS, ends, strict=True):
            old = {k: (t + end[k]) / 2 if t.is_floating_point() else t for k, t in a.items()}
            points = {f"{way}, old": old, way: network.state(old, seen)}
            for (split, judge), (method, point) in itertools.product(
                judges.items(), points.items()
            ):
                excess = _loss(network, point, *judge) - own[split]
                yield row("repair", "residual", 10 * i + j, method, split, "loss", excess)


@torch.inference_mode()
def _loss(network: Network, state: Params, inputs: Tensor, targets: Tensor) -> float:
    logits = torch.cat([network(state, x) for x in inputs.split(250)])
    return float(F.cross_entropy(logits, targets))


# Split data ---------------------------------------------------------------------------------


def skewed(targets: Tensor, seed: int, *, share: float = 0.8) -> tuple[Tensor, Tensor]:
    """Return two disjoint sets of places that together are all, each with its favourite classes.

    The first gets that share of the images of classes 0 to 4 and the rest of 5 to 9, the second
    what is left (Ainsworth et al. 2022, section 5.4, with 100 classes).

    >>> a, b = skewed(torch.arange(10).repeat(5), seed=0)
    >>> len(a), len(b), int((a % 10 < 5).sum())
    (25, 25, 20)
    """
    generator = params.stream(f"skewed:{seed}")
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in targets.unique().tolist():
        where = torch.nonzero(targets == label).flatten()
        where = where[torch.randperm(len(where), generator=generator)]
        cut = round(len(where) * (share if label < HALF else 1 - share))
        for part, some in zip(parts, (where[:cut], where[cut:]), strict=True):
            part.append(some)
    first, second = (torch.cat(part).sort().values for part in parts)
    return first, second


def scores(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return loss [nats], error [%], calibration error [%], Brier score, and the tempered loss."""
    probabilities = logits.double().softmax(1)
    cool = tempered(logits, targets)
    return {
        "loss": float(F.cross_entropy(logits.double(), targets)),
        "error": 100 * float((logits.argmax(1) != targets).double().mean()),
        "calibration": 100 * float(expected_calibration_error(probabilities, targets)),
        "brier": float(brier_score(probabilities, targets)),
        "tempered loss": float(F.cross_entropy(cool, targets)),
        "tempered calibration": 100 * float(expected_calibration_error(cool.softmax(1), targets)),
    }


def tempered(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logits over the one temperature at which their loss is lowest, of a grid.

    The grid has steps of 2 % from 1/8 to 8.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> targets = torch.tensor([0, 1, 1])
    >>> (tempered(logits, targets).max() < 2.0).item()  # too sure: a third is wrong
    True
    """
    grid = torch.exp(torch.arange(-105, 106) * torch.tensor(1.02).double().log())
    losses = torch.stack([F.cross_entropy(logits.double() / t, targets) for t in grid])
    return logits.double() / grid[losses.argmin()]


def _split(seed: int) -> Iterator[Row]:
    """Merge networks of skewed data; the better parent is the lower one in each measure."""
    inputs, targets = data.fashion("train")
    test = data.fashion("test")
    for width in WIDTHS:
        bench = Bench(models.MLP(width), seed, limit=None)
        parts = skewed(targets, bench.recipes[0].seed)
        a, b = (bench.train(k, (inputs[part], targets[part])) for k, part in enumerate(parts))
        matched = bench.group.act(bench.near(a, b), b)
        points = {
            "parent A": a,
            "parent B": b,
            "average": merge.average([a, b]),
            "aligned": merge.average([a, matched]),
            "aligned, REPAIR": merge.repair(bench.module, [a, matched], bench.group, bench.seen),
            "all images": bench.train(0),
        }
        logits = {name: _logits(bench.module, point, test[0]) for name, point in points.items()}
        both = [logits[f"parent {which}"].softmax(1) for which in "AB"]
        logits["ensemble"] = torch.log((both[0] + both[1]) / 2)
        found = {method: scores(said, test[1]) for method, said in logits.items()}
        parents = [found[f"parent {which}"] for which in "AB"]
        found["better parent"] = {m: min(each[m] for each in parents) for m in parents[0]}
        for method, measured in found.items():
            for measure, value in measured.items():
                yield row("split", "", width, method, "test", measure, value)


@torch.inference_mode()
def _logits(module: nn.Module, point: Params, inputs: Tensor) -> Tensor:
    return functional_call(module, dict(point), (inputs,)).double()


# Partial merges -----------------------------------------------------------------------------

#: Of each pair: the tasks, and whether each tail answers for the classes that it knows, alone.
PAIRS = {
    "same task": (("image-half-a", "image-half-b"), False),
    "other classes": (("class-half-a", "class-half-b"), True),
}


def _zip(seed: int) -> Iterator[Row]:
    bench = Bench(models.MLP(96, LAYERS), seed, limit=None)
    images, test = data.fashion("train"), data.fashion("test", limit=2000)
    starts = [bench.start(which) for which in (0, 1)]
    yield from _correlations(bench, "untrained", *starts)
    for group, (tasks, told) in PAIRS.items():
        own = [HALVES[task](*images) for task in tasks]
        pair = [bench.train(which, part) for which, part in enumerate(own)]
        yield from _correlations(bench, group, *pair)
        classes = [targets.unique() for _, targets in own]
        for method, count in itertools.product(HOW, range(LAYERS + 1)):
            tails = _tails(bench, pair, method, count)
            logs = [_logits(bench.module, tail, test[0]) for tail in tails]
            if told:
                said = torch.empty_like(logs[0])
                for outputs, some in zip(logs, classes, strict=True):
                    said[:, some] = outputs[:, some].log_softmax(1)
            else:
                said = sum(outputs.log_softmax(1) for outputs in logs)
            right = 100 * (said.argmax(1) == test[1]).double().mean()
            yield row("zip", group, count, method, "test", "accuracy", right)


def _tails(bench: Bench, pair: Sequence[Params], method: str, count: int) -> Sequence[Params]:
    """Merge the first hidden layers of two networks, and leave each what comes behind them."""
    module, group, seen = bench.module, bench.group, bench.seen
    if method != "permutation":
        free = {"alpha": 1.0, "beta": 1.0} if method.endswith("free") else {}
        return merge.partial_zipit(module, pair, group, seen, layers=count, **free)
    a, b = pair
    alike = merge.activation_matching(module, a, b, group, seen, similarity="correlation")
    placed = a, group.act(alike.permutation, b)
    mean = merge.average(placed)
    made = {x.parameter for block in group.blocks[:count] for x in block.axes if x.dim == 0}
    return [{n: mean[n] if n in made else t for n, t in each.items()} for each in placed]


def _correlations(bench: Bench, name: str, a: Params, b: Params) -> Iterator[Row]:
    """Rows of the mean correlation of the units that correlate best, layer by layer."""
    found = moments([Network(bench.module)] * 2, [a, b], bench.group, bench.seen, 256)
    for layer, block in enumerate(bench.group.blocks, start=1):
        cross = found[block.name].correlation()[: block.size, block.size :]
        mean = cross.gather(1, assign(cross)[:, None]).mean()
        yield row("features", name, layer, "", "", "correlation", mean)


# The counterexample -------------------------------------------------------------------------


def counterexample() -> tuple[nn.Module, Params, Params, PermutationGroup]:
    r"""Return the network of two and two units, its two points of one function, and its group.

    Both points compute :math:`f(x)=-\max(x_1,0)-\max(-x_2,0)` on :math:`[-1,1]^2`: one has the
    part of :math:`x_2` made in its first layer, the other that of :math:`x_1`. Signs are positive,
    :math:`f\ge0`, where :math:`x_1<0` and :math:`x_2>0`. In double precision.

    Source: Ainsworth et al. (2022), appendix A.6, equations 4 and 5.

    >>> net, a, b, group = counterexample()
    >>> x = torch.tensor([[0.5, -0.25], [-0.5, 0.25]]).double()
    >>> [functional_call(net, dict(point), (x,)).flatten().tolist() for point in (a, b)]
    [[-0.75, 0.0], [-0.75, 0.0]]
    """
    layers = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)
    net = nn.Sequential(*layers).double().eval()

    def point(first: Sequence[float], b1: Sequence[float], second: Sequence[float]) -> Params:
        # In both networks the second layer's biases are the first one's.
        return {
            "0.weight": torch.diag(torch.tensor(first).double()),
            "0.bias": torch.tensor(b1).double(),
            "2.weight": torch.diag(torch.tensor(second).double()),
            "2.bias": torch.tensor(b1).double(),
            "4.weight": -torch.ones(1, 2).double(),
        }

    a = point((-1.0, -1.0), (1.0, 0.0), (-1.0, 1.0))
    b = point((1.0, 1.0), (0.0, 1.0), (1.0, -1.0))
    return net, a, b, symmetry.chain(net, ["0", "2", "4"])


# Reading ------------------------------------------------------------------------------------

Values = dict[Hashable, float]
_KEYS = ["part", "group", "at", "method", "split", "measure"]
UNITS = {"loss": "nats", "error": "points", "tempered loss": "nats", "calibration": "points",
         "tempered calibration": "points", "accuracy": "points"}  # fmt: skip


class Measured:
    """The table of this study, asked for replicates and for estimates.

    Args:
        table: with the columns of :func:`row`, and ``seed``.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._found: dict[tuple[Hashable, ...], Values] = {
            key: dict(zip(rows.seed, rows.value, strict=True))
            for key, rows in table.groupby(_KEYS)
            if key[1] != "residual"
        }
        for key, rows in table[table.group == "residual"].groupby(["method", "split"]):
            pairs = [divmod(at, 10) for at in rows["at"]]
            found = dict(zip(pairs, rows.value, strict=True))
            self._found["repair", "residual", -1, key[0], key[1], "loss"] = found

    def values(
        self,
        part: str,
        method: str = "",
        at: int = -1,
        *,
        group: str = "",
        split: str = "test",
        measure: str = "loss",
    ) -> Values:
        """Return the replicates of one measurement, by seed, or by pair of residual networks."""
        return self._found[part, group, at, method, split, measure]

    def mean(self, *which: Any, label: str = "", **how: Any) -> Estimate:
        """Return their mean and its interval."""
        return _estimate(
            self.values(*which, **how), label, UNITS.get(how.get("measure", "loss"), "")
        )

    def less(
        self, first: tuple[Any, ...], second: tuple[Any, ...], label: str, **how: Any
    ) -> Estimate:
        """Return by how much the first measurement lies above the second, each replicate's own."""
        a, b = self.values(*first, **how), self.values(*second, **how)
        unit = UNITS.get(how.get("measure", "loss"), "")
        return _estimate({key: x - b[key] for key, x in a.items()}, label, unit)

    def over(
        self, first: tuple[Any, ...], second: tuple[Any, ...], label: str, **how: Any
    ) -> Estimate:
        """Return the first measurement as a multiple of the second, each replicate's own."""
        a, b = self.values(*first, **how), self.values(*second, **how)
        return _estimate({key: x / b[key] for key, x in a.items()}, label, "")

    def removed(self, group: str, before: str, after: str, label: str, split: str) -> Estimate:
        """Return the share of an excess half way that is gone once its statistics are right."""
        a, b = (self.values("repair", way, group=group, split=split) for way in (before, after))
        return _estimate({key: 1 - b[key] / x for key, x in a.items()}, label, "")

    def draw(
        self,
        ax: Axes,
        part: str,
        methods: Mapping[str, str],
        at: Sequence[int],
        *,
        places: Sequence[float] | None = None,
        **how: Any,
    ) -> None:
        """Draw replicates, means and intervals of some methods, each in its look, over ``at``."""
        for method, look in methods.items():
            dots = [[*self.values(part, method, where, **how).values()] for where in at]
            means = [self.mean(part, method, where, **how) for where in at]
            plots.replicates(ax, places or at, dots, means, method, fmt=look)


def _estimate(values: Values, label: str, unit: str) -> Estimate:
    if isinstance(next(iter(values)), tuple):
        return Estimate.of_pairs(values, label=label, unit=unit)
    return Estimate.of([*values.values()], label=label, unit=unit)


STUDY = Study("modulo-permutation", rows)
