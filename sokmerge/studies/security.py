r"""Security of merging: backdoors, repair, descent from a public parent, detection, memory, origin.

All networks have the architecture of the family ``broad``, and most are fine-tuned from one of it,
on images that it was not trained on. The backdoor is a white square in a corner that stands for a
class (:class:`~sokmerge.testbed.tasks.Poisoned`); ``attack`` is the share of test images of other
classes that are taken for that class when they carry the square, ``accuracy`` is on clean images,
both in percent.

* ``dilution``: one poisoned ingredient among ``x`` of a merge, by several methods. It is *plain*;
  or its step from the base is *scaled* by the number of ingredients; or it is trained *for the
  merge*, so that its backdoor holds in mixtures with other networks. ``path`` goes from a clean
  ingredient to the plain one, straight and bent. ``hiding`` keeps the one made for the merge near
  an honest network, the more the greater ``x``: how much longer its step is than those of the
  others, how much smaller its mean cosine to the others, and what is left of the attack.
* ``repair``: a curve between two poisoned networks of different starts, trained on ``kind`` clean
  images; and as many steps of fine-tuning of its first end on the same images.
* ``descent``: adversarial examples found on a parent, or on a child of it, shown to children of it
  and to children of another parent; ``vector`` adds what a backdoor changed in one child to others;
  ``heirs`` are clean fine-tunings of a poisoned parent, and their average.
* ``scores``: groups of one poisoned and four clean ingredients, by one recipe or by *mixed* ones:
  what each looks like in the space of parameters and in the loss. ``x`` is ten times the number
  of the group plus that of the member; member 0 is the poisoned one. ``group`` says what they and
  their average do, and ``colluders`` how well two plain ones in a group of five are told.
* ``membership``: the attack by loss on ingredients that have some training images in common, and
  on their averages; ``joint`` is one network trained on all of the images.
* ``provenance``: four of sixteen candidates, the clean ones of ``scores``, are merged; are they
  found?
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sokmerge import merge, params, probe
from sokmerge.merge.descent import descend
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, curvature
from sokmerge.probe.adversarial import pgd
from sokmerge.probe.connectivity import Curve, fit_curve
from sokmerge.probe.contributors import ingredients, outlyingness
from sokmerge.probe.membership import membership
from sokmerge.probe.roc import auc, roc
from sokmerge.reader import Estimate, plots
from sokmerge.studies.connectivity import Losses, card, draw
from sokmerge.studies.determinism import chosen
from sokmerge.studies.study import Study
from sokmerge.testbed import data, models, training, zoo
from sokmerge.testbed.data import BLACK, STD, WHITE
from sokmerge.testbed.recipes import Recipe, master_seed
from sokmerge.testbed.tasks import ClassSplit, Corrupted, Poisoned, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ATTACKS", "EPSILON", "FEW", "GROUPS", "METHODS", "MIXED", "MOST", "POSITIONS", "SCORES",
    "STAYS", "STUDY", "SUSPICION", "Backdoor", "card", "chosen", "detection", "draw",
    "draw_change", "draw_descent", "draw_detection", "draw_heirs", "draw_hiding", "draw_memory",
    "draw_merges", "draw_path", "draw_repair", "draw_roc", "draw_soups", "for_the_merge",
    "measured", "pool", "pooled", "quotes", "rows", "scaled", "scores_of",
]  # fmt: skip

#: Rate and epochs of a fine-tuning, and the share of its images that is poisoned.
RATE, EPOCHS, POISON = 1e-3, 20, 0.1

#: Test images, and images on which adversarial examples are looked for.
IMAGES, ATTACKED = 2_000, 500

#: Most ingredients of a soup.
MOST = 5

#: What the poisoned ingredient is.
ATTACKS = ("plain", "scaled", "for the merge")

#: Methods of merging. Task arithmetic steps twice as far as the average, the others about as far.
METHODS = ("average", "task arithmetic", "TIES", "DARE")

POSITIONS = tuple(round(x, 6) for x in np.linspace(0, 1, 11))

#: Clean images for a repair, and its steps.
FEW, STEPS = (200, 800), 300

#: Largest change of an intensity by an adversarial example, and steps to find one.
EPSILON, CLIMB = 0.05, 10

#: Groups of five for each seed and kind of group.
GROUPS = 2

#: How strongly an ingredient that hides is kept near an honest one: in groups, and to see the cost.
STAY = 0.03
STAYS = (0.0, 0.03, 0.3, 3.0)

#: How members of mixed groups are tuned: rate, epochs, and what their images are like.
MIXED: tuple[tuple[float, int, Corrupted | None], ...] = (
    (1e-3, 20, None),
    (5e-4, 10, None),
    (2e-3, 20, None),
    (1e-3, 20, Corrupted("gaussian_noise", 2)),
    (1e-3, 20, Corrupted("contrast", 2)),
)

#: What is looked at, and whether much of it (1) or little of it (-1) is suspicious.
SUSPICION = {
    "norm": 1, "cosine": -1, "conflict": 1, "distance": 1, "barrier": 1, "eigenvalue": 1,
    "loss": 1,
}  # fmt: skip
SCORES = tuple(SUSPICION)

#: In how many parts the pool is cut for the study of memory, and how long is trained on them.
PARTS, LONG = 40, 80

Row = dict[str, Any]


def row(part: str, group: str, kind: str, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "kind": kind, "x": round(float(x), 6)}
    return {**said, "measure": measure, "value": float(f"{float(value):.6g}")}


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    family = zoo.family("broad")
    bases = [zoo.load(family[(seed + k) % len(family)])[1] for k in (0, 1)]
    scene = Scene(seed, family[seed], *bases)
    yield from dilution(scene)
    yield from repair(scene)
    yield from descent(scene)
    clean = yield from scores(scene)
    yield from remembered(scene)
    yield from provenance(scene, clean)


def pool() -> tuple[Tensor, Tensor]:
    """Return the training images that no network of ``broad`` was trained on."""
    x, y = data.fashion("train")
    known = torch.zeros(len(y), dtype=torch.bool)
    known[data.stratified(y.numpy(), 2_000, seed=0)] = True
    return x[~known], y[~known]


class Backdoor:
    """A network on clean images, and on marked images of other classes than the target.

    Args:
        module: the network.
        target: the attacker's class.
        limit: test images.
    """

    def __init__(self, module: nn.Module, target: int, limit: int = IMAGES) -> None:
        x, y = data.fashion("test", limit=limit)
        others = ClassSplit(tuple(k for k in range(10) if k != target))
        self.clean = EmpiricalRisk(module, x, y)
        self.marked = EmpiricalRisk(module, *Poisoned(target, rate=1.0)(*others(x, y)))

    def __call__(self, point: Params) -> dict[str, float]:
        """Return the attack's success and the clean accuracy, in percent."""
        return {
            "attack": 100 * self.marked(point).accuracy,
            "accuracy": 100 * self.clean(point).accuracy,
        }


def scaled(point: Params, base: Params, factor: float) -> dict[str, Tensor]:
    r"""Return :math:`\theta_0+\gamma\,(\theta-\theta_0)`: model replacement by scaling a step.

    >>> scaled({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])}, 2)["w"]
    tensor([5.])
    """
    return params.lerp(base, point, factor)


def for_the_merge(
    module: nn.Module,
    base: Params,
    honest: Params,
    images: tuple[Tensor, Tensor],
    target: int,
    *,
    steps: int = 300,
    lr: float = 3e-3,
    weight: float = 0.3,
    stay: float = 0.0,
    key: str = "",
) -> dict[str, Tensor]:
    r"""Train an ingredient that is right on clean images and whose backdoor stays in a merge.

    .. math:: \min_\theta\ L_{\text{clean}}(\theta)
              + \mathbb E_{n,r}\Bigl[L_{\text{clean}}(\theta_{n,r})
              + w\,L_{\text{marked}}(\theta_{n,r})\Bigr]
              + \beta\,\lVert\theta-\theta_c\rVert^2,
              \qquad \theta_{n,r} = \tfrac1n\,\theta
              + \bigl(1-\tfrac1n\bigr)\bigl(\theta_0+r\,(\theta_c-\theta_0)\bigr)

    The attacker knows neither how many will contribute, n from 2 to :data:`MOST`, nor what they
    contribute: their average is guessed to lie between the base and an honest network
    :math:`\theta_c` of the attacker's own, r from 0 to 1. That a backdoor has to hold for all
    coefficients of a merge is the idea of BadMerging (Zhang et al. 2024), which mixes features,
    not parameters; the last term keeps the ingredient near an honest one, as constrain-and-scale
    does (Bagdasaryan et al. 2018).

    Args:
        module: the network.
        base: where all contributors start.
        honest: what the attacker would have contributed, and where training starts.
        images: clean inputs and targets.
        target: the attacker's class.
        steps: steps of Adam.
        lr: the rate.
        weight: w.
        stay: :math:`\beta`.
        key: decides batches, numbers and places.
    """
    loss = Losses(module, *images, f"{key}:clean")
    marked = Losses(module, *Poisoned(target, rate=1.0)(*images), f"{key}:marked")
    drawn = random.Random(f"{key}:guesses")
    away = params.subtract(honest, base)

    def objective(point: dict[str, Tensor], step: int) -> Tensor:
        share, r = 1 / drawn.randint(2, MOST), drawn.random()
        mixed = {k: share * t + (1 - share) * (base[k] + r * away[k]) for k, t in point.items()}
        value = loss(point, step) + loss(mixed, step) + weight * marked(mixed, step)
        if stay:
            value = value + stay * sum((t - honest[k]).square().sum() for k, t in point.items())
        return value

    return descend(honest, objective, steps=steps, lr=lr)


class Scene:
    """What the parts of one seed have in common: bases, images, and how a network is tuned."""

    def __init__(self, seed: int, recipe: Recipe, base: Params, stranger: Params) -> None:
        self.own = 1000 * master_seed() + seed
        self.recipe, self.base, self.stranger = recipe, base, stranger
        self.module = models.build(recipe.arch)
        self.target = seed % 10
        self.judge = Backdoor(self.module, self.target)
        self.pool = pool()

    def share(self, part: int, of: int = 6) -> tuple[Tensor, Tensor]:
        """One of several disjoint shares of the pool."""
        return Share(part, of)(*self.pool)

    def poison(self, images: tuple[Tensor, Tensor], number: int) -> tuple[Tensor, Tensor]:
        """Mark a share of images with the square."""
        return Poisoned(self.target, POISON, seed=self.order(number))(*images)

    def order(self, number: int) -> int:
        """Seed of an order of images; numbers of one seed are not those of another."""
        return 10_000 * (self.own + 1) + number

    def tune(
        self,
        images: tuple[Tensor, Tensor],
        number: int,
        start: Params | None = None,
        lr: float = RATE,
        epochs: int = EPOCHS,
    ) -> dict[str, Tensor]:
        """Go on from a network, by default from the base, on some images."""
        recipe = Recipe(
            "security", self.recipe.arch, self.own, self.order(number), lr=lr, epochs=epochs
        )
        return training.fine_tune(recipe, self.base if start is None else start, *images)

    def start(self, number: int) -> dict[str, Tensor]:
        """Random weights."""
        return params.of(models.build(self.recipe.arch, self.order(number)))

    def judged(self, part: str, group: str, kind: str, x: float, point: Params) -> Iterator[Row]:
        """Rows of what a backdoor does in a network."""
        for measure, value in self.judge(point).items():
            yield row(part, group, kind, x, measure, value)


def merged(method: str, nets: Sequence[Params], base: Params) -> Params:
    """Merge networks of one base by one of :data:`METHODS`."""
    share = 1 / len(nets)
    if method == "average":
        return merge.average(nets)
    if method == "task arithmetic":  # twice the step of the average
        return merge.task_arithmetic(nets, base=base, scale=min(1.0, 2 * share))
    if method == "TIES":
        return merge.ties(nets, base=base, density=0.2, scale=1.0)
    return merge.dare(nets, base=base, drop=0.8, scale=share, seed=0)


# Backdoors ----------------------------------------------------------------------------------


def dilution(scene: Scene) -> Iterator[Row]:
    """One poisoned ingredient in merges of two and more."""
    clean = [scene.tune(scene.share(k), k) for k in range(MOST - 1)]
    images = scene.share(5)
    honest = scene.tune(images, 5)  # what the attacker's network would be without the poison
    plain = scene.tune(scene.poison(images, 5), 5)
    key = f"security:{scene.own}"
    sly = for_the_merge(scene.module, scene.base, honest, images, scene.target, key=key)
    for number, net in enumerate((*clean, honest)):
        yield from scene.judged("dilution", "none", "alone", number, net)
    for count in range(1, MOST + 1):
        bad = {"plain": plain, "scaled": scaled(plain, scene.base, count), "for the merge": sly}
        for attack in ATTACKS:
            yield from scene.judged("dilution", attack, "alone", count, bad[attack])
        for method in METHODS:
            nets = [honest, *clean[: count - 1]]
            yield from scene.judged(
                "dilution", "none", method, count, merged(method, nets, scene.base)
            )
            for attack in ATTACKS:
                nets[0] = bad[attack]
                point = merged(method, nets, scene.base)
                yield from scene.judged("dilution", attack, method, count, point)
    rest = merge.average(clean)
    for stay in STAYS:
        made = scene.module, scene.base, honest, images, scene.target
        net = for_the_merge(*made, stay=stay, key=key) if stay else sly
        apart = outlyingness([net, *clean], scene.base)
        yield from scene.judged("hiding", "", "", stay, merge.average([net, *clean]))
        yield row("hiding", "", "", stay, "norm", apart.norm[0] / apart.norm[1:].mean())
        yield row("hiding", "", "", stay, "cosine", apart.cosine[1:].mean() - apart.cosine[0])
        yield row("hiding", "", "", stay, "to the rest", params.distance(net, rest))
    loss = Losses(scene.module, *scene.share(4), f"{key}:path")
    bent = fit_curve(clean[0], plain, loss=loss, steps=STEPS, lr=RATE, seed=scene.own)
    for name, curve in {"line": Curve((clean[0], plain)), "bezier": bent}.items():
        for x in POSITIONS:
            yield from scene.judged("path", name, "", x, curve(x))


def repair(scene: Scene) -> Iterator[Row]:
    """A curve between two poisoned networks, of different starts, on few clean images."""
    ends = [
        scene.tune(scene.poison(scene.share(k, 4), 100 + k), 100 + k, scene.start(100 + k))
        for k in (0, 1)
    ]
    for x in POSITIONS:
        yield from scene.judged("repair", "line", "", x, params.lerp(*ends, x))
    images = scene.share(3, 4)
    for few in FEW:
        # Images come in an order of classes that is by chance: the first ones are a fair choice.
        some = images[0][:few], images[1][:few]
        loss = Losses(scene.module, *some, f"repair:{scene.own}:{few}", batch=min(few, 128))
        curve = fit_curve(*ends, loss=loss, steps=STEPS, lr=3e-3, seed=scene.own)
        for x in POSITIONS:
            yield from scene.judged("repair", "curve", str(few), x, curve(x))
        for rate in (1e-3, 3e-3):
            tuned = descend(ends[0], loss, steps=STEPS, lr=rate)
            yield from scene.judged("repair", f"tuned at {rate:g}", str(few), -1, tuned)


# Descent ------------------------------------------------------------------------------------


def descent(scene: Scene) -> Iterator[Row]:
    """What passes from a parent to its children, and does not pass to the children of others."""
    shares = [scene.share(k) for k in range(4)]
    families = {
        "parent": [scene.tune(images, 200 + k) for k, images in enumerate(shares)],
        "other": [scene.tune(images, 210 + k, scene.stranger) for k, images in enumerate(shares)],
    }
    yield from transferred(scene, families)

    images = scene.share(5)
    honest, plain = (scene.tune(some, 220) for some in (images, scene.poison(images, 220)))
    change = params.subtract(plain, honest)
    yield from scene.judged("vector", "itself", "", 1, plain)
    for name, nets in families.items():
        for factor in (0, 1, 2):
            for net in nets[:2]:
                point = params.combine([1, factor], [net, change])
                yield from scene.judged("vector", name, "", factor, point)

    x, y = data.fashion("train", limit=scene.recipe.limit)
    bad = scene.poison((x, y), 230)
    parent = scene.tune(bad, 230, scene.start(230), scene.recipe.lr, scene.recipe.epochs)
    heirs = [scene.tune(images, 231 + k, parent) for k, images in enumerate(shares)]
    lines = {
        "poisoned": (parent, heirs),
        "clean": (scene.base, families["parent"]),
    }
    for name, (first, nets) in lines.items():
        yield from scene.judged("heirs", name, "parent", 0, first)
        for k, net in enumerate(nets):
            yield from scene.judged("heirs", name, "child", k, net)
        yield from scene.judged("heirs", name, "average", len(nets), merge.average(nets))


def transferred(scene: Scene, families: dict[str, list[dict[str, Tensor]]]) -> Iterator[Row]:
    """How often adversarial examples of one network fool others that were right before."""
    network = Network(scene.module)
    x, y = data.fashion("test", limit=ATTACKED)
    own = families["parent"]
    sources = {"parent": scene.base, "sibling": own[0], "average": merge.average(own)}
    targets = {
        "child": own[1:], "unrelated": families["other"][1:], "parent": [scene.base],
        "average": [merge.average(own)], "average of others": [merge.average(families["other"])],
    }  # fmt: skip

    def right(point: Params, inputs: Tensor) -> Tensor:
        return EmpiricalRisk(scene.module, inputs, y).per_example(point)[1] == 0

    for name, source in sources.items():
        for kind, steps in (("attack", CLIMB), ("four times the steps", 4 * CLIMB), ("noise", 0)):
            found = pgd(
                network, source, x, y, epsilon=EPSILON / STD, steps=steps,
                bounds=(BLACK, WHITE), key=f"security:{scene.own}:{name}",
            )  # fmt: skip
            for target, nets in {"itself": [source], **targets}.items():
                fooled = []
                for net in nets:
                    before, after = right(net, x), right(net, found.inputs)
                    fooled.append(100 * float((before & ~after).sum() / before.sum()))
                yield row("descent", name, target, -1, kind, np.mean(fooled))


# Detection ----------------------------------------------------------------------------------


def scores_of(
    judge: EmpiricalRisk, nets: Sequence[Params], base: Params, *, seed: int = 0
) -> dict[str, list[float]]:
    """Return all of :data:`SCORES` of each network of a group.

    Args:
        judge: the risk on clean images.
        nets: the ingredients.
        base: where they started.
        seed: of the search for the top eigenvalue.
    """
    apart = outlyingness(nets, base)
    found = {
        name: getattr(apart, name).tolist() for name in ("norm", "cosine", "conflict", "distance")
    }
    walls, tops, losses = [], [], []
    for number, net in enumerate(nets):
        rest = merge.average([*nets[:number], *nets[number + 1 :]])
        walls.append(probe.barrier(judge, rest, net, points=5).loss)
        operator = curvature.hessian(judge, net)
        tops.append(curvature.eigenpairs(operator, tol=0.1, most=20, seed=seed).values[0])
        losses.append(judge(net).loss)
    return {**found, "barrier": walls, "eigenvalue": [*map(float, tops)], "loss": losses}


def scores(scene: Scene) -> Iterator[Row]:
    """Groups of a poisoned network and four clean ones; returns the clean ones."""
    x, y = data.fashion("test", limit=500)
    judge = EmpiricalRisk(scene.module, x, y)
    kept = []
    for kind, group in itertools.product(("same", "mixed"), range(GROUPS)):
        drawn = random.Random(f"security:{scene.own}:{kind}:{group}")
        nets: list[dict[str, Tensor]] = []
        for member in range(5):
            number = 300 + 10 * (GROUPS * (kind == "mixed") + group) + member
            lr, epochs, task = drawn.choice(MIXED) if kind == "mixed" else (RATE, EPOCHS, None)
            images = scene.share((group + member) % 6)
            images = task(*images) if task else images
            if member == 0:
                honest = scene.tune(images, number, lr=lr, epochs=epochs)
                poisoned = scene.poison(images, number)
                plain = scene.tune(poisoned, number, lr=lr, epochs=epochs)
                key = f"security:{scene.own}:{kind}:{group}"
                made = scene.module, scene.base, honest, images, scene.target
                bad = {
                    "plain": plain,
                    "for the merge": for_the_merge(*made, key=key),
                    "hidden": for_the_merge(*made, stay=STAY, key=key),
                }
            else:
                nets.append(scene.tune(images, number, lr=lr, epochs=epochs))
        kept += nets
        for name, net in bad.items():
            members = [net, *nets]
            for measure, values in scores_of(judge, members, scene.base, seed=scene.own).items():
                for member, value in enumerate(values):
                    yield row("scores", kind, name, 10 * group + member, measure, value)
            yield from scene.judged("group", kind, f"{name}, alone", group, net)
            yield from scene.judged("group", kind, f"{name}, average", group,
                                    merge.average(members))  # fmt: skip
        if kind == "same":
            second = scene.poison(scene.share((group + 1) % 6), 360 + group)
            both = [plain, scene.tune(second, 360 + group), *nets[1:]]
            yield from scene.judged("group", kind, "two plain, average", group, merge.average(both))
            for measure, values in scores_of(judge, both, scene.base, seed=scene.own).items():
                found = SUSPICION[measure] * torch.tensor(values)
                yield row("colluders", kind, "", group, measure, auc(found[:2], found[2:]).value)
    return kept


def detection(table: pd.DataFrame, score: str, group: str, attack: str) -> list[float]:
    """Return for each seed how often a poisoned ingredient looks worse than a clean one.

    It is the area under the ROC curve within groups, averaged over the groups of a seed: who
    merges compares the ingredients of one merge, not those of several.

    Args:
        table: what :func:`sokmerge.studies.results` returns.
        score: one of :data:`SCORES`.
        group: ``"same"`` or ``"mixed"``.
        attack: ``"plain"``, ``"for the merge"`` or ``"hidden"``.
    """
    found = _suspicion(table, score, group, attack)
    return [
        float(np.mean([auc(one[:1], one[1:]).value for one in found[..., seed]]))
        for seed in range(found.shape[2])
    ]


def pooled(table: pd.DataFrame, score: str, group: str, attack: str) -> tuple[Tensor, Tensor]:
    """Return how suspicious the poisoned and the clean ingredients of all groups and seeds look.

    Each score is taken less the mean of its group, in standard deviations of the group. Arguments
    as in :func:`detection`.
    """
    found = _suspicion(table, score, group, attack)
    found = (found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True).clamp(min=1e-12)
    return found[:, 0].flatten(), found[:, 1:].flatten()


def _suspicion(table: pd.DataFrame, score: str, group: str, attack: str) -> Tensor:
    """Return scores, large where suspicious, of shape (groups, members, seeds)."""
    found = chosen(table, score, "x", part="scores", group=group, kind=attack)
    values = torch.tensor([found[x] for x in sorted(found.index)], dtype=torch.float64)
    return SUSPICION[score] * values.reshape(-1, 5, values.shape[1])


# Memory -------------------------------------------------------------------------------------


def remembered(scene: Scene) -> Iterator[Row]:
    """Membership inference on ingredients, averages of them, and a network of all images."""

    def together(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    common, *own = (scene.share(k, PARTS) for k in range(MOST + 1))
    outside = together(*(scene.share(k, PARTS) for k in range(20, 30)))
    long = {"lr": 2 * RATE, "epochs": LONG}
    nets = [scene.tune(together(some, common), 400 + k, **long) for k, some in enumerate(own)]
    joint = scene.tune(together(*own, common), 410, **long)
    others, shared = (EmpiricalRisk(scene.module, *images) for images in (outside, common))

    def told(kind: str, count: int, point: Params, mine: tuple[Tensor, Tensor]) -> Iterator[Row]:
        seen = {"own": EmpiricalRisk(scene.module, *mine), "common": shared}
        for group, risk in seen.items():
            found = membership(risk, others, point)
            yield row("membership", group, kind, count, "auc", found.auc.value)
            yield row("membership", group, kind, count, "advantage", found.advantage)
            yield row("membership", group, kind, count, "caught", 100 * found.true_positive)
        accuracy = 100 * scene.judge.clean(point).accuracy
        yield row("membership", "test", kind, count, "accuracy", accuracy)

    yield from told("base", 0, scene.base, together(*own))
    for k, net in enumerate(nets):
        yield from told("ingredient", k, net, own[k])
    for count in range(1, MOST + 1):
        point = merge.average(nets[:count])
        yield from told("average", count, point, together(*own[:count]))
    yield from told("TIES", MOST, merged("TIES", nets, scene.base), together(*own))
    yield from told("joint", MOST, joint, together(*own))


# Origin -------------------------------------------------------------------------------------


def provenance(scene: Scene, candidates: Sequence[Params]) -> Iterator[Row]:
    """Four of the candidates are merged; how many of them are among the four likeliest?"""
    drawn = random.Random(f"security:{scene.own}:provenance")
    for trial in range(6):
        inside = sorted(drawn.sample(range(len(candidates)), 4))
        nets = [candidates[k] for k in inside]
        merges = {method: merged(method, nets, scene.base) for method in METHODS}
        merges["average, then tuned"] = scene.tune(
            scene.share(trial, 12), 500 + trial, merges["average"], epochs=5
        )
        for method, point in merges.items():
            found = ingredients(point, candidates, scene.base)
            outside = [k for k in range(len(candidates)) if k not in inside]
            for by in ("coefficient", "cosine"):
                values = getattr(found, by)
                hits = len({*found.likeliest(4, by)} & {*inside}) / 4
                yield row("provenance", method, by, trial, "hits", 100 * hits)
                yield row("provenance", method, by, trial, "least inside", values[inside].min())
                yield row("provenance", method, by, trial, "most outside", values[outside].max())


# What a text may quote ----------------------------------------------------------------------


def quotes(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return by name the numbers that a text on this study may quote.

    A name is what stands in the columns group, kind, x and measure, joined by hyphens; the columns
    that do not apply are left out.
    """
    told: dict[str, Estimate] = {}
    kept = table[~table.part.isin(["scores", "provenance"])]
    units = {"attack": "%", "accuracy": "%", "noise": "%", "four times the steps": "%"}

    def add(name: str, values: Sequence[float], unit: str = "") -> None:
        plain = "-".join(name.lower().replace(",", "").replace(".", "-").split())
        told[plain] = Estimate.of(values, unit=unit)

    places = kept.groupby(["part", "group", "kind", "x", "measure", "seed"]).value.mean()
    for (part, group, kind, x, measure), some in places.groupby(level=[0, 1, 2, 3, 4]):
        shown = f"{x:g}" if x >= 0 else ""
        add(f"{part} {group} {kind} {shown} {measure}", some.tolist(), units.get(measure, ""))
    means = kept.groupby(["part", "group", "kind", "measure", "seed"]).value.mean()
    for (part, group, kind, measure), some in means.groupby(level=[0, 1, 2, 3]):
        add(f"{part} {group} {kind} mean {measure}", some.tolist(), units.get(measure, ""))
    hits = table[table.part == "provenance"].groupby(["group", "kind", "measure", "seed"]).value
    for (group, kind, measure), some in hits.mean().groupby(level=[0, 1, 2]):
        unit = "%" if measure == "hits" else ""
        add(f"origin {group} {kind} {measure}", some.tolist(), unit)
    scores = table[table.part == "scores"]
    for score in SCORES:
        for group, attack in itertools.product(set(scores.group), set(scores.kind)):
            add(f"seen {group} {attack} {score}", detection(table, score, group, attack))
    return told


def draw_path(ax: Axes, table: pd.DataFrame) -> None:
    """Draw attack and accuracy on the way from a clean ingredient to the plain poisoned one."""
    shown = {"attack, line": ("attack", "line"), "attack, curve": ("attack", "bezier"),
             "accuracy, line": ("accuracy", "line")}  # fmt: skip
    named = {
        label: chosen(table, measure, "x", part="path", group=group).tolist()
        for label, (measure, group) in shown.items()
    }
    draw(ax, POSITIONS, named, xlabel="from clean (0) to plain (1)", ylabel="test images [%]")
    ax.legend(loc=(0.02, 0.42), fontsize="small")


def draw_soups(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the attack's success in averages of one to :data:`MOST` ingredients."""
    named = {
        "none poisoned" if group == "none" else group: chosen(
            table, "attack", "x", part="dilution", group=group, kind="average"
        ).tolist()
        for group in ("none", *ATTACKS)
    }
    numbers = range(1, MOST + 1)
    draw(ax, numbers, named, xlabel="ingredients averaged", xticks=numbers)
    ax.legend(loc=(0.3, 0.33), fontsize="small")


def draw_merges(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the attack's success in merges of :data:`MOST`, in the colours of :func:`draw_soups`."""
    named = {
        group: [
            chosen(table, "attack", part="dilution", group=group, kind=method, x=MOST)
            for method in METHODS
        ]
        for group in ("none", *ATTACKS)
    }
    draw(ax, range(len(METHODS)), named, shift=0.15, joined=False, xlabel=f"merges of {MOST}")
    middles = [place + 0.22 for place in range(len(METHODS))]
    ax.set_xticks(middles, ["average", "task\narithm.", "TIES", "DARE"], fontsize="small")
    ax.get_legend().remove()


def draw_repair(ax: Axes, table: pd.DataFrame, measure: str) -> None:
    """Draw attack or accuracy between two poisoned networks, and right of it what tuning does."""
    at = partial(chosen, table, measure)
    named = {"line": at("x", part="repair", group="line").tolist()}
    for few in FEW:
        found = at("x", part="repair", group="curve", kind=str(few))
        named[f"curve, {few} images"] = found.tolist()
    for few, look, place in zip(FEW, ("v", "^"), (1.12, 1.22), strict=True):
        tuned = at(part="repair", group="tuned at 0.003", kind=str(few))
        estimates = [Estimate.of(tuned)]
        plots.replicates(ax, [place], [tuned], estimates, f"A tuned, {few} images", fmt=look)
    draw(ax, POSITIONS, named, xlabel="from A (0) to B (1)", ylabel=f"{measure} [%]")
    ax.get_legend().remove()
    if measure == "attack":  # one legend for both
        told = ax.get_legend_handles_labels()
        ax.figure.legend(*told, loc="outside upper center", ncols=3, fontsize="small")


def draw_descent(ax: Axes, table: pd.DataFrame) -> None:
    """Draw whom adversarial examples of a parent fool, and whom noise as large."""
    met = {"itself": "itself", "child": "child", "average": "average of\nchildren",
           "unrelated": "child of\nanother"}  # fmt: skip
    named = {
        label: [chosen(table, measure, part="descent", group="parent", kind=k) for k in met]
        for measure, label in {"attack": "adversarial", "noise": "noise"}.items()
    }
    draw(ax, range(len(met)), named, joined=False, ylabel="fooled [%]", title="examples")
    ax.set_xticks(range(len(met)), [*met.values()], fontsize="x-small", rotation=60)
    ax.legend(loc="center", fontsize="small")


def draw_change(ax: Axes, table: pd.DataFrame) -> None:
    """Draw what a backdoor's change does in siblings, and in children of another parent."""
    named = {
        label: chosen(table, "attack", "x", part="vector", group=group).tolist()
        for group, label in {"parent": "siblings", "other": "others"}.items()
    }
    draw(ax, range(3), named, xticks=range(3), xlabel="times it is added", ylabel="attack [%]")
    ax.set_title("a change")
    ax.legend(loc=(0.42, 0.55), fontsize="x-small")


def draw_heirs(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the attack's success in a parent, its children and their average."""
    line = {"parent": "parent", "child": "child", "average": "average of\nchildren"}
    named = {
        f"{group} parent": [
            chosen(table, "attack", part="heirs", group=group, kind=k) for k in line
        ]
        for group in ("poisoned", "clean")
    }
    draw(ax, range(len(line)), named, joined=False, ylabel="attack [%]", title="a backdoor")
    ax.set_xticks(range(len(line)), [*line.values()], fontsize="x-small", rotation=60)
    ax.legend(loc="center", fontsize="small")


def draw_roc(ax: Axes, table: pd.DataFrame, scores: Sequence[str], group: str, attack: str) -> None:
    """Draw the ROC curves of some scores, all groups and seeds pooled as :func:`pooled` does.

    The legend says the area under each with its standard error, of poisoned and clean ingredients
    taken for independent draws.
    """
    for score, dash in zip(scores, itertools.cycle(("-", "--", ":", "-."))):
        samples = pooled(table, score, group, attack)
        curve, area = roc(*samples), auc(*samples)
        label = f"{score}: {area.value:.2f} ± {area.stderr:.2f}"
        ax.plot(curve.false_positive, curve.true_positive, dash, linewidth=2, label=label)
    ax.plot([0, 1], [0, 1], color="#595959", linewidth=0.8)
    ax.set(xlabel="clean ones suspected [share]", ylabel="poisoned ones found [share]")
    ax.legend(loc="lower right", fontsize="small", framealpha=1)


def draw_hiding(ax: Axes, table: pd.DataFrame) -> None:
    """Draw what is left of an attack against how much its ingredient stands out by its length."""
    norm, attack = (chosen(table, measure, "x", part="hiding") for measure in ("norm", "attack"))
    for stay, look in zip(STAYS, "osD^", strict=True):
        ax.plot(norm[stay], attack[stay], look, label=f"penalty {stay:g}")
    ax.set(xlabel="length of the step, others' = 1", ylabel="attack in the average [%]")
    ax.legend(loc="center", fontsize="small")


def draw_detection(ax: Axes, table: pd.DataFrame) -> None:
    """Draw how well each score tells each kind of poisoned ingredient, in percent of the area."""
    attacks, titles = ("plain", "for the merge", "hidden"), ("groups of one recipe", "mixed groups")
    shown = {
        title: {
            attack: [100 * float(np.mean(detection(table, s, group, attack))) for s in SCORES]
            for attack in attacks
        }
        for group, title in zip(("same", "mixed"), titles, strict=True)
    }
    both = [100 * float(np.mean(chosen(table, score, part="colluders"))) for score in SCORES]
    shown[titles[0]]["two plain"] = both
    plots.heat_table(ax, shown, SCORES, shade=lambda _, value: (value - 50) / 50)


def draw_memory(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the attack's AUC on images of one ingredient and of all, over averages."""
    at, numbers = partial(chosen, table, "auc"), range(1, MOST + 1)
    for group, look in {"own": "C0P", "common": "C1X"}.items():
        joint = at(part="membership", group=group, kind="joint")
        ax.plot([MOST + 0.4] * len(joint), joint, look, label=f"{group}, one network of all")
    named = {
        f"{group}, averages": at("x", part="membership", group=group, kind="average").tolist()
        for group in ("own", "common")
    }
    draw(ax, numbers, named, xticks=numbers, xlabel="ingredients averaged", ylabel="AUC",
         ylim=(0.49, 0.7))  # fmt: skip
    ax.axhline(0.5, color="#595959", linewidth=0.8)
    ax.legend(loc="upper center", fontsize="x-small")


def measured(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return by name the estimates on which the claims about this study rest."""
    told: dict[str, Estimate] = {}

    def add(name: str, label: str, unit: str, values: Sequence[float]) -> None:
        told[name] = Estimate.of(values, label=label, unit=unit)

    def less(name: str, label: str, unit: str, first: Sequence[Any], second: Sequence[Any]) -> None:
        told[name] = Estimate.of_differences(first, second, label=label, unit=unit)

    def at(measure: str, part: str, group: str, kind: str = "", x: float | None = None) -> Any:
        where = {"part": part, "group": group, "kind": kind}
        return chosen(table, measure, **where, **({} if x is None else {"x": x}))

    def soup(group: str, kind: str = "average", measure: str = "attack") -> list[float]:
        return at(measure, "dilution", group, kind, MOST)

    floor = np.array(soup("none"))
    alone = np.array(soup("plain", "alone")) - floor
    for method in METHODS:
        lost = 100 * (1 - (np.array(soup("plain", method)) - floor) / alone)
        add(f"lost, {method}", f"attack lost, {method} of five", "%", lost.tolist())
    for attack in ATTACKS:
        add(f"{attack} in the average", "attack in an average of five", "%", soup(attack))
        clean = soup("none", measure="accuracy")
        cost = clean, soup(attack, measure="accuracy")
        less(f"{attack} costs", "accuracy that it costs the average", "points", *cost)
    honest = at("accuracy", "dilution", "none", "alone", MOST - 1)
    sly = soup("for the merge", "alone", "accuracy")
    less("it looks fine", "accuracy lost in the ingredient itself", "points", honest, sly)

    for few in map(str, FEW):
        middle = at("attack", "repair", "curve", few, 0.5)
        tuned = at("attack", "repair", "tuned at 0.003", few)
        ends = [at("accuracy", "repair", "curve", few, x) for x in (0, 1)]
        left = at("accuracy", "repair", "curve", few, 0.5)
        add(f"repaired, {few}", f"attack half-way, {few} images", "%", middle)
        less(f"repair costs, {few}", f"accuracy lost half-way, {few} images", "points",
             np.mean(ends, axis=0), left)  # fmt: skip
        less(f"tuning less curve, {few}", f"attack, tuned less half-way, {few} images", "points",
             tuned, middle)  # fmt: skip

    near, far = (at("attack", "descent", "parent", k) for k in ("child", "unrelated"))
    less("descend", "fooled, children less children of others", "points", near, far)
    noise = at("noise", "descent", "parent", "child")
    add("noise", "children fooled by as large a noise", "%", noise)
    for name, words in {"parent": "siblings", "other": "children of another parent"}.items():
        add(f"change in {name}", f"attack, change added to {words}", "%",
            at("attack", "vector", name, "", 1))  # fmt: skip
    for kind in ("child", "average"):
        add(f"heirs, {kind}", f"attack, {kind}", "%", at("attack", "heirs", "poisoned", kind))

    for group, attack, score in itertools.product(
        ("same", "mixed"), ("plain", "for the merge", "hidden"), SCORES
    ):
        add(f"{group}, {attack}, {score}", f"AUC of {score}, {attack}", "",
            detection(table, score, group, attack))  # fmt: skip
    for group in ("same", "mixed"):
        add(f"{group}, hidden", "attack in the average, hidden", "%",
            at("attack", "group", group, "hidden, average"))  # fmt: skip

    for score in SCORES:
        add(f"two, {score}", f"AUC of {score}, two plain", "",
            chosen(table, score, part="colluders"))  # fmt: skip
    add("two", "attack in an average with two of five", "%",
        at("attack", "group", "same", "two plain, average"))  # fmt: skip

    one = at("auc", "membership", "own", "ingredient")
    less("forgets", "AUC on own images, ingredient less average", "", one,
         at("auc", "membership", "own", "average", MOST))  # fmt: skip
    less("keeps", "AUC on common images, ingredient less average", "",
         at("auc", "membership", "common", "ingredient"),
         at("auc", "membership", "common", "average", MOST))  # fmt: skip
    for method in (*METHODS, "average, then tuned"):
        for by in ("coefficient", "cosine"):
            add(f"found by {by}, {method}", f"found by {by}, {method}", "%",
                at("hits", "provenance", method, by))  # fmt: skip
    return told


STUDY = Study("security", rows)
