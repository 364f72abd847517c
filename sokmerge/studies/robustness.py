r"""Robustness: shifts, bounded adversaries, calibration, and whether what was removed is gone.

All networks are perceptrons of the family ``broad``, and what is trained from them.

* ``shift``: the line from a parent to a network fine-tuned from it, :data:`LINES`. At each
  coefficient: accuracy on what was tuned on (``own``), on clean images, on the *other* corruptions
  at each severity, on turned images, and with a cue that is reversed.
* ``attack``: what several attacks leave of the accuracy of a network that was trained as usual and
  of one that was trained against an adversary; and PGD by the size of the change.
* ``barrier``: from the one to the other, and to a usual network of another start, on straight lines
  and on Bezier curves: loss and accuracy, clean and under attack.
* ``seasoned``: the line from a network trained against a bounded adversary to one trained on a
  corruption, and the average of three.
* ``flat``: one start, trained by SGD, by SGD with averaging (SWA), and by SAM.
* ``calibration``: the networks of a soup, the soup, and the ensemble.
* ``unlearning``: each class in turn is taken from ``broad`` by negation of its task vector; then
  all ten classes are taught, to that network and to one that never saw the class.

Accuracies and calibration errors are in percent, losses in nats. ``epsilon`` is a change of
intensity, of which black and white are 1 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, expected_calibration_error
from sokmerge.probe.adversarial import Adversarial, fgsm, pgd
from sokmerge.probe.connectivity import Curve, fit_curve
from sokmerge.reader import Claim, Estimate, glue, show_claim
from sokmerge.reader.estimates import Test
from sokmerge.studies.determinism import chosen, draw
from sokmerge.studies.study import Study
from sokmerge.testbed import data, forks, models, training, zoo
from sokmerge.testbed.hardening import Hardened, SharpnessAware, harden
from sokmerge.testbed.loop import Run, one_thread
from sokmerge.testbed.recipes import CORRUPTIONS, Recipe, master_seed
from sokmerge.testbed.tasks import ClassSplit, Corrupted, PatchCue, Rotated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ALPHAS", "ATTACKS", "BOUNDS", "EPSILON", "EPSILONS", "GENTLE", "KINDS", "LINES", "NEGATIONS",
    "POSITIONS", "RELEARN", "SEVERITIES", "STUDY", "Under", "barrier", "bow", "card",
    "draw_attacks", "estimates", "peak", "rows",
]  # fmt: skip

#: Black and white, in the unit of the inputs, between which an adversary has to stay.
BOUNDS = (data.BLACK, data.WHITE)

#: How much an adversary may change the intensity of a pixel; of networks that were not trained
#: against one; and in a sweep.
EPSILON = 0.1
GENTLE = 0.025
EPSILONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)

#: Images on which accuracy is measured, and on which attacks are.
IMAGES, ATTACKED = 1_000, 500

KINDS = ("gaussian_noise", "gaussian_blur", "contrast", "brightness")
SEVERITIES = (1, 2, 3, 4, 5)

#: Parents and what was fine-tuned from them: a corruption each; clean images, from a network of
#: four corruptions; and images with a cue.
LINES = {
    **dict.fromkeys(CORRUPTIONS, "broad"),
    "clean": "joint-tasks",
    "cued": "broad",
}
ALPHAS = tuple(round(float(alpha), 1) for alpha in np.linspace(0, 1, 11))

#: The attacks of the table, in the order of their cost.
ATTACKS = (
    "none", "noise", "noise, best of 20", "transfer", "FGSM", "PGD-20", "PGD-20, 5 starts",
    "PGD-100", "PGD-20, all of the range",
)  # fmt: skip

#: Positions on a way between two networks, and steps in which a curve is trained.
POSITIONS = tuple(round(float(t), 3) for t in np.linspace(0, 1, 9))
STEPS = 300

#: Images, passes and attack steps of adversarial training.
LIMIT, EPOCHS, CLIMB = 4_000, 10, 5

#: SGD: rate, images and passes; points of SWA's average; radius of SAM.
RATE, FLAT_LIMIT, FLAT_EPOCHS, AVERAGED, RADIUS = 0.05, 6_000, 10, 5, 0.05

#: Multiples of a task vector that are taken away, and steps of relearning.
NEGATIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
RELEARN = 60

#: A class counts as forgotten below this accuracy, and as back above this share of its first one.
FORGOTTEN, BACK = 5.0, 0.8

#: What stands on a claim's card for an estimate of :func:`estimates`.
LABELS = {
    "half way, clean": "half way less the better end under shift, tuned on clean images",
    "half way, corruptions": "half way less the better end under shift, tuned on a corruption",
    "home, clean": "half way less child where it was tuned, on clean images",
    "home, corruptions": "half way less child where it was tuned, on a corruption",
    "cue as trained": "half way less the mean of the ends, cue as trained",
    "cue reversed": "half way less the mean of the ends, cue reversed",
    "PGD-20 less PGD-100": "accuracy left by PGD-20 less by PGD-100",
    "PGD-20 less 5 starts": "accuracy left by PGD-20 less by five starts of it",
    "FGSM less PGD-20": "accuracy left by FGSM less by PGD-20",
    "transfer less PGD-20": "accuracy left by transfer less by PGD-20",
    "noise less PGD-20": "accuracy left by the best of 20 draws of noise less by PGD-20",
    "clean barrier, curve": "barrier of the usual loss on the curve",
    "clean barrier, two starts": "barrier of the usual loss on the curve, two starts",
    "robust barrier, curve": "barrier of the robust loss on the curve",
    "robust barrier, two starts": "barrier of the robust loss on the curve, two starts",
    "robust barrier, line": "barrier of the robust loss on the line",
    "robust barrier, robust curve": "barrier of the robust loss on the curve trained under attack",
    "soup, attacked": "soup half way less the mean of its ends, under attack",
    "soup, corrupted": "soup half way less the mean of its ends, on the corruption",
    "SWA less SGD": "accuracy under corruptions, SWA less SGD",
    "SAM less SGD": "accuracy under corruptions, SAM less SGD",
    "ingredients less ensemble": "calibration error, members less ensemble",
    "ingredients less ensemble, severity 5": "the same at severity 5",
    "class left": "accuracy left on the class",
    "others less before": "accuracy on the other classes less before",
    "steps saved": "steps to learn the class, never seen less taken away",
}

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    own = 1000 * master_seed() + seed
    parent = zoo.load(zoo.family("broad")[seed])[1]
    usual, hard = _trained(parent, own), _hardened(parent, own)
    other = _trained(harden(Run, _recipe(5_000_000 + own, limit=2_000, epochs=20)), own)
    yield from _shift(seed, parent, own)
    yield from _attacks(usual, hard, other)
    yield from _barriers(usual, hard, other, own)
    yield from _seasoned(seed, hard)
    yield from _flat(own)
    yield from _calibration(seed)
    yield from _unlearning(parent, own)


def row(part: str, group: str, kind: str, x: float, measure: str, value: float) -> Row:
    """A row of the table; columns that do not apply hold an empty text or -1."""
    said = {"part": part, "group": group, "kind": kind, "x": x, "measure": measure}
    return {**said, "value": float(f"{float(value):.5g}")}


def barrier(heights: pd.Series) -> list[float]:
    r"""Return for each seed the barrier of the heights along a way.

    .. math:: \max_t\ h(t) - \bigl[(1-t)\,h(0) + t\,h(1)\bigr]

    Args:
        heights: a list of a number for each seed at each position, ascending from 0 to 1; see
            :func:`sokmerge.studies.determinism.chosen`.

    >>> barrier(pd.Series([[1.0, 1.0], [3.0, 1.0], [2.0, 3.0]], index=[0.0, 0.5, 1.0]))
    [1.5, 0.0]
    """
    t, h = heights.index.to_numpy(float)[:, None], np.array(heights.to_list())
    return (h - (1 - t) * h[:1] - t * h[-1:]).max(0).tolist()


def peak(found: pd.Series) -> np.ndarray:
    """Return for each seed how much more is half way than at the greater of the two ends.

    >>> peak(pd.Series([[1.0, 2.0], [3.0, 2.0], [2.0, 4.0]], index=[0.0, 0.5, 1.0]))
    array([ 1., -2.])
    """
    start, middle, end = (np.array(found[alpha]) for alpha in (0.0, 0.5, 1.0))
    return middle - np.maximum(start, end)


def bow(found: pd.Series) -> np.ndarray:
    """Return for each seed how much more is half way than the mean of the two ends.

    >>> bow(pd.Series([[1.0, 2.0], [3.0, 2.0], [2.0, 4.0]], index=[0.0, 0.5, 1.0]))
    array([ 1.5, -1. ])
    """
    start, middle, end = (np.array(found[alpha]) for alpha in (0.0, 0.5, 1.0))
    return middle - (start + end) / 2


def estimates(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return by name what the claims are decided by, from the table of results.

    "Half way" is half way less the better of both ends under shift, "home" half way less the child
    on what was tuned on. "Steps saved" is how many steps fewer relearning takes.
    """
    of = partial(chosen, table)
    severe = table[table.group.str.startswith("severity")]
    single = table[table.kind.str.startswith("ingredient")]
    corruptions = [*CORRUPTIONS]

    def best(kind: str) -> np.ndarray:
        return peak(chosen(severe, "accuracy", "x", kind=kind))

    def home(kind: str) -> np.ndarray:
        return np.subtract(*of("accuracy", "x", part="shift", kind=kind, group="own")[[0.5, 1.0]])

    def cue(group: str) -> np.ndarray:
        return bow(of("accuracy", "x", part="shift", kind="cued", group=group))

    def left(attack: str) -> np.ndarray:
        return np.array(of("accuracy", part="attack", kind="hardened", group=attack))

    def wall(group: str, kind: str, measure: str = "robust loss") -> list[float]:
        return barrier(of(measure, "x", part="barrier", group=group, kind=kind))

    def soup(measure: str = "") -> np.ndarray:
        spices = ("blurred", "faded")
        found = [of(measure or kind, "x", part="seasoned", kind=kind) for kind in spices]
        return np.mean([*map(bow, found)], 0)

    def sturdy(kind: str) -> np.ndarray:
        spoiled = table[(table.part == "flat") & (table.x > 0)]
        return np.subtract(*(chosen(spoiled, "accuracy", kind=k) for k in (kind, "SGD")))

    def error(severity: int, kind: str) -> np.ndarray:
        how = {"measure": "calibration error", "x": severity}
        return np.subtract(chosen(single, **how), of(kind=kind, **how))

    def taught(measure: str, kind: str) -> np.ndarray:
        return np.array(of(measure, part="unlearning", kind=kind, x=-1))

    kept = np.array(of("retain", part="unlearning", kind="negation", x=0.0))
    values = {
        "half way, clean": best("clean"),
        "half way, corruptions": np.mean([*map(best, corruptions)], 0),
        "home, clean": home("clean"),
        "home, corruptions": np.mean([*map(home, corruptions)], 0),
        "cue as trained": cue("own"),
        "cue reversed": cue("reversed"),
        "PGD-20 less PGD-100": left("PGD-20") - left("PGD-100"),
        "PGD-20 less 5 starts": left("PGD-20") - left("PGD-20, 5 starts"),
        "FGSM less PGD-20": left("FGSM") - left("PGD-20"),
        "transfer less PGD-20": left("transfer") - left("PGD-20"),
        "noise less PGD-20": left("noise, best of 20") - left("PGD-20"),
        "left by all of the range": left("PGD-20, all of the range"),
        "clean barrier, curve": wall("one start", "curve", "clean loss"),
        "clean barrier, two starts": wall("two starts", "curve", "clean loss"),
        "robust barrier, curve": wall("one start", "curve"),
        "robust barrier, two starts": wall("two starts", "curve"),
        "robust barrier, line": wall("one start", "line"),
        "robust barrier, robust curve": wall("one start", "robust curve"),
        "soup, attacked": soup("attacked"),
        "soup, corrupted": soup(),
        "SWA less SGD": sturdy("SWA"),
        "SAM less SGD": sturdy("SAM"),
        "ingredients less ensemble": error(0, "ensemble"),
        "ingredients less ensemble, severity 5": error(5, "ensemble"),
        "ingredients less soup": error(0, "soup"),
        "ingredients less soup, severity 5": error(5, "soup"),
        "class left": taught("forget", "negation"),
        "others less before": taught("retain", "negation") - kept,
        "steps saved": taught("steps", "never seen") - taught("steps", "negation"),
        "steps, taken away": taught("steps", "negation"),
        "steps, never seen": taught("steps", "never seen"),
    }
    units = {"clean barrier": "nats", "robust barrier": "nats", "steps": "steps"}
    found = {}
    for name, samples in values.items():
        unit = next((u for start, u in units.items() if name.startswith(start)), "points")
        found[name] = Estimate.of([*samples], label=LABELS.get(name, name), unit=unit)
    return found


def draw_attacks(left: Axes, right: Axes, table: pd.DataFrame) -> None:
    """Draw what each attack leaves, a dot for each network, and what PGD leaves by its size.

    Args:
        left: takes the attacks.
        right: takes the sizes.
        table: what :func:`sokmerge.studies.results` gives.
    """
    for kind, mark in (("usual", "o"), ("hardened", "s")):
        colour = {"usual": "C0"}.get(kind, "C1")
        for place, attack in enumerate(ATTACKS):
            values = chosen(table, "accuracy", part="attack", kind=kind, group=attack)
            left.plot(values, [place] * len(values), mark, color=colour, alpha=0.5)
        found = chosen(table, "accuracy", "x", part="attack", kind=kind, group="by size")
        draw(right, found, kind, range(len(found)), marker=mark, color=colour)
    left.set_yticks(range(len(ATTACKS)), ATTACKS, fontsize="small")
    left.set(ylim=(len(ATTACKS) - 0.5, -0.5), xlim=(-3, 100), xlabel="accuracy left [%]")
    right.set_xticks(range(len(EPSILONS)), EPSILONS, fontsize="small")
    right.set(xlabel=r"$\varepsilon$, PGD-20", ylim=(-3, 100))


def card(names: str, statement: str, reported: str, *tests: Test) -> None:
    """Show a claim whose prediction is what its tests say, and keep its estimates for the text.

    Args:
        names: its source, its id and its figure, with a space between them.
        statement: the observation.
        reported: what its source showed.
        *tests: what decides; the n-th estimate is kept under ``id-n``.
    """
    source, id, figure = names.split()
    words = "; ".join(map(str, tests))
    show_claim(Claim(id, statement, source, reported, words, tests, figure))
    for number, test in enumerate(tests):
        glue(f"{id}-{number}", test.estimate)


class Under:
    """Attacks of one size on some images, for several networks.

    Args:
        epsilon: how much the intensity may change.
        inputs: the images; by default test images.
        targets: their classes.
    """

    def __init__(
        self, epsilon: float, inputs: Tensor | None = None, targets: Tensor | None = None
    ) -> None:
        if inputs is None or targets is None:
            inputs, targets = data.fashion("test", limit=ATTACKED)
        self.images = (inputs, targets)
        self.network = Network(models.build(_arch()))
        self.how = {"epsilon": epsilon / data.STD, "bounds": BOUNDS}

    def fgsm(self, point: Params) -> Adversarial:
        """One step."""
        return fgsm(self.network, point, *self.images, **self.how)

    def pgd(self, point: Params, steps: int = 20, restarts: int = 1) -> Adversarial:
        """Many steps, or with none of them noise."""
        how = {"steps": steps, "restarts": restarts, "key": "attack", **self.how}
        return pgd(self.network, point, *self.images, **how)


def _arch() -> models.Architecture:
    return zoo.family("broad")[0].arch


def _recipe(own: int, order: int = 0, **how: Any) -> Recipe:
    """A run of this study; numbers of the order of one seed are not those of another."""
    return Recipe("robustness", _arch(), own, 10_000 * (own + 1) + order, **how)


def _trained(parent: Params, own: int) -> dict[str, Tensor]:
    """Fine-tuned as usual, on the images of adversarial training."""
    return training.fine_tune(_recipe(own, 1, limit=LIMIT, epochs=EPOCHS), parent)


def _hardened(parent: Params, own: int) -> dict[str, Tensor]:
    """Fine-tuned against an adversary, on the same images in the same order."""
    network = Network(models.build(_arch()))
    how = {"epsilon": EPSILON / data.STD, "bounds": BOUNDS, "steps": CLIMB}

    def attack(point: Params, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        return pgd(network, point, inputs, targets, key=f"{own}:{step}", **how).inputs

    recipe = _recipe(own, 1, limit=LIMIT, epochs=EPOCHS)
    return harden(Hardened, recipe, parent, attack=attack)


def _accuracy(inputs: Tensor, targets: Tensor) -> Callable[[Params], float]:
    """Return the accuracy on some images as a function of parameters, in percent."""
    risk = EmpiricalRisk(models.build(_arch()), inputs, targets)
    return lambda point: 100 * float(params.host(1 - risk.per_example(point)[1].mean()))


# --- shifts ---------------------------------------------------------------------------------


def _shift(seed: int, parent: Params, own: int) -> Iterator[Row]:
    images = data.fashion("test", limit=IMAGES)
    spoiled = {
        (kind, severity): _accuracy(*Corrupted(kind, severity, seed=1)(*images))
        for kind in KINDS
        for severity in SEVERITIES
    }
    clean = _accuracy(*images)
    turned = {degrees: _accuracy(*Rotated(degrees)(*images)) for degrees in (15.0, 30.0)}
    cued = [_accuracy(*PatchCue(1.0, shift)(*images)) for shift in (0, 1)]
    tuned = {name: zoo.load(zoo.family(name)[seed])[1] for name in CORRUPTIONS}
    starts = dict.fromkeys(LINES, parent)
    starts["clean"] = zoo.load(zoo.family(LINES["clean"])[seed])[1]
    how = {"limit": 6_000, "epochs": 5}
    tuned["clean"] = training.fine_tune(_recipe(own, 2, **how), starts["clean"])
    tuned["cued"] = training.fine_tune(_recipe(own, 3, tasks=(PatchCue(1.0),), **how), parent)
    for name, end in tuned.items():
        kind = CORRUPTIONS[name].kind if name in CORRUPTIONS else None
        here = {"clean": clean}
        if name == "cued":
            here |= {"own": cued[0], "reversed": cued[1]}
        else:
            here["own"] = spoiled[kind, 5] if kind else clean
            here |= {f"turned by {degrees:.0f}": found for degrees, found in turned.items()}
        for alpha in ALPHAS:
            point = merge.wise_ft([end], base=starts[name], alpha=alpha)
            for group, found in here.items():
                yield row("shift", group, name, alpha, "accuracy", found(point))
            for severity in SEVERITIES if name != "cued" else ():
                others = [spoiled[k, severity](point) for k in KINDS if k != kind]
                group = f"severity {severity}"
                yield row("shift", group, name, alpha, "accuracy", float(np.mean(others)))


# --- adversaries ----------------------------------------------------------------------------


def _attacks(usual: Params, hard: Params, other: Params) -> Iterator[Row]:
    under, everything = Under(EPSILON), Under(1.0)
    # What was made to fool a network of another start, and is shown to this one.
    moved = _accuracy(under.pgd(other).inputs, under.images[1])
    plain = _accuracy(*under.images)
    for kind, point in {"usual": usual, "hardened": hard}.items():
        left = {
            "none": plain(point),
            "noise": 100 * under.pgd(point, 0).accuracy,
            "noise, best of 20": 100 * under.pgd(point, 0, 20).accuracy,
            "transfer": moved(point),
            "FGSM": 100 * under.fgsm(point).accuracy,
            "PGD-20": 100 * under.pgd(point).accuracy,
            "PGD-20, 5 starts": 100 * under.pgd(point, restarts=5).accuracy,
            "PGD-100": 100 * under.pgd(point, 100).accuracy,
            "PGD-20, all of the range": 100 * everything.pgd(point).accuracy,
        }
        for attack in ATTACKS:
            yield row("attack", attack, kind, EPSILON, "accuracy", left[attack])
        for epsilon in EPSILONS:
            found = 100 * Under(epsilon).pgd(point).accuracy
            yield row("attack", "by size", kind, epsilon, "accuracy", found)


def _barriers(usual: Params, hard: Params, other: Params, own: int) -> Iterator[Row]:
    under, module = Under(EPSILON), models.build(_arch())
    test = EmpiricalRisk(module, *data.fashion("test", limit=IMAGES))
    inputs, targets = data.fashion("train", limit=LIMIT)
    network = Network(module)

    def loss(point: Params, step: int, attacked: bool = False) -> Tensor:
        drawn = torch.randint(LIMIT, (128,), generator=params.stream(f"curve:{own}:{step}"))
        x, y = inputs[drawn], targets[drawn]
        if attacked:
            here = {name: tensor.detach() for name, tensor in point.items()}
            how = {"steps": CLIMB, "key": f"curve:{own}:{step}", **under.how}
            x = pgd(network, here, x, y, **how).inputs
        return F.cross_entropy(network(point, x), y)

    def robust(point: Params, step: int) -> Tensor:
        return loss(point, step, attacked=True)

    how = {"steps": STEPS, "lr": 1e-2, "seed": own}
    ways = {
        ("one start", "line"): Curve((usual, hard)),
        ("one start", "curve"): fit_curve(usual, hard, loss=loss, **how),
        ("one start", "robust curve"): fit_curve(usual, hard, loss=robust, **how),
        ("two starts", "line"): Curve((other, hard)),
        ("two starts", "curve"): fit_curve(other, hard, loss=loss, **how),
    }
    for (group, kind), way in ways.items():
        for t in POSITIONS:
            point = way(t)
            clean, found = test(point), under.pgd(point)
            for measure, value in (
                ("clean loss", clean.loss),
                ("clean accuracy", 100 * clean.accuracy),
                ("robust loss", float(params.host(found.loss.mean()))),
                ("robust accuracy", 100 * found.accuracy),
            ):
                yield row("barrier", group, kind, t, measure, value)


def _seasoned(seed: int, hard: Params) -> Iterator[Row]:
    images = data.fashion("test", limit=IMAGES)
    plain, under = _accuracy(*images), Under(EPSILON)
    spices = {name: zoo.load(zoo.family(name)[seed])[1] for name in ("blurred", "faded")}
    looks = {name: _accuracy(*replace(CORRUPTIONS[name], seed=1)(*images)) for name in spices}

    def measured(point: Params) -> dict[str, float]:
        here = {"clean": plain(point), "attacked": 100 * under.pgd(point).accuracy}
        return here | {name: look(point) for name, look in looks.items()}

    for name, spice in spices.items():
        for alpha in ALPHAS:
            for measure, value in measured(params.lerp(hard, spice, alpha)).items():
                yield row("seasoned", "two", name, alpha, measure, value)
    for measure, value in measured(merge.average([hard, *spices.values()])).items():
        yield row("seasoned", "three", "all", -1, measure, value)


# --- flat minima ----------------------------------------------------------------------------


def _flat(own: int) -> Iterator[Row]:
    images = data.fashion("test", limit=IMAGES)
    looks = {
        severity: [_accuracy(*Corrupted(kind, severity, seed=1)(*images)) for kind in KINDS]
        for severity in SEVERITIES
    }
    looks[0] = [_accuracy(*images)]
    how = {"optimizer": "sgd", "lr": RATE, "limit": FLAT_LIMIT, "batch": 64}
    recipe = _recipe(own, 4, epochs=FLAT_EPOCHS, **how)
    along, epoch = replace(recipe, schedule="constant"), -(-FLAT_LIMIT // 64)
    ends = [epoch * k for k in range(FLAT_EPOCHS - AVERAGED + 1, FLAT_EPOCHS + 1)]
    points = forks.trajectory(along, ends)
    ways = {
        "SGD": harden(Run, recipe),
        "SGD, twice as long": harden(Run, replace(recipe, epochs=2 * FLAT_EPOCHS)),
        "SWA": merge.swa(points[end].params for end in ends),
        "SAM": harden(SharpnessAware, recipe, radius=RADIUS),
    }
    under = Under(GENTLE)
    for kind, point in ways.items():
        for severity, each in looks.items():
            mean = float(np.mean([look(point) for look in each]))
            yield row("flat", "", kind, severity, "accuracy", mean)
        yield row("flat", "", kind, -1, "attacked", 100 * under.pgd(point).accuracy)


# --- calibration ----------------------------------------------------------------------------


def _calibration(seed: int) -> Iterator[Row]:
    module = models.build(_arch())
    images = data.fashion("test")
    soup = [zoo.load(zoo.family(f"tuned-{k}")[seed])[1] for k in range(4)]
    kinds = {f"ingredient {k}": [point] for k, point in enumerate(soup)}
    kinds |= {"soup": [merge.average(soup)], "ensemble": soup}
    for severity in (0, 3, 5):
        sets = [Corrupted(kind, severity, seed=1)(*images) for kind in KINDS] if severity else []
        for kind, points in kinds.items():
            predict = merge.probability_ensemble(points, module=module)
            for inputs, targets in sets or [images]:
                logits = predict(inputs)
                error = 100 * expected_calibration_error(logits.softmax(1), targets)
                right = 100 * float((logits.argmax(1) == targets).double().mean())
                for measure, value in (("calibration error", error), ("accuracy", right)):
                    yield row("calibration", "", kind, severity, measure, value)
                surer = 100 * float(logits.softmax(1).amax(1).mean()) - right
                yield row("calibration", "", kind, severity, "overconfidence", surer)


# --- unlearning -----------------------------------------------------------------------------


def _unlearning(parent: Params, own: int) -> Iterator[Row]:
    test, train = data.fashion("test", limit=IMAGES), data.fashion("train", limit=2_000)
    # Other images than the network was trained on, as many of each class.
    lesson = data.fashion("train", limit=200, seed=1)
    for c in range(10):
        others = ClassSplit(tuple(k for k in range(10) if k != c))
        forget, retain = (_accuracy(*task(*test)) for task in (ClassSplit((c,)), others))
        seen = _accuracy(*ClassSplit((c,))(*train))
        tune = _recipe(own, 10 + c, epochs=3, batch=32, lr=2e-4, schedule="constant")
        end = training.fine_tune(tune, parent, *ClassSplit((c,))(*train))
        taken = -1.0
        for scale in NEGATIONS:
            point = merge.task_arithmetic([end], base=parent, scale=scale, weights=[-1.0])
            yield row("unlearning", str(c), "negation", scale, "forget", forget(point))
            yield row("unlearning", str(c), "negation", scale, "retain", retain(point))
            if taken < 0 and seen(point) < FORGOTTEN:
                taken, removed = scale, point
        if taken < 0:
            taken, removed = NEGATIONS[-1], point
        yield row("unlearning", str(c), "negation", -1, "taken", taken)
        length = taken * params.distance(end, parent)
        noise = params.normal_like(parent, own + c)
        stray = params.combine([1.0, float(length / params.norm(noise))], [parent, noise])
        missing = harden(
            Run, _recipe(own, 30 + c, epochs=20), None, *others(*train)
        )  # as broad was trained, on the other classes
        for kind, point in {"negation": removed, "never seen": missing, "random": stray}.items():
            yield row("unlearning", str(c), kind, -1, "forget", forget(point))
            yield row("unlearning", str(c), kind, -1, "retain", retain(point))
        goal = BACK * forget(parent)
        for kind, point in {"negation": removed, "never seen": missing}.items():
            course = _relearned(point, lesson, own, (forget, retain))
            for step in range(0, RELEARN + 1, 5):
                yield row("unlearning", str(c), kind, step, "relearned", course[step][0])
                yield row("unlearning", str(c), kind, step, "kept", course[step][1])
            back = next((s for s, (found, _) in enumerate(course) if found >= goal), RELEARN)
            yield row("unlearning", str(c), kind, -1, "steps", back)


def _relearned(
    start: Params,
    lesson: tuple[Tensor, Tensor],
    own: int,
    looks: Sequence[Callable[[Params], float]],
) -> list[tuple[float, ...]]:
    """Teach all classes, and look before the first and after each step."""
    recipe = _recipe(own, 50, lr=1e-3, batch=50, schedule="constant", epochs=RELEARN // 4)
    module = models.build(recipe.arch)
    module.load_state_dict(dict(start))
    course = [tuple(look(start) for look in looks)]
    with one_thread():
        run = Run(module, *lesson, recipe)

        def after(step: int) -> None:
            course.append(tuple(look(params.of(module)) for look in looks))

        run.to(RELEARN, after)
    return course


STUDY = Study("robustness", rows)
