"""Merging beyond permutations: transport, Bayesian matching, zipping, least squares.

* ``same task``: two networks from different starts, each trained on half of the images of all
  classes (``lone-image-half-a``, ``-b``).
* ``other classes``: two from different starts, each trained on five classes of its own
  (``lone-class-half-a``, ``-b``), judged on images of all ten, where every class may be the answer.
* ``layers``: the same two, merged in the first layers only, each with a tail of its own behind
  them; a tail answers for its own five classes.
* ``depth``: the correlation of matched units of both pairs, layer by layer.
* ``widths``: a network of width 128 and one of another width.

What a method may see are a thousand training images without labels; those that learn how much a
client knows of each class are told its number of images of each. All are judged on test images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sokmerge import merge, params, symmetry
from sokmerge.merge.alignment.mapping import Moments, moments
from sokmerge.merge.alignment.matching import assign
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.reader import Claim, Estimate, plots
from sokmerge.studies.study import Study
from sokmerge.symmetry import PermutationGroup
from sokmerge.testbed import data, models, zoo
from sokmerge.testbed.recipes import Recipe
from sokmerge.testbed.training import fine_tune, inputs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PAIRS", "SEEN", "SHOWN", "STUDY", "WIDTHS", "Measured", "claims"]

#: The two pairs of networks from different starts.
PAIRS = {"same task": "lone-image-half", "other classes": "lone-class-half"}

#: How many images, of no task in particular, a method may see.
SEEN = 1000

#: What is fused with a network of width 128.
WIDTHS = (64, 128, 256)

#: How PLeaS is asked for its width.
RATIOS = (1.0, 1.25, 1.5, 2.0)

#: What a figure shows, in this order; "free" is ZipIt! without restraint, alpha and beta 1.
SHOWN = (
    "average",
    "activations",
    "OT, activations",
    "PFNM",
    "FedMA",
    "ZipIt!",
    "ZipIt!, free",
    "PLeaS, 1",
    "PLeaS, 1.5",
    "ensemble",
)

#: Under which names the means of methods are quoted.
QUOTED = {
    "average": "plain",
    "activations": "permuted",
    "weights": "permuted-by-weights",
    "OT, activations": "transported",
    "OT, entropy": "smoothed",
    "PFNM": "pooled",
    "PFNM, wider": "pooled-wider",
    "FedMA": "matched",
    "FedMA, trained": "matched-trained",
    "FedAvg, rounds": "rounds",
    "ZipIt!": "zipped",
    "ZipIt!, free": "zipped-freely",
    "PLeaS, 1": "fitted",
    "PLeaS, 1.5": "fitted-wider",
    "ensemble": "together",
}

#: Epochs of each client in a round of federated training.
EPOCHS = 2

CLASSES = 10
Row = dict[str, Any]
Pair = tuple[Params, Params]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    seen = data.fashion("train", limit=SEEN)[0]
    test = data.fashion("test")
    for part, family in PAIRS.items():
        recipes = [zoo.family(f"{family}-{half}")[seed] for half in "ab"]
        module = models.build(recipes[0].arch)
        group = symmetry.chain(module, models.chain(recipes[0].arch))
        pair = tuple(zoo.load(recipe)[1] for recipe in recipes)
        for method, merged in _merged(module, group, pair, recipes, seen).items():
            if merged is None:
                outputs = [functional_call(module, dict(each), (test[0],)) for each in pair]
                widths, logits = 2.0, sum(F.log_softmax(each, 1) for each in outputs)
            else:
                widths = _width(merged, group)
                made = merge.resized(module, merged)
                logits = functional_call(made, dict(merged), (test[0],))
            yield _row(part, method, "accuracy", 100 * _accuracy(logits, test[1]))
            yield _row(part, method, "loss", F.cross_entropy(logits, test[1]))
            yield _row(part, method, "width", widths)
        for which, recipe, own in zip("ab", recipes, pair, strict=True):
            inputs, targets = inputs_of(recipe, "test")
            logits = functional_call(module, dict(own), (inputs,))
            yield _row(part, f"expert {which}", "own accuracy", 100 * _accuracy(logits, targets))
        for layer, value in enumerate(_correlations(module, group, pair, seen), start=1):
            yield _row("depth", part, f"correlation {layer}", value)
        if part == "other classes":
            yield from _layers(module, group, pair, recipes, seen, test)
    yield from _widths(seed, seen, test)


def _merged(
    module: nn.Module,
    group: PermutationGroup,
    pair: Pair,
    recipes: list[Recipe],
    seen: Tensor,
) -> dict[str, Params | None]:
    a, b = pair
    alike = merge.activation_matching(module, a, b, group, seen, similarity="correlation")
    near = merge.weight_matching(a, b, group)
    own = [inputs_of(recipe, "train") for recipe in recipes]
    counts = [torch.bincount(targets, minlength=CLASSES) for _, targets in own]
    train = partial(_train, module, own)
    return {
        "ensemble": None,
        "average": merge.average(pair),
        "weights": merge.average([a, group.act(near.permutation, b)]),
        "activations": merge.average([a, group.act(alike.permutation, b)]),
        "OT, weights": merge.ot_fusion(module, pair, group),
        "OT, activations": merge.ot_fusion(module, pair, group, inputs=seen),
        "OT, entropy": merge.ot_fusion(module, pair, group, inputs=seen, regularisation=0.1),
        "ZipIt!": merge.zipit(module, pair, group, seen),
        "ZipIt!, free": merge.zipit(module, pair, group, seen, alpha=1, beta=1),
        **{
            f"PLeaS, {width:g}": merge.pleas(module, pair, group, seen, width=width)
            for width in RATIOS
        },
        "PFNM": merge.pfnm(pair, group, counts=counts),
        "PFNM, wider": merge.pfnm(pair, group, counts=counts, noise=0.1),
        "FedMA": merge.fedma(module, pair, group, counts=counts),
        "FedMA, trained": merge.fedma(module, pair, group, counts=counts, train=train),
        "FedAvg, rounds": _rounds(pair, recipes, len(group.blocks)),
    }


def _train(
    module: nn.Module,
    own: list[tuple[Tensor, Tensor]],
    client: int,
    start: Params,
    frozen: frozenset[str],
) -> dict[str, Tensor]:
    """Train the layers of one client that are not frozen, as FedMA asks for."""
    made = merge.resized(module, start)
    free = [tensor for name, tensor in made.named_parameters() if name not in frozen]
    optimizer = torch.optim.Adam(free, lr=1e-3)
    inputs, targets = own[client]
    for epoch in range(EPOCHS):
        order = torch.randperm(len(inputs), generator=params.stream(f"{client}:{epoch}"))
        for batch in order.split(128):
            optimizer.zero_grad()
            F.cross_entropy(made(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return params.of(made)


def _rounds(pair: Pair, recipes: list[Recipe], rounds: int) -> Params:
    """Average and train on, as often as FedMA does, with all layers free."""
    shared = merge.average(pair)
    for number in range(rounds):
        trained = [
            fine_tune(
                replace(recipe, epochs=EPOCHS, lr=1e-3, schedule="constant", order_seed=number),
                shared,
            )
            for recipe in recipes
        ]
        shared = merge.average(trained)
    return shared


def _layers(
    module: nn.Module,
    group: PermutationGroup,
    pair: Pair,
    recipes: list[Recipe],
    seen: Tensor,
    test: tuple[Tensor, Tensor],
) -> Iterator[Row]:
    """Merge more and more layers, and let each tail answer for the classes it was trained on."""
    a, b = pair
    alike = merge.activation_matching(module, a, b, group, seen, similarity="correlation")
    placed = a, group.act(alike.permutation, b)
    mean = merge.average(placed)
    own = [inputs_of(recipe, "train")[1].unique() for recipe in recipes]
    for count in range(len(group.blocks) + 1):
        made = {x.parameter for block in group.blocks[:count] for x in block.axes if x.dim == 0}
        permuted = [{n: mean[n] if n in made else t for n, t in each.items()} for each in placed]
        zipped = partial(merge.partial_zipit, module, pair, group, seen, layers=count)
        for method, tails in (
            ("activations", permuted),
            ("ZipIt!", zipped()),
            ("ZipIt!, free", zipped(alpha=1, beta=1)),
        ):
            said = torch.empty(len(test[0]), CLASSES)
            for tail, classes in zip(tails, own, strict=True):
                logits = functional_call(module, dict(tail), (test[0],))
                said[:, classes] = F.log_softmax(logits[:, classes], 1)
            yield _row("layers", method, f"joint {count}", 100 * _accuracy(said, test[1]))
            told = torch.cat(
                [
                    (said[:, classes].argmax(1) == (test[1][:, None] == classes).int().argmax(1))[
                        torch.isin(test[1], classes)
                    ]
                    for classes in own
                ]
            )
            yield _row("layers", method, f"told {count}", 100 * told.double().mean())


def _correlations(
    module: nn.Module, group: PermutationGroup, pair: Pair, seen: Tensor
) -> Iterator[Tensor]:
    """The mean correlation of the units of two networks that correlate best, layer by layer."""
    network = Network(module)
    found: Mapping[str, Moments] = moments([network] * 2, pair, group, seen, 256)
    for block in group.blocks:
        cross = found[block.name].correlation()[: block.size, block.size :]
        yield cross.gather(1, assign(cross)[:, None]).mean()


def _widths(seed: int, seen: Tensor, test: tuple[Tensor, Tensor]) -> Iterator[Row]:
    """Fuse networks of different widths; the reference is always the one of width 128."""
    recipe = zoo.family("mlp-width-128")[seed]
    module, a = zoo.load(recipe)
    group = symmetry.chain(module, models.chain(recipe.arch))
    for width in WIDTHS:
        other = zoo.family(f"mlp-width-{width}")[(seed + (width == 128)) % 5]
        narrow, b = zoo.load(other)
        both = [module, narrow]
        fused: dict[str, Callable[[], Params]] = {
            "own": lambda b=b: b,
            "OT, weights": lambda b=b: merge.ot_fusion(module, [a, b], group),
            "OT, activations": lambda b=b, n=both: merge.ot_fusion(n, [a, b], group, inputs=seen),
            "first units": lambda b=b: merge.average([a, _first_units(a, b)]),
        }
        for method, made in fused.items():
            point = made()
            owner = narrow if method == "own" else module
            logits = functional_call(owner, dict(point), (test[0],))
            yield _row(f"width {width}", method, "accuracy", 100 * _accuracy(logits, test[1]))
            yield _row(f"width {width}", method, "loss", F.cross_entropy(logits, test[1]))


def _first_units(a: Params, b: Params) -> dict[str, Tensor]:
    """Cut b's tensors off at a's sizes, or fill them up with zeros: a plain average's only way."""
    placed = {}
    for name, ours in a.items():
        placed[name] = torch.zeros_like(ours)
        inside = tuple(slice(min(x, y)) for x, y in zip(ours.shape, b[name].shape, strict=True))
        placed[name][inside] = b[name][inside]
    return placed


def _width(merged: Params, group: PermutationGroup) -> float:
    """Return the units of all hidden layers over those of one network."""
    made = [merged[block.axes[0].parameter].shape[0] for block in group.blocks]
    return sum(made) / sum(block.size for block in group.blocks)


def _accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).double().mean()


def _row(part: str, method: str, measure: str, value: Tensor | float) -> Row:
    value = round(float(value), 6)
    return {"part": part, "method": method, "measure": measure, "value": value}


class Measured:
    """A table of such rows, asked for replicates and for estimates."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        keys = ["part", "method", "measure"]
        self._found = {
            key: dict(zip(rows.seed, rows.value, strict=True)) for key, rows in table.groupby(keys)
        }

    def values(self, part: str, method: str, measure: str = "accuracy") -> dict[int, float]:
        """Return the replicates of one measurement, by seed."""
        return self._found[part, method, measure]

    def mean(self, part: str, method: str, measure: str = "accuracy") -> Estimate:
        """Return the mean of the replicates and its interval."""
        found = [*self.values(part, method, measure).values()]
        return Estimate.of(found, label=f"{part}, {method}")

    def gap(self, part: str, first: str, second: str, measure: str = "accuracy") -> Estimate:
        """Return by how much the first method lies above the second, seed by seed."""
        a, b = (self.values(part, method, measure) for method in (first, second))
        label = f"{first} less {second}, {part}"
        return Estimate.of([a[seed] - b[seed] for seed in a], label=label, unit="points")

    def fall(self, pair: str) -> Estimate:
        """Return by how much the correlation falls from the first to the third layer."""
        a, b = (self.values("depth", pair, f"correlation {k}") for k in (1, 3))
        return Estimate.of([a[seed] - b[seed] for seed in a], label=f"fall, {pair}")

    def excess_fall(self) -> Estimate:
        """Return how much further it falls with other classes than with the same task."""
        a, b = (
            [
                self.values("depth", pair, "correlation 1")[seed]
                - self.values("depth", pair, "correlation 3")[seed]
                for seed in sorted(self.values("depth", pair, "correlation 1"))
            ]
            for pair in ("other classes", "same task")
        )
        return Estimate.of_differences(a, b, label="fall, other classes less same task")

    def quoted(self) -> dict[str, str]:
        """Return means as text, each under a name by which a chapter can quote it."""
        found = {}
        for pair, (method, name) in itertools.product(PAIRS, QUOTED.items()):
            found[f"{name}-{pair.split()[0]}"] = f"{self.mean(pair, method).mean:.1f}"
        for pair, layer in itertools.product(PAIRS, (1, 3)):
            mean = self.mean("depth", pair, f"correlation {layer}").mean
            found[f"correlation-{pair.split()[0]}-{layer}"] = f"{mean:.2f}"
        for width, (method, name) in itertools.product(
            (64, 256), {"OT, activations": "fused", "first units": "stacked"}.items()
        ):
            found[f"{name}-{width}"] = f"{self.mean(f'width {width}', method).mean:.1f}"
        return found

    def draw_pairs(self, ax: Axes) -> None:
        """Draw the accuracy of each merge for both pairs."""
        for k, pair in enumerate(PAIRS):
            at = [x + k / 4 - 0.125 for x in range(len(SHOWN))]
            self._draw(ax, at, [(pair, name, "accuracy") for name in SHOWN], pair, f"C{k}o")
        ax.set(ylabel="correct test images [%]", ylim=(0, 100))
        ax.set_xticks(range(len(SHOWN)), SHOWN, rotation=60, ha="right")
        ax.legend(loc="lower right")

    def draw_layers(self, ax: Axes) -> None:
        """Draw the accuracy for other classes over the number of merged layers."""
        for name, look in {
            "activations": "C2s:",
            "ZipIt!": "C3D--",
            "ZipIt!, free": "C4v-",
        }.items():
            self._draw(ax, range(4), [("layers", name, f"joint {n}") for n in range(4)], name, look)
        ax.set(xlabel="merged hidden layers", ylim=(0, 100), xticks=range(4))
        ax.legend(loc="upper right")

    def _draw(self, ax: Axes, at: Sequence[float], asked: list, label: str, look: str) -> None:
        dots = [[*self.values(*which).values()] for which in asked]
        plots.replicates(ax, at, dots, [Estimate.of(each) for each in dots], label, fmt=look)


def claims(found: Measured) -> Iterator[Claim]:
    """What the papers report, and the comparisons that decide whether it holds here."""
    same, other = PAIRS
    transports = ("OT, weights", "OT, activations")
    yield Claim(
        "transport-beats-plain-averaging",
        "Brought together by optimal transport, networks from different starts average better.",
        "singh2019model",
        "large gains over plain averaging",
        "a higher accuracy, for both pairs",
        [found.gap(part, way, "average") > 0 for part in PAIRS for way in transports],
    )
    yield Claim(
        "transport-fuses-other-widths",
        "Optimal transport merges networks of different widths.",
        "singh2019model",
        "networks of different widths fused",
        "a higher accuracy than when the units are averaged in the order in which they stand",
        [found.gap(f"width {w}", way, "first units") > 0 for w in (64, 256) for way in transports],
    )
    yield Claim(
        "zipping-beats-permuting-for-other-tasks",
        "For different tasks, zipping features within networks and across beats a permutation.",
        "stoica2023zipit",
        "gains of 20 % to 60 % over earlier merges",
        "a higher accuracy, merged whole and up to the last hidden layer",
        [
            found.gap(other, "ZipIt!", "activations") > 0,
            found.gap("layers", "ZipIt!", "activations", "joint 3") > 0,
        ],
    )
    yield Claim(
        "features-of-other-tasks-part-with-depth",
        "Networks of different tasks share their first features and part with depth.",
        "stoica2023zipit",
        "correlations that fall with depth",
        "correlations that fall from the first to the third layer, further than for one task",
        [found.fall(other) > 0, found.excess_fall() > 0],
    )
    yield Claim(
        "least-squares-beat-permuting-and-zipping",
        "At the same width, layers fitted by least squares merge better than permuting or zipping.",
        "nasery2024pleas",
        "up to 15 points above earlier merges of the same size",
        "a higher accuracy than by either, for both pairs",
        [
            found.gap(part, "PLeaS, 1", rival) > 0
            for part in PAIRS
            for rival in ("activations", "ZipIt!", "ZipIt!, free")
        ],
    )
    yield Claim(
        "bayesian-matching-beats-one-average",
        "Matched by a Bayesian model, networks merge in one round where their average fails.",
        "yurochkin2019bayesian",
        "better than federated averaging in a single round",
        "a higher accuracy than the average, for both pairs",
        [found.gap(part, "PFNM", "average") > 0 for part in PAIRS],
    )
    yield Claim(
        "matched-averaging-beats-federated-averaging",
        "Matching and averaging layer by layer beats federated averaging.",
        "wang2020federated",
        "better networks after fewer rounds",
        "a higher accuracy than FedAvg after as many rounds, for both pairs",
        [found.gap(part, "FedMA, trained", "FedAvg, rounds") > 0 for part in (same, other)],
    )


STUDY = Study("neuron-alignment-transport", rows)
