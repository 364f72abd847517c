r"""Mode connectivity: curves, features, mechanisms, and many networks at once.

* ``curves``: for each seed two neighbours of the family ``cnn``, joined by the straight line, a
  Bezier curve, a chain of two lines, a nudged elastic band, and a complex of two triangles that
  share two learned corners. Along each: loss and error on training and on test images, how often
  a point and the first end predict different classes, and the error of the two asked together.
* ``plane``: for the first seed, the training loss on the plane of the ends and the Bezier curve's
  bend, and where the curve runs in it.
* ``features``: pairs of networks of three hidden layers of 256 units: from different starts, the
  same after weight matching, forked after ``TRUNK`` passes, and fine-tuned twice from one network.
  Of each pair: feature connectivity, CKA and stitching, layer by layer, and the barrier of
  single layers and of the first few. Of the convolutional networks the layers' barriers alone.
* ``mechanisms``: networks that read a planted cue, and networks that cannot, of one start and of
  two, at the usual rate and at a high one; ``pairs`` are the barriers between them on cued and on
  clean images, and ``tuning`` is what fine-tuning at several rates makes of one that reads the cue.
* ``many``: four networks and one held out; re-based averages, a trained centre, and how short a
  path of low loss can be.

Barriers, losses and penalties are in nats, errors and their excesses in percent, both on images
that were not trained on where nothing else is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sokmerge import merge, params, symmetry
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, barrier, disagreement, plane, through
from sokmerge.probe.connectivity import (
    Curve,
    Profile,
    along,
    autoneb,
    feature_connectivity,
    fit_curve,
    geodesic,
    layer_barriers,
    spokes,
    stitching,
    via,
)
from sokmerge.probe.star import star
from sokmerge.reader import Claim, Estimate, plots, show_claim
from sokmerge.reader.estimates import Test
from sokmerge.studies.study import Study
from sokmerge.testbed import data, models, training, zoo
from sokmerge.testbed.models import MLP
from sokmerge.testbed.recipes import Recipe, master_seed
from sokmerge.testbed.tasks import Corrupted, PatchCue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CUES",
    "KINDS",
    "PULLS",
    "RATES",
    "STUDY",
    "TRUNK",
    "Losses",
    "Results",
    "card",
    "draw",
    "heat",
    "rows",
]

#: The first seed of networks that are not in the zoo.
FRESH = 900

#: Images on which a curve is evaluated, and positions on it.
IMAGES, POSITIONS = 2_000, 13

#: Steps of a trained curve, and of each new corner of the triangles.
STEPS, CORNER_STEPS = 400, 150

#: How the pairs of the features came about.
KINDS = ("independent", "aligned", "forked", "fine-tuned")

#: Passes before a run is forked, after that, and of a fine-tuning on noisy images.
TRUNK, REST, TUNE = 2, 10, 3

#: What the test images of the mechanisms carry: nothing, a cue that is right, or one that is wrong.
CUES: dict[str, PatchCue | None] = {
    "clean": None,
    "cued": PatchCue(1.0, seed=1),
    "counterfactual": PatchCue(1.0, shift=1, seed=1),
}

#: What is trained on: a cue that is always right, and one that says nothing.
RIGHT, WORTHLESS = PatchCue(1.0), PatchCue(0.0)

#: Rates at which a network that reads the cue is fine-tuned.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

#: The rate at which the networks of the mechanisms are trained, and a high one.
GENTLE, HIGH = 1e-3, 1e-2

#: How strongly a path is pulled straight.
PULLS = (0.0, 0.3, 3.0)

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    yield from _curves(seed)
    yield from _features(seed)
    yield from _mechanisms(seed)
    yield from _many(seed)


def row(part: str, group: str, kind: str, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    at = round(float(x), 6)
    said = {"part": part, "group": group, "kind": kind, "x": at, "measure": measure}
    return {**said, "value": float(f"{float(value):.6g}")}


class Results:
    """The table of this study, asked for one measure at a time.

    Attributes:
        table: the rows.
        at: the positions on a curve, ascending.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        seen = table[(table.part == "curves") & (table.x >= 0)].x.unique()
        self.at = np.sort(seen).tolist()

    def __call__(
        self, part: str, group: str, kind: str = "", x: float = -1, measure: str = "barrier"
    ) -> list[float]:
        """Return a value for each seed; where there are several, their mean."""
        here = self.part(part)
        kept = (here.group == group) & (here.kind == kind) & (here.measure == measure)
        return here[kept & np.isclose(here.x, x)].groupby("seed").value.mean().tolist()

    def estimate(self, label: str, unit: str, *where: Any) -> Estimate:
        """Return the mean over seeds of what stands at a place, with its interval."""
        return Estimate.of(self(*where), label=label, unit=unit)

    def less(self, label: str, unit: str, first: Sequence[Any], second: Sequence[Any]) -> Estimate:
        """Return the first less the second, taken seed by seed."""
        return Estimate.of_differences(self(*first), self(*second), label=label, unit=unit)

    def share(self, label: str, part: Sequence[Any], whole: Sequence[Any]) -> Estimate:
        """Return a part as a percentage of a whole, taken seed by seed."""
        pairs = zip(self(*part), self(*whole), strict=True)
        return Estimate.of([100 * p / w for p, w in pairs], label=label, unit="%")

    def highest(
        self, group: str, measure: str, kind: str = "", part: str = "features"
    ) -> list[float]:
        """Return the highest value over layers, for each seed."""
        here = self.part(part)
        kept = (here.group == group) & (here.kind == kind) & (here.measure == measure)
        each = here[kept].groupby(["seed", "x"]).value.mean()
        return each.groupby("seed").max().tolist()

    def quotes(self) -> dict[str, Estimate]:
        """Return by name the numbers that a text on this study may quote."""
        told: dict[str, Estimate] = {}

        def add(name: str, unit: str, values: Sequence[float]) -> None:
            told[name.replace(" ", "-").replace(",", "").replace(".", "-")] = Estimate.of(
                values, unit=unit
            )

        for way in ("line", "bezier", "chain", "band"):
            for split in ("train", "test"):
                add(f"{way} {split} barrier", "nats", self("curves", way, split))
                top = self.highest(way, "loss", split, "curves")
                add(f"{way} {split} highest", "nats", top)
            error = self("curves", way, "test", -1, "error barrier")
            add(f"{way} error barrier", "points", error)
            add(f"{way} mc", "nats", self("curves", way, "test", -1, "connectivity"))
            for measure in ("error", "ensemble error", "disagreement"):
                add(f"{way} middle {measure}", "%", self("curves", way, "test", 0.5, measure))
            if way != "line":
                add(f"{way} length", "", self("curves", way, "", -1, "straightness"))
        add("ends loss", "nats", self("curves", "line", "train", 0, "loss"))
        for measure in ("error", "ensemble error", "disagreement"):
            add(f"end {measure}", "%", self("curves", "line", "test", 1, measure))
        for split, measure, unit in (("train", "loss", "nats"), ("test", "error", "%")):
            add(f"triangles {measure}", unit, self("curves", "triangles", split, -1, measure))
        for kind in KINDS:
            add(f"{kind} barrier", "nats", self("features", kind))
            for measure in ("gap", "apart"):
                add(f"{kind} {measure}", "", self.highest(kind, measure))
            for joint in ("identity", "linear", "trained"):
                worst = self.highest(kind, "error penalty", joint)
                add(f"{kind} {joint}", "points", worst)
        for kind in ("independent", "aligned", "cnn"):
            for measure in ("midpoint", "swapped"):
                worst = self.highest(kind, measure, "only", "layers")
                add(f"{kind} one layer {measure}", "nats", worst)
            together = self("layers", kind, "first", 4, "midpoint")
            add(f"{kind} all layers", "nats", together)
        for net, images in itertools.product(("cue 0", "garment 0"), CUES):
            add(f"{net[:-2]} {images}", "%", self("mechanisms", "networks", net, -1, images))
        for start in ("one start", "one start, high rate", "aligned", "two starts"):
            for same in ("same", "different"):
                add(f"{start} {same}", "nats", self.joined(start, same))
        for way, images in itertools.product(("line", "bezier"), CUES):
            add(f"{way} {images} middle", "%", self("mechanisms", way, images, 0.5, "error"))
            top = self.highest(way, "error", images, "mechanisms")
            add(f"{way} {images} highest", "%", top)
        for kind, rate in itertools.product(("without", "worthless"), RATES):
            for images in CUES:
                error = self("tuning", kind, images, rate, "error")
                add(f"{kind} {rate:g} {images}", "%", error)
            add(f"{kind} {rate:g} barrier", "nats", self("tuning", kind, "cued", rate))
        for order in ("re-based", "universe", "as trained"):
            add(f"{order} mean error", "%", self("many", order, "mean", 4, "error"))
            add(f"{order} pairs", "nats", self("many", order, "pairs", 2))
            add(f"{order} mean spoke", "nats", self("many", order, "mean", -1, "spoke"))
        for order in ("re-based", "as trained"):
            add(f"{order} star error", "%", self("many", order, "star", 4, "error"))
            for measure in ("spoke", "held out", "via"):
                add(f"{order} star {measure}", "nats", self("many", order, "star", -1, measure))
            for measure in ("detour", "angle"):
                add(f"{order} star {measure}", "", self("many", order, "star", -1, measure))
            add(f"{order} pairs held out", "nats", self("many", order, "pairs", -1, "held out"))
            for pull in PULLS:
                path = self("many", order, "geodesic", pull, "straightness")
                add(f"{order} length {pull:g}", "", path)
                path = self("many", order, "geodesic", pull, "train barrier")
                add(f"{order} height {pull:g}", "nats", path)
        add("members error", "%", self("many", "members", "", 1, "error"))
        return told

    def part(self, *names: str) -> pd.DataFrame:
        """Return the rows of some parts."""
        return self.table[self.table.part.isin(names)]

    def plane(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, tuple[float, float]]]:
        """Return the positions along both sides of the plane, the loss there, and the corners."""
        here = self.part("plane")
        seen = here[here.measure == "loss"].astype({"group": float, "kind": float})
        table = seen.pivot(index="group", columns="kind", values="value")
        corners = {n: tuple(self("plane", n, measure=c)[0] for c in "st") for n in "ABC"}
        return table.index.to_numpy(), table.columns.to_numpy(), table.to_numpy(), corners

    def joined(self, start: str, same: str, images: str = "cued") -> list[float]:
        """Return the mean barrier between networks of one or two mechanisms, for each seed."""
        here = self.part("pairs")
        here = here[(here.group == start) & (here.kind == same)]
        kept = here.measure.str.startswith(f"{images}:")
        return here[kept].groupby("seed").value.mean().tolist()


def draw(
    ax: Axes,
    positions: Sequence[float],
    named: Mapping[str, Sequence[Sequence[float]]],
    *,
    shift: float = 0.0,
    joined: bool = True,
    **axes: Any,
) -> None:
    """Draw values for each seed at some positions, their means and 95 % intervals, and a legend.

    Args:
        ax: where to draw.
        positions: one for each list of values.
        named: what stands in the legend to the values at each position.
        shift: how far each of them is moved to the right of the one before.
        joined: whether the means are joined.
        **axes: passed to ``ax.set``.
    """
    looks = zip(("o", "s", "D", "^"), ("-", "--", "-.", ":"), strict=True)
    for k, ((label, samples), (marker, dash)) in enumerate(zip(named.items(), looks, strict=False)):
        moved = [position + k * shift for position in positions]
        look = {"marker": marker, "linestyle": dash if joined else "none"}
        plots.replicates(ax, moved, samples, [*map(Estimate.of, samples)], label, **look)
    ax.set(**axes)
    ax.legend()


def heat(
    ax: Axes, rows: Mapping[str, Sequence[float]], columns: Sequence[str], top: float, **axes: Any
) -> None:
    """Draw a table of numbers from 0 to ``top`` in coloured cells."""
    values = np.array([*rows.values()])
    ax.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ink = "black" if value > top / 2 else "white"
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False)
    ax.set(**axes)


def card(id: str, source: str, figure: str, statement: str, reported: str, *tests: Test) -> None:
    """Show a claim whose prediction is what its tests say."""
    words = "; ".join(map(str, tests))
    show_claim(Claim(id, statement, source, reported, words, tests, figure))


class Losses:
    """The loss on one batch of images after the other, in an order fixed by a key.

    >>> x, y = data.fashion("train", limit=200)
    >>> module = models.build(MLP(width=4))
    >>> loss = Losses(module, x, y, "example")
    >>> loss(params.of(module), 0).shape
    torch.Size([])
    """

    def __init__(
        self, module: nn.Module, inputs: Tensor, targets: Tensor, key: str, batch: int = 128
    ) -> None:
        self.module, self.inputs, self.targets = module, inputs, targets
        self.key, self.batch = key, batch
        self.orders: dict[int, Tensor] = {}

    def __call__(self, point: Params, step: int) -> Tensor:
        epoch, at = divmod(step * self.batch, len(self.targets) // self.batch * self.batch)
        if epoch not in self.orders:
            generator = params.stream(f"{self.key}:{epoch}")
            self.orders[epoch] = torch.randperm(len(self.targets), generator=generator)
        some = self.orders[epoch][at : at + self.batch]
        outputs = torch.func.functional_call(self.module, dict(point), (self.inputs[some],))
        return F.cross_entropy(outputs, self.targets[some])


def fresh(recipe: Recipe, seed: int, number: int) -> Recipe:
    """The same recipe from another start; numbers of one seed are not those of another."""
    own = 1000 * master_seed() + FRESH + 10 * seed + number
    return replace(recipe, family="connectivity", seed=own, order_seed=own)


def begun(recipe: Recipe) -> dict[str, Tensor]:
    """The random weights a recipe starts with."""
    return params.of(models.build(recipe.arch, recipe.seed))


def neighbours(family: str, seed: int) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A module, and the networks of a seed and of the next."""
    recipes = zoo.family(family)
    module, a = zoo.load(recipes[seed])
    return module, a, zoo.load(recipes[(seed + 1) % len(recipes)])[1]


# Curves -------------------------------------------------------------------------------------


def _curves(seed: int) -> Iterator[Row]:
    module, a, b = neighbours("cnn", seed)
    module = module.to(memory_format=torch.channels_last)
    x, y = data.fashion("train")
    risks = {
        "train": EmpiricalRisk(module, x[:IMAGES], y[:IMAGES]),
        "test": EmpiricalRisk(module, *data.fashion("test", limit=IMAGES)),
    }
    looked = EmpiricalRisk(module, x[IMAGES : IMAGES + 500], y[IMAGES : IMAGES + 500])
    key = f"{master_seed()}:{seed}"
    loss = Losses(module, x, y, f"curves:{key}")
    how = {"loss": loss, "steps": STEPS, "lr": 2e-2, "seed": seed}
    bezier = fit_curve(a, b, kind="bezier", **how)
    chain = fit_curve(a, b, kind="chain", **how)
    band = autoneb(a, b, loss=loss, measure=lambda p: looked(p).loss, cycles=4, steps=35, most=5)
    ways = {
        "line": Curve((a, b)),
        "bezier": bezier,
        "chain": chain,
        "band": band.curve,
    }
    yield row("curves", "band", "", -1, "pivots", band.pivots[-1])
    yield row("curves", "band", "", -1, "gradients", band.gradients)
    network, (images, labels) = Network(module), data.fashion("test", limit=IMAGES)
    with torch.inference_mode():
        first = network(a, images)
    for name, curve in ways.items():
        yield row("curves", name, "", -1, "straightness", curve.straightness())
        for split, risk in risks.items():
            found = along(risk, curve, POSITIONS)
            yield row("curves", name, split, -1, "barrier", found.barrier)
            yield row("curves", name, split, -1, "error barrier", 100 * found.error_barrier)
            yield row("curves", name, split, -1, "connectivity", found.connectivity)
            yield from _profile("curves", name, split, found)
        for t in np.linspace(0, 1, POSITIONS):
            with torch.inference_mode():
                here = network(curve(float(t)), images)
            both = (first.softmax(1) + here.softmax(1)) / 2
            wrong = (both.argmax(1) != labels).double().mean()
            yield row("curves", name, "test", t, "disagreement", 100 * disagreement(first, here))
            yield row("curves", name, "test", t, "ensemble error", 100 * wrong)
    yield from _triangles(seed, a, b, loss, risks)
    if seed == 0:
        yield from _plane(a, b, bezier, looked)


def _profile(part: str, name: str, images: str, found: Profile) -> Iterator[Row]:
    for t, loss, error in zip(found.t, found.loss, found.error, strict=True):
        yield row(part, name, images, t, "loss", loss)
        yield row(part, name, images, t, "error", 100 * error)


def _triangles(
    seed: int, a: Params, b: Params, loss: Losses, risks: Mapping[str, EmpiricalRisk]
) -> Iterator[Row]:
    """Two triangles with a shared side join the ends; random points of them are judged."""
    found = merge.simplex([a, b], loss=loss, corners=2, steps=CORNER_STEPS, lr=1e-2, seed=seed)
    points = found.sample(12, seed=seed)
    for split, risk in risks.items():
        seen = [risk(p) for p in points]
        ends = [risk(p).loss for p in (a, b)]
        yield row("curves", "triangles", split, -1, "loss", np.mean([s.loss for s in seen]))
        yield row("curves", "triangles", split, -1, "error", 100 * np.mean([s.error for s in seen]))
        highest = max(s.loss for s in seen) - np.mean(ends)
        yield row("curves", "triangles", split, -1, "highest", highest)


def _plane(a: Params, b: Params, bezier: Curve, risk: EmpiricalRisk) -> Iterator[Row]:
    frame = through(a, b, bezier.points[1])
    s, t = frame.spans(steps=21, margin=0.25)
    found = plane(risk, frame.origin, frame.u, frame.v, alphas=s, betas=t)
    for i, j in itertools.product(range(len(s)), range(len(t))):
        yield row("plane", f"{s[i]:.6g}", f"{t[j]:.6g}", -1, "loss", found.loss[i, j])
    for name, (first, second) in zip("ABC", frame.coordinates, strict=True):
        yield row("plane", name, "", -1, "s", first)
        yield row("plane", name, "", -1, "t", second)


# Features -----------------------------------------------------------------------------------


def _features(seed: int) -> Iterator[Row]:
    module, a, b = neighbours("mlp-width-256", seed)
    recipe = replace(zoo.family("mlp-width-256")[seed], family="connectivity")
    pairs = {"independent": (a, b)}
    group = symmetry.chain(module, models.chain(recipe.arch))
    pairs["aligned"] = a, group.act(merge.weight_matching(a, b, group).permutation, b)
    noise = Corrupted("gaussian_noise", 5)
    train, test = data.fashion("train"), data.fashion("test", limit=IMAGES)
    noisy = noise(*train)
    early = replace(recipe, epochs=TRUNK, schedule="constant")
    trunk = training.fine_tune(early, begun(recipe), *train)
    orders = [fresh(recipe, seed, k).order_seed for k in (0, 1)]
    pairs["forked"] = tuple(
        training.fine_tune(replace(recipe, epochs=REST, order_seed=order), trunk, *train)
        for order in orders
    )
    pairs["fine-tuned"] = tuple(
        training.fine_tune(replace(recipe, epochs=TUNE, lr=5e-4, order_seed=order), a, *noisy)
        for order in orders
    )
    for kind, pair in pairs.items():
        images, own = (noise(*test), noisy) if kind == "fine-tuned" else (test, train)
        fit = EmpiricalRisk(module, own[0][:IMAGES], own[1][:IMAGES])
        yield from _pair(kind, module, pair, images, fit)
    shallow, c, d = neighbours("cnn", seed)
    risk = EmpiricalRisk(shallow, *data.fashion("test", limit=1000))
    for ends in ((c, d), (d, c)):
        yield from _layers("cnn", risk, ends, models.chain(zoo.family("cnn")[seed].arch))


def _pair(
    kind: str,
    module: nn.Module,
    pair: Sequence[Params],
    images: tuple[Tensor, Tensor],
    fit: EmpiricalRisk,
) -> Iterator[Row]:
    a, b = pair
    risk, network = EmpiricalRisk(module, *images), Network(module)
    found = barrier(risk, a, b, 11)
    yield row("features", kind, "", -1, "barrier", found.loss)
    yield row("features", kind, "", -1, "error barrier", 100 * found.error)
    seen = [
        feature_connectivity(network, a, b, images[0][:1000], layers, at=at)
        for layers, at in ((["hidden.1", "hidden.2", "head"], "input"), (["head"], "output"))
    ]
    for measure in ("gap", "apart", "cka"):
        values = np.concatenate([getattr(each, measure) for each in seen])
        for layer, value in enumerate(values, 1):
            yield row("features", kind, "", layer, measure, value)
    joints = {"identity": {}, "linear": {"fit": fit}, "trained": {"fit": fit, "steps": 40}}
    for joint, how in joints.items():
        cuts = stitching(risk, a, b, ["hidden.1", "hidden.2", "head"], lr=1e-3, **how)
        for layer, (loss, error) in enumerate(
            zip(cuts.penalty, cuts.error_penalty, strict=True), 1
        ):
            yield row("features", kind, joint, layer, "penalty", loss)
            yield row("features", kind, joint, layer, "error penalty", 100 * error)
    fewer = EmpiricalRisk(module, images[0][:1000], images[1][:1000])
    for ends in ((a, b), (b, a)):
        yield from _layers(kind, fewer, ends, ["hidden.0", "hidden.1", "hidden.2", "head"])


def _layers(
    kind: str, risk: EmpiricalRisk, ends: Sequence[Params], layers: Sequence[str]
) -> Iterator[Row]:
    """Barriers of single layers, of the first few, and of the last few."""
    own = {name: [n for n in ends[0] if n.startswith(f"{name}.")] for name in layers}
    groups = {f"only:{k}": own[name] for k, name in enumerate(layers, 1)}
    for k in range(1, len(layers)):
        groups[f"first:{k}"] = [n for name in layers[:k] for n in own[name]]
        groups[f"last:{k}"] = [n for name in layers[-k:] for n in own[name]]
    groups[f"first:{len(layers)}"] = [n for name in layers for n in own[name]]
    found = layer_barriers(risk, *ends, groups, points=5)
    for k, group in enumerate(groups):
        which, _, number = group.partition(":")
        yield row("layers", kind, which, int(number), "barrier", found.loss[k])
        yield row("layers", kind, which, int(number), "midpoint", found.excess_loss[k][2])
        yield row("layers", kind, which, int(number), "swapped", found.excess_loss[k][-1])
        middle = 100 * found.excess_error[k][2]
        yield row("layers", kind, which, int(number), "error at midpoint", middle)


# Mechanisms ---------------------------------------------------------------------------------


def _mechanisms(seed: int) -> Iterator[Row]:
    plain = data.fashion("train", limit=4_000)
    cued, worthless = RIGHT(*plain), WORTHLESS(*plain)
    settings = {"lr": GENTLE, "epochs": 10}
    recipe = fresh(Recipe("connectivity", MLP(128), seed=0, order_seed=0, **settings), seed, 2)
    other = fresh(recipe, seed, 3)
    module = models.build(recipe.arch)
    orders = [fresh(recipe, seed, k).order_seed for k in (4, 5)]
    nets: dict[str, dict[str, Tensor]] = {}
    for name, images in (("cue", cued), ("garment", worthless)):
        for k, order in enumerate(orders):
            here = replace(recipe, order_seed=order)
            nets[f"{name} {k}"] = training.fine_tune(here, begun(recipe), *images)
            here = replace(here, lr=HIGH)
            nets[f"{name} {k}, high"] = training.fine_tune(here, begun(recipe), *images)
        nets[f"{name} 2"] = training.fine_tune(other, begun(other), *images)
    risks = {name: _on(module, task) for name, task in CUES.items()}
    for name, net in nets.items():
        for images, risk in risks.items():
            yield row("mechanisms", "networks", name, -1, images, 100 * risk(net).error)

    group = symmetry.chain(module, models.chain(recipe.arch))
    for one, two in itertools.combinations(["cue 0", "cue 1", "garment 0", "garment 1"], 2):
        same = "same" if one.split()[0] == two.split()[0] else "different"
        pair = f"{one}-{two}"
        yield from _joined("one start", same, pair, risks, nets[one], nets[two])
        ends = nets[f"{one}, high"], nets[f"{two}, high"]
        yield from _joined("one start, high rate", same, pair, risks, *ends)
    for one, two in itertools.product(["cue 0", "garment 0"], ["cue 2", "garment 2"]):
        same = "same" if one.split()[0] == two.split()[0] else "different"
        yield from _joined("two starts", same, f"{one}-{two}", risks, nets[one], nets[two])
        found = merge.weight_matching(nets[one], nets[two], group)
        moved = group.act(found.permutation, nets[two])
        yield from _joined("aligned", same, f"{one}-{two}", risks, nets[one], moved)

    a, b = nets["cue 0"], nets["garment 0"]
    loss = Losses(module, *cued, f"mechanisms:{master_seed()}:{seed}")
    bezier = fit_curve(a, b, loss=loss, steps=STEPS, lr=3e-3, seed=seed)
    for name, curve in {"line": Curve((a, b)), "bezier": bezier}.items():
        for images, risk in risks.items():
            found = along(risk, curve, POSITIONS)
            yield from _profile("mechanisms", name, images, found)
            yield row("mechanisms", name, images, -1, "barrier", found.barrier)

    for kind, images in {"without": plain, "worthless": worthless}.items():
        for rate in RATES:
            here = replace(recipe, lr=rate, epochs=5, order_seed=orders[1])
            tuned = training.fine_tune(here, a, *images)
            for name, risk in risks.items():
                yield row("tuning", kind, name, rate, "error", 100 * risk(tuned).error)
            found = barrier(risks["cued"], a, tuned, 11)
            yield row("tuning", kind, "cued", rate, "barrier", found.loss)
            yield row("tuning", kind, "", rate, "distance", params.distance(a, tuned))


def _on(module: nn.Module, task: PatchCue | None) -> EmpiricalRisk:
    images = data.fashion("test", limit=IMAGES)
    return EmpiricalRisk(module, *(task(*images) if task else images))


def _joined(
    start: str, same: str, pair: str, risks: Mapping[str, EmpiricalRisk], a: Params, b: Params
) -> Iterator[Row]:
    for images in ("cued", "clean"):
        found = barrier(risks[images], a, b, 11)
        yield row("pairs", start, same, -1, f"{images}:{pair}", found.loss)


# Many networks ------------------------------------------------------------------------------


def _many(seed: int) -> Iterator[Row]:
    recipe = zoo.family("mlp-width-128")[seed]
    module, reference = zoo.load(recipe)
    x, y = data.fashion("train")
    raw = [reference]
    for k in range(6, 10):  # the last one is held out
        own = replace(fresh(recipe, seed, k), epochs=6)
        raw.append(training.fine_tune(own, begun(own), x, y))
    group = symmetry.chain(module, models.chain(recipe.arch))
    test = EmpiricalRisk(module, *data.fashion("test", limit=IMAGES))
    seen = EmpiricalRisk(module, x[:IMAGES], y[:IMAGES])

    def to(target: Params, net: Params) -> dict[str, Tensor]:
        return group.act(merge.weight_matching(target, net, group).permutation, net)

    rebased = [reference, *(to(reference, net) for net in raw[1:])]
    universe = merge.cycle_consistent_matching(raw[:4], group)
    common = [group.act(p, n) for p, n in zip(universe.permutations, raw[:4], strict=True)]
    orders = {"as trained": raw[:4], "re-based": rebased[:4], "universe": common}
    yield row("many", "members", "", 1, "error", 100 * np.mean([test(n).error for n in raw[:4]]))
    yield row("many", "members", "", 1, "loss", np.mean([test(n).loss for n in raw[:4]]))
    for name, nets in orders.items():
        heights = [barrier(test, p, q, 11).loss for p, q in itertools.combinations(nets, 2)]
        yield row("many", name, "pairs", 2, "barrier", np.mean(heights))
        for count in (2, 3, 4):
            found = test(merge.average(nets[:count]))
            yield row("many", name, "mean", count, "error", 100 * found.error)
            yield row("many", name, "mean", count, "loss", found.loss)
        to_mean = spokes(test, merge.average(nets), nets, 11)
        yield row("many", name, "mean", -1, "spoke", np.mean([s.loss for s in to_mean.barriers]))

    loss = Losses(module, x, y, f"many:{master_seed()}:{seed}")
    for name, nets in {"as trained": raw, "re-based": rebased}.items():
        start = merge.average(nets[:4])
        centre = star(nets[:4], loss=loss, start=start, steps=600, lr=1e-3, seed=seed).centre
        yield row("many", name, "star", 4, "error", 100 * test(centre).error)
        yield row("many", name, "star", 4, "loss", test(centre).loss)
        found = spokes(test, centre, nets[:4], 11)
        yield row("many", name, "star", -1, "spoke", np.mean([s.loss for s in found.barriers]))
        yield row("many", name, "star", -1, "detour", np.mean(list(found.detours.values())))
        turned = np.array(found.angles)[~np.eye(4, dtype=bool)]
        yield row("many", name, "star", -1, "angle", turned.mean())
        held = nets[4] if name == "as trained" else to(centre, raw[4])
        yield row("many", name, "star", -1, "held out", barrier(test, centre, held, 11).loss)
        direct = [raw[4] if name == "as trained" else to(net, raw[4]) for net in nets[:4]]
        heights = [barrier(test, *pair, 11).loss for pair in zip(nets[:4], direct, strict=True)]
        yield row("many", name, "pairs", -1, "held out", np.mean(heights))
        path = along(test, via(nets[1], centre, nets[2]), POSITIONS)
        yield row("many", name, "star", -1, "via", path.barrier)
        for pull in PULLS:
            path = geodesic(*nets[:2], loss=loss, steps=STEPS, pull=pull, lr=3e-3, seed=seed)
            yield row("many", name, "geodesic", pull, "straightness", path.straightness())
            for split, risk in {"train": seen, "test": test}.items():
                height = along(risk, path, POSITIONS).barrier
                yield row("many", name, "geodesic", pull, f"{split} barrier", height)


STUDY = Study("connectivity", rows)
