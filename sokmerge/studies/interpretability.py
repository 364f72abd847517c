r"""Interpretability: where a task sits, networks up to symmetry, planted lines, and steering.

* ``agreement``, ``groups``, ``masks``, ``grafts``: the network ``broad`` and four networks that
  were tuned from it. Each hidden unit is ranked by five measures of the weights and by three
  interventions on the unit, on one half of the test images. ``agreement`` is how alike two
  rankings are; ``groups`` is what happens on the other half when the first units of a ranking get
  their part of the task vector taken away, or are the only ones that have it; ``masks`` is what
  the masks of two tasks share; ``grafts`` is what a learned mask keeps, and what is lost without.
* ``pairs``: two networks of the family ``cnn``: independent, the same after weight matching,
  forked from a common warm-up, and tuned twice from one network. Of each pair the barrier, and
  measures of how alike their features are.
* ``planted``, ``searches``: perceptrons. A network and its sibling are joined by a straight line;
  the sibling's units are shuffled, and weight matching that is stopped after some passes looks for
  the line. Of two independent networks, what searches from different beginnings find.
* ``steering``: of the four tasks, how far the tuned network's activations moved along the
  direction from spoiled to clean images, and what it does to add that direction to the base.

Losses and barriers are in nats, errors and accuracies in percent, on images not trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from sokmerge import merge, params, symmetry
from sokmerge.merge import task_vectors
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, activations, barrier
from sokmerge.probe.ablation import mean_ablation, transplant, transplant_effects
from sokmerge.probe.connectivity import feature_connectivity, stitching
from sokmerge.probe.exchange import Exchange, exchange
from sokmerge.probe.steering import difference_of_means, steered
from sokmerge.reader import Estimate
from sokmerge.reader.series import chosen
from sokmerge.studies.connectivity import begun, fresh
from sokmerge.studies.study import Study
from sokmerge.studies.task_vectors import TASKS, Setting, images
from sokmerge.testbed import data, models, training, zoo
from sokmerge.testbed.models import MLP
from sokmerge.testbed.recipes import CORRUPTIONS, Recipe, master_seed
from sokmerge.testbed.tasks import Corrupted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "CAUSAL",
    "COUNTS",
    "KINDS",
    "LAYERS",
    "MASKS",
    "PASSES",
    "SPOTS",
    "STUDY",
    "Results",
    "exchanged",
    "rows",
    "table_of",
]

#: The hidden layers of ``broad``, and the layers that read them.
LAYERS, SPOTS = ("hidden.0", "hidden.1", "hidden.2"), ("hidden.1", "hidden.2", "head")

#: Rankings of units by their weights: how far they moved, and shares of four kinds of mask.
MASKS = ("moved", "trimmed", "elected", "TALL", "grafted")

#: Rankings of units by an intervention: the task vector taken away from a unit, given to it alone,
#: and the unit's activation fixed at its mean.
CAUSAL = ("undone", "added", "fixed")

#: Units of each layer that are changed together.
COUNTS = (2, 5, 10, 19, 38, 58, 77)

#: Images on which interventions are ranked, and images on which what follows is judged.
RANKED, JUDGED = 500, 1_000

#: Density of the masks, and the steps in which the learned one is found.
TRIMMED, GRAFTED, STEPS = 0.2, 0.05, 60

#: How the pairs came about.
KINDS = ("independent", "aligned", "forked", "fine-tuned")

#: Images that both networks of a pair are shown, and the penalty of readouts and maps.
ANCHORS, RIDGE = 256, 0.1

#: Passes after which matching is stopped, the last one as many as it takes; shuffled copies.
PASSES, COPIES = (1, 2, 3, 4, 100), 12

#: A line is missed where the barrier is that much higher than the planted one.
MISSED = 0.1

#: Lengths of a steering vector among which one half of the images chooses.
SCALES = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    setting = Setting(seed)
    yield from _units(setting)
    yield from _steering(setting)
    yield from _pairs(seed)
    yield from _planted(seed)


def row(part: str, group: str, kind: str, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "kind": kind, "x": float(x), "measure": measure}
    return {**said, "value": float(f"{float(value):.6g}")}


class Results:
    """The table of this study, asked for one number for each seed."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def __call__(self, part: str, measure: str, **where: Any) -> list[float]:
        """Return a value for each seed; where there are several, their mean."""
        return chosen(self.table, part=part, measure=measure, **where).tolist()

    def estimate(self, label: str, unit: str, part: str, measure: str, **where: Any) -> Estimate:
        """Return the mean over seeds with its interval."""
        return Estimate.of(self(part, measure, **where), label=label, unit=unit)

    def part(self, *names: str) -> pd.DataFrame:
        """Return the rows of some parts."""
        return self.table[self.table.part.isin(names)]

    def agreement(
        self, first: Sequence[str], second: Sequence[str], measure: str = "rank correlation"
    ) -> list[float]:
        """Return how alike rankings of one kind and rankings of another are, without themselves."""
        pairs = [
            self("agreement", measure, group=a, kind=b)
            for a, b in itertools.product(first, second)
            if a != b
        ]
        return np.mean(pairs, axis=0).tolist()

    def gain(self, how: str, layer: str, tasks: Sequence[str] = TASKS) -> list[float]:
        """Return which share of the tuned networks' gain in accuracy a way of steering gives, in %.

        Args:
            how: ``"steered"``, ``"moved"``, ``"random"``, or ``"biases"``, which knows no layer.
            layer: one of :data:`SPOTS`, or an empty text.
            tasks: over which gains are summed.
        """
        at = {"tuned": "", "base": "", how: layer}
        total = {
            name: np.sum([self("steering", name, group=t, kind=k) for t in tasks], axis=0)
            for name, k in at.items()
        }
        return (100 * (total[how] - total["base"]) / (total["tuned"] - total["base"])).tolist()


def table_of(
    ax: Axes, rows: Mapping[str, Sequence[float]], columns: Mapping[str, tuple[str, float]]
) -> None:
    """Draw a table of numbers in cells, each column shaded from its zero to an end of its own.

    Args:
        ax: where to draw.
        rows: name of a row to its numbers, one for each column.
        columns: heading to the format of its numbers and the number that is shaded most.
    """
    values = np.array([*rows.values()])
    shade = values / np.array([end for _, end in columns.values()])
    ax.imshow(shade, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    forms = [form for form, _ in columns.values()]
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if shade[i, j] > 0.75 else "black"
        ax.text(j, i, format(value, forms[j]), ha="center", va="center", color=ink)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


# Units -------------------------------------------------------------------------------------------


def _units(setting: Setting) -> Iterator[Row]:
    base = setting.base
    vectors = task_vectors.task_vectors(setting.models, base)
    masks = {name: [] for name in ("trimmed", "TALL", "grafted")}
    merged = merge.task_arithmetic(setting.models, base=base)
    kept = [task_vectors.trim(tau, TRIMMED) for tau in vectors]
    elected = {
        name: task_vectors.elect_sign([k[name] for k in kept], [1.0] * len(kept)) for name in base
    }
    scores: list[dict[str, np.ndarray]] = []
    for number, (task, model, tau) in enumerate(zip(TASKS, setting.models, vectors, strict=True)):
        trimmed = {name: t != 0 for name, t in kept[number].items()}
        masks["trimmed"].append(trimmed)
        masks["TALL"].append(task_vectors.tall_mask(model, base, merged))
        masks["grafted"].append(_graft(setting, task, model))
        agreed = {name: m & (tau[name].sign() == elected[name]) for name, m in trimmed.items()}
        rank = EmpiricalRisk(setting.module, *(t[:RANKED] for t in images(task, "choose")))
        scores.append(
            {
                "moved": _each(lambda name, tau=tau: tau[name].flatten(1).norm(dim=1)),
                "trimmed": _share(trimmed),
                "elected": _share(agreed),
                "TALL": _share(masks["TALL"][-1]),
                "grafted": _share(masks["grafted"][-1]),
                "undone": np.stack([transplant_effects(rank, model, base, n).loss for n in LAYERS]),
                "added": -np.stack([transplant_effects(rank, base, model, n).loss for n in LAYERS]),
                "fixed": np.stack([mean_ablation(rank, model, n, at="input").loss for n in SPOTS]),
            }
        )
    yield from _agreement(scores)
    yield from _groups(setting, scores)
    yield from _masks(vectors, masks)
    yield from _grafts(setting, masks["grafted"])


def _graft(setting: Setting, task: str, model: Params) -> dict[str, Tensor]:
    x, y = CORRUPTIONS[task](*data.fashion("train", limit=1_000))

    def loss(point: Params) -> Tensor:
        return F.cross_entropy(setting.outputs(point, x), y)

    return task_vectors.graft_mask(model, setting.base, loss, GRAFTED, steps=STEPS)


def _each(of: Any) -> np.ndarray:
    """Return a number for each unit, shape (layers, units)."""
    return np.stack([of(f"{layer}.weight").double().numpy() for layer in LAYERS])


def _share(mask: Mapping[str, Tensor]) -> np.ndarray:
    return _each(lambda name: mask[name].double().flatten(1).mean(1))


def _first(score: np.ndarray, count: int) -> dict[str, list[int]]:
    """Return the first units of a ranking, as many in each layer."""
    order = np.argsort(-score, axis=1, kind="stable")[:, :count]
    return {layer: [*map(int, units)] for layer, units in zip(LAYERS, order, strict=True)}


def _agreement(scores: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Row]:
    """How alike two rankings are: the mean over layers and tasks."""
    for first, second in itertools.product((*MASKS, *CAUSAL), repeat=2):
        alike, shared = [], []
        for score in scores:
            one, two = (_first(score[name], COUNTS[2]) for name in (first, second))
            for k, layer in enumerate(LAYERS):
                alike.append(spearmanr(score[first][k], score[second][k]).statistic)
                shared.append(len({*one[layer]} & {*two[layer]}) / COUNTS[2])
        yield row("agreement", first, second, -1, "rank correlation", np.mean(alike))
        yield row("agreement", first, second, -1, "shared", 100 * np.mean(shared))


def _groups(setting: Setting, scores: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Row]:
    """Gains summed over tasks: what is lost with some units undone, and got with them alone."""
    key = f"{master_seed()}:{setting.seed}"
    drawn = [
        torch.rand(scores[0]["moved"].shape, generator=params.stream(f"units:{key}:{k}")).numpy()
        for k in range(3)
    ]
    risks = [
        EmpiricalRisk(setting.module, *(t[:JUDGED] for t in images(task, "report")))
        for task in TASKS
    ]
    before, after = (
        [risk(p) for risk, p in zip(risks, points, strict=True)]
        for points in ([setting.base] * len(TASKS), setting.models)
    )
    whole = _gained(before, after)
    names = ("moved", "grafted", *CAUSAL, "random")
    for name, count in itertools.product(names, COUNTS):
        orders = [[draw] * len(TASKS) for draw in drawn]
        if name != "random":
            orders = [[score[name] for score in scores]]
        for kind in ("undone", "added"):
            found = []
            for order in orders:
                there = []
                for risk, score, model in zip(risks, order, setting.models, strict=True):
                    ends = (model, setting.base) if kind == "undone" else (setting.base, model)
                    there.append(risk(transplant(*ends, _first(score, count))))
                pair = (there, after) if kind == "undone" else (before, there)
                found.append(_gained(*pair) / whole)
            loss, accuracy = 100 * np.mean(found, axis=0)
            yield row("groups", name, kind, count, "loss", loss)
            yield row("groups", name, kind, count, "accuracy", accuracy)


def _gained(before: Sequence[Any], after: Sequence[Any]) -> np.ndarray:
    """Return the fall of the loss and the rise of the accuracy, summed over tasks."""
    pairs = zip(before, after, strict=True)
    return np.sum([(b.loss - a.loss, b.error - a.error) for b, a in pairs], axis=0)


def _masks(
    vectors: Sequence[Params], masks: Mapping[str, Sequence[Mapping[str, Tensor]]]
) -> Iterator[Row]:
    """What two masks share, in % of their mean size, and what they would by chance.

    By chance means: with as many entries in each tensor, at random places of it.
    """
    for i, j in itertools.combinations(range(len(TASKS)), 2):
        pair = f"{TASKS[i]}, {TASKS[j]}"
        yield row("masks", "vectors", pair, -1, "cosine", params.cosine(vectors[i], vectors[j]))
        for name, each in masks.items():
            a, b = each[i], each[j]
            size = sum(float(a[n].sum() + b[n].sum()) for n in a) / 2
            both = sum(float((a[n] & b[n]).sum()) for n in a)
            chance = sum(float(a[n].sum()) * float(b[n].sum()) / a[n].numel() for n in a)
            yield row("masks", name, pair, -1, "shared", 100 * both / size)
            yield row("masks", name, pair, -1, "chance", 100 * chance / size)


def _grafts(setting: Setting, masks: Sequence[Mapping[str, Tensor]]) -> Iterator[Row]:
    """Which share of the gains the grafts alone give, and which is lost without them."""
    before, after, alone, without = [], [], [], []
    for task, mask, model in zip(TASKS, masks, setting.models, strict=True):
        risk = setting.report[task]
        before.append(risk(setting.base))
        after.append(risk(model))
        alone.append(risk(task_vectors.apply_mask(mask, model, setting.base)))
        without.append(risk(task_vectors.apply_mask(mask, setting.base, model)))
    whole = _gained(before, after)
    for kind, found in (("alone", _gained(before, alone)), ("without", _gained(without, after))):
        for measure, value in zip(("loss", "accuracy"), 100 * found / whole, strict=True):
            yield row("grafts", "learned", kind, GRAFTED, measure, value)


# Steering ----------------------------------------------------------------------------------------


def _steering(setting: Setting) -> Iterator[Row]:
    x, y = data.fashion("train", limit=2_000)
    base, network = setting.base, setting.network
    clean = activations(network, base, x, SPOTS, at="input")
    spoiled, tuned = {}, {}
    for task, model in zip(TASKS, setting.models, strict=True):
        seen, _ = CORRUPTIONS[task](x, y)
        spoiled[task] = activations(network, base, seen, SPOTS, at="input")
        tuned[task] = activations(network, model, seen, SPOTS, at="input")
    for task, model in zip(TASKS, setting.models, strict=True):
        choose, report = setting.choose[task], setting.report[task]
        yield row("steering", task, "", -1, "base", 100 * report(base).accuracy)
        yield row("steering", task, "", -1, "tuned", 100 * report(model).accuracy)
        biases = {**base, **{n: t for n, t in model.items() if n.endswith("bias")}}
        yield row("steering", task, "", -1, "biases", 100 * report(biases).accuracy)
        for layer in SPOTS:
            way = {t: difference_of_means(clean[layer], spoiled[t][layer]) for t in TASKS}
            own = way[task].vector
            move = difference_of_means(tuned[task][layer], spoiled[task][layer]).vector
            both = torch.cat([clean[layer], spoiled[task][layer]])
            null = _null(both, f"{master_seed()}:{setting.seed}:{task}:{layer}")
            yield row("steering", task, layer, -1, "cosine", _cosine(move, own))
            others = [_cosine(move, way[t].vector) for t in TASKS if t != task]
            yield row("steering", task, layer, -1, "cosine with others", np.mean(others))
            chance = [abs(_cosine(move, v)) for v in null]
            yield row("steering", task, layer, -1, "cosine by chance", np.mean(chance))
            yield row("steering", task, layer, -1, "reliability", way[task].reliability)
            share = float(move.norm() / own.norm())
            yield row("steering", task, layer, -1, "length", share)
            ways = {"steered": [own], "moved": [move]}
            ways["random"] = [v * (own.norm() / v.norm()) for v in null[:4]]
            for name, vectors in ways.items():
                reached = [_tuned(choose, report, base, layer, v) for v in vectors]
                yield row("steering", task, layer, -1, name, 100 * np.mean(reached))


def _null(activity: Tensor, key: str, count: int = 50) -> list[Tensor]:
    """Return differences of means of random halves: directions in which activations vary."""
    generator, half = params.stream(f"halves:{key}"), len(activity) // 2
    drawn = (torch.randperm(len(activity), generator=generator) for _ in range(count))
    return [difference_of_means(activity[o[:half]], activity[o[half:]]).vector for o in drawn]


def _tuned(
    choose: EmpiricalRisk, report: EmpiricalRisk, base: Params, layer: str, vector: Tensor
) -> float:
    """Return the accuracy on one half, with the length that is best on the other."""

    def at(risk: EmpiricalRisk, scale: float) -> float:
        return steered(risk, base, layer, vector, scale=scale, at="input").accuracy

    return at(report, max(SCALES, key=lambda scale: at(choose, scale)))


def _cosine(u: Tensor, v: Tensor) -> float:
    return float(u @ v / (u.norm() * v.norm()))


# Pairs -------------------------------------------------------------------------------------------


def exchanged(
    network: Network,
    a: Params,
    b: Params,
    fit: tuple[Tensor, Tensor],
    judged: tuple[Tensor, Tensor],
    anchors: int = ANCHORS,
    layer: str = "head",
) -> Exchange:
    """Give what a hands to a layer to a readout of b; the first of the fitting images are shared.

    Args:
        network: the architecture of both.
        a: whose features are read.
        b: to whose features the readout is fitted.
        fit: images and their classes, for the readout.
        judged: images and their classes.
        anchors: how many of the images of ``fit`` both networks are shown.
        layer: the layer whose inputs are exchanged.
    """
    shown, labels = fit
    seen, targets = judged
    of_a, of_b = (activations(network, p, seen, [layer], at="input")[layer] for p in (a, b))
    known_b = activations(network, b, shown, [layer], at="input")[layer]
    shared_a = activations(network, a, shown[:anchors], [layer], at="input")[layer]
    classes = int(labels.max()) + 1
    shared = shared_a, known_b[:anchors]
    return exchange((known_b, labels), shared, (of_a, of_b, targets), classes, ridge=RIDGE)


def _pairs(seed: int) -> Iterator[Row]:
    recipes = zoo.family("cnn")
    module, a = zoo.load(recipes[seed])
    b = zoo.load(recipes[(seed + 1) % len(recipes)])[1]
    group = symmetry.chain(module, models.chain(recipes[seed].arch))
    moved = group.act(merge.weight_matching(a, b, group, orders=5).permutation, b)
    train, test = data.fashion("train", limit=6_000), data.fashion("test", limit=JUDGED)
    recipe, noise = replace(recipes[seed], limit=6_000), Corrupted("gaussian_noise", 3)
    trunk = training.fine_tune(replace(recipe, epochs=2, schedule="constant"), begun(recipe))
    orders = [fresh(recipe, seed, k).order_seed for k in (0, 1)]
    forks = (replace(recipe, epochs=5, order_seed=order) for order in orders)
    tunings = (replace(recipe, epochs=2, lr=1e-3, order_seed=order) for order in orders)
    pairs = {
        "independent": (a, b),
        "aligned": (a, moved),
        "forked": tuple(training.fine_tune(fork, trunk) for fork in forks),
        "fine-tuned": tuple(training.fine_tune(tuned, a, *noise(*train)) for tuned in tunings),
    }
    network = Network(module)
    for kind, pair in pairs.items():
        seen, shown = test, tuple(t[:2_000] for t in train)
        if kind == "fine-tuned":
            seen, shown = noise(*seen), noise(*shown)
        risks = EmpiricalRisk(module, *seen), EmpiricalRisk(module, *shown)
        yield from _pair(kind, network, pair, *risks, seen, shown)


def _pair(
    kind: str,
    network: Network,
    pair: tuple[Params, Params],
    risk: EmpiricalRisk,
    fit: EmpiricalRisk,
    seen: tuple[Tensor, Tensor],
    shown: tuple[Tensor, Tensor],
) -> Iterator[Row]:
    layers = ("conv.1", "conv.2", "head")
    yield row("pairs", kind, "", -1, "barrier", barrier(risk, *pair, 11).loss)
    yield row("pairs", kind, "", -1, "error", 50 * sum(risk(p).error for p in pair))
    found = feature_connectivity(network, *pair, seen[0], layers, at="input")
    for k, layer in enumerate(layers):
        for measure in ("cka", "gap", "apart"):
            yield row("pairs", kind, layer, -1, measure, getattr(found, measure)[k])
    for joint, examples in (("identity", None), ("linear", fit)):
        cost = stitching(risk, *pair, layers, fit=examples).error_penalty
        for layer, value in zip(layers, cost, strict=True):
            yield row("pairs", kind, layer, -1, joint, 100 * value)
    given = exchanged(network, *pair, shown, seen)
    for way, value in given.error.items():
        yield row("pairs", kind, "head", ANCHORS, way, 100 * value)
        yield row("pairs", kind, "head", ANCHORS, f"{way}, own", 100 * given.own[way])


# Planted lines -----------------------------------------------------------------------------------


def _planted(seed: int) -> Iterator[Row]:
    images = data.fashion("test", limit=JUDGED)
    for depth in (3, 8):
        recipe = Recipe("interpretability", MLP(16, depth=depth), 0, 0, limit=6_000, epochs=5)
        recipe = fresh(recipe, seed, depth)
        module = models.build(recipe.arch)
        risk, group = (
            EmpiricalRisk(module, *images),
            symmetry.chain(module, models.chain(recipe.arch)),
        )
        orders = [fresh(recipe, seed, depth + k).order_seed for k in (10, 20, 30)]
        a = training.fine_tune(recipe, begun(recipe))
        blurred = replace(
            recipe, lr=2e-3, order_seed=orders[0], tasks=(Corrupted("gaussian_blur", 5),)
        )
        trunk = training.fine_tune(replace(recipe, epochs=1, schedule="constant"), begun(recipe))
        forks = [training.fine_tune(replace(recipe, order_seed=o), trunk) for o in orders[1:]]
        siblings = {"fine-tuned": (a, training.fine_tune(blurred, a)), "forked": tuple(forks)}
        for kind, (one, two) in siblings.items():
            yield from _hidden(f"{depth} layers", kind, risk, group, one, two, seed)
    recipe = Recipe("interpretability", MLP(32, depth=6), 0, 0, limit=6_000, epochs=8)
    module = models.build(recipe.arch)
    risk, group = EmpiricalRisk(module, *images), symmetry.chain(module, models.chain(recipe.arch))
    ends = [fresh(recipe, seed, k) for k in (6, 7)]
    a, b = (training.fine_tune(end, begun(end)) for end in ends)
    yield row("searches", "", "as trained", -1, "barrier", barrier(risk, a, b, 5).loss)
    for k in range(COPIES):
        copy = group.act(group.sample(1_000 * (1_000 * master_seed() + seed) + k), b)
        found = merge.weight_matching(a, copy, group, seed=k)
        height = barrier(risk, a, group.act(found.permutation, copy), 5).loss
        yield row("searches", "", "weights", k, "barrier", height)
        yield row("searches", "", "weights", k, "similarity", found.similarity)
    found = merge.activation_matching(module, a, b, group, data.fashion("train", limit=1_000)[0])
    height = barrier(risk, a, group.act(found.permutation, b), 5).loss
    yield row("searches", "", "activations", -1, "barrier", height)


def _hidden(
    net: str, kind: str, risk: EmpiricalRisk, group: symmetry.PermutationGroup, one: Params,
    two: Params, seed: int,
) -> Iterator[Row]:  # fmt: skip
    """Shuffle one end of a low line, and look how often matching finds the line again."""
    planted = barrier(risk, one, two, 5).loss
    yield row("planted", net, kind, -1, "planted", planted)
    apart = params.distance(one, two) / params.norm(one)
    yield row("planted", net, kind, -1, "distance", apart)
    copies = [
        group.act(group.sample(1_000 * (1_000 * master_seed() + seed) + k), two)
        for k in range(COPIES)
    ]
    shuffled = [barrier(risk, one, copy, 5).loss for copy in copies[:3]]
    yield row("planted", net, kind, -1, "shuffled", np.mean(shuffled))
    for passes in PASSES:
        heights = []
        for k, copy in enumerate(copies):
            found = merge.weight_matching(one, copy, group, seed=k, max_passes=passes)
            heights.append(barrier(risk, one, group.act(found.permutation, copy), 5).loss)
        missed = np.mean([height > planted + MISSED for height in heights])
        yield row("planted", net, kind, passes, "missed", 100 * missed)
        yield row("planted", net, kind, passes, "barrier", np.mean(heights))


STUDY = Study("interpretability", rows)
