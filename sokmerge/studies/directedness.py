r"""Directedness: where gradients point, how many directions suffice, and what single ones do.

* ``shares``: a network of 26,506 parameters is trained by SGD on ``IMAGES`` images. At the steps
  :data:`MARKS` the 20 largest eigenpairs of the Hessian of the loss on all of them: the share of
  the gradient, of the gradients of batches, and of the way to the next mark, in the space of the
  first K; the overlap of two such spaces with K = 10; the eigenvalues.
* ``classes``: the same network on 1,000 images of 3, 5 and 10 classes, and its eigenvalues.
* ``projected``: from step ``FORK`` of that run on with the whole gradient, with its part in the
  top ten directions alone, without that part, or with its part in ten fixed random directions.
* ``dimension``: training in random subspaces, of that network and of a convolutional one.
* ``angles``: cosines and sign conflicts of task vectors, and of the same with shuffled entries.
* ``along``: the loss on each of four tasks along its task vector and along two nulls.
* ``meddling``: the disentanglement error of two tasks, for task vectors of the network, of its
  first-order model, and of a network that was fine-tuned from random weights.
* ``signs``: what a task vector keeps of its gain when signs of entries are turned round.
* ``election``: TIES with the elected signs and with those of joint training.
* ``features``: the features of an average against the average of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge import merge, params
from sokmerge.merge import task_vectors
from sokmerge.merge.task_vectors import disjoint_mean
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.probe import EmpiricalRisk, curvature
from sokmerge.probe import directedness as probes
from sokmerge.probe.connectivity import feature_connectivity
from sokmerge.studies.study import Study
from sokmerge.studies.task_vectors import SCALES, TASKS, Setting, images, nulls
from sokmerge.testbed import data, models, training
from sokmerge.testbed.recipes import master_seed
from sokmerge.testbed.tasks import ClassSplit

__all__ = ["CLASSES", "DIMS", "LENGTHS", "MARKS", "STUDY", "Run", "outliers", "rows"]

#: The network whose curvature is measured, and a convolutional one of a similar kind.
SMALL, CONVOLUTIONAL = models.MLP(32, depth=2), models.PlainCNN((8, 16, 32))

IMAGES, BATCH, RATE = 2000, 50, 0.05

#: Steps of SGD at which the top of the Hessian is found, and the one from which runs are forked.
MARKS = (0, 10, 30, 100, 200, 300, 500, 700)
FORK = 300

TOP, MOST = 10, 20
CLASSES = (3, 5, 10)

#: How long the forked runs are, after how many steps the top is found anew, and what is kept.
FORKED, REFRESH, EVERY = 200, 10, 40

#: Of each network that is trained in random subspaces the rate of Adam in the whole space, and the
#: epochs. On seed 7000 the MLP fitted better with 3e-3 than with 1e-3 at d = 100, at d = 1,000 and
#: in the whole space. Still higher rates (1e-2 for the MLP at d = 100, 3e-2 for the CNN at d = 300)
#: fitted better in the subspace; they are not used, so the dimensions found are upper bounds.
SUBSPACES = {"MLP": (SMALL, 3e-3, 20), "CNN": (CONVOLUTIONAL, 1e-2, 12)}

DIMS = (10, 30, 100, 300, 1000, 3000)
LENGTHS = (-2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
GRID = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
FLIPPED = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
PAIR = ("noisy", "bright")

Row = dict[str, Any]


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    run = Run(1000 * master_seed() + seed)
    yield from run.shares()
    yield from run.projected()
    yield from _classes(run.seed)
    yield from _dimension(run.seed)
    setting = Setting(seed)
    for part in (_angles, _along, _meddling, _signs, _election, _features):
        yield from part(setting)


def row(part: str, group: str, measure: str, x: float, y: float, value: float) -> Row:
    """A row of the table; of the two places x and y those that do not apply are -1."""
    said = {"part": part, "group": group, "measure": measure, "x": float(x), "y": float(y)}
    return {**said, "value": round(float(value), 6)}


def outliers(values: list[float], *, least: int = 2, most: int = 15) -> int:
    """Return how many eigenvalues stand apart from the rest, by the largest gap of their ratio.

    The first one often stands apart from all others and is not taken for the end of the outliers:
    the gap behind it does not count.

    Args:
        values: eigenvalues in descending order, positive.
        least, most: between which numbers of outliers the gap is looked for.

    >>> outliers([30.0, 9.0, 8.0, 7.0, 2.0, 1.9])
    4
    """
    last = min(most, len(values) - 1)
    return max(range(least, last + 1), key=lambda i: values[i - 1] / values[i])


# Gradients and curvature --------------------------------------------------------------------


class Run:
    """One network, trained by SGD on few images, and the top of its Hessian on the way.

    Args:
        seed: of the initial weights and of the order of images.
        arch: the network.
        inputs, targets: what it is trained on.
    """

    def __init__(
        self,
        seed: int,
        arch: models.Architecture = SMALL,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        self.seed = seed
        if inputs is None or targets is None:
            inputs, targets = data.fashion("train", limit=IMAGES)
        self.inputs, self.targets = inputs, targets
        self.module = models.build(arch, seed)
        self.network = Network(self.module)
        self.risk = EmpiricalRisk(self.module, inputs, targets)
        self.last: Tensor | None = None

    def loss(self, point: Params, step: int) -> Tensor:
        """Return the loss of the batch of a step, the images in a new order for each epoch."""
        epoch, at = divmod(step, len(self.targets) // BATCH)
        order = torch.randperm(len(self.targets), generator=params.stream(f"{self.seed}:{epoch}"))
        some = order[BATCH * at : BATCH * (at + 1)]
        return F.cross_entropy(self.network(point, self.inputs[some]), self.targets[some])

    def trained(self, at: tuple[int, ...], rate: float = RATE) -> dict[int, Params]:
        """Return the points at some steps of SGD."""
        start = params.of(self.module)
        found = probes.projected_descent(start, loss=self.loss, lr=rate, steps=max(at), at=at)
        return dict(zip(found.steps, found.points, strict=True))

    def top(self, point: Params, k: int = TOP, tol: float = 5e-2) -> Tensor:
        """Return the eigenvectors of the k largest eigenvalues, from where the last ones were."""
        operator = curvature.hessian(self.risk, point)
        start = None
        if self.last is not None:
            noise = operator.noise(1, "start")[0]
            start = self.last.sum(0) / self.last.sum(0).norm() + 0.3 * noise / noise.norm()
        self.last = curvature.eigenpairs(operator, k, tol=tol, start=start).vectors
        return self.last

    def shares(self) -> Iterator[Row]:
        """What lies in the top of the Hessian, and how long the top stays the same."""
        points = self.trained(MARKS)
        flat = {}
        tops: dict[int, Tensor] = {}
        for step, point in points.items():
            operator = curvature.hessian(self.risk, point)
            flat[step] = operator.layout.flatten(point)
            found = curvature.eigenpairs(operator, MOST, tol=1e-2)
            tops[step] = found.vectors
            value = self.risk(point)
            yield row("shares", "run", "loss", step, -1, value.loss)
            yield row("shares", "run", "error", step, -1, 100 * value.error)
            yield row("shares", "run", "not converged", step, -1, not found.converged)
            for i, eigenvalue in enumerate(found.values, 1):
                yield row("shares", "eigenvalue", "", step, i, eigenvalue)
            batches = torch.stack([self._gradient(point, step, k) for k in range(10)])
            for k in (1, 5, TOP, MOST):
                whole = probes.share(found.vectors, operator.gradient, [k]).values[0]
                yield row("shares", "gradient", "", step, k, whole)
                each = [probes.share(found.vectors, g, [k]).values[0] for g in batches]
                yield row("shares", "batch", "", step, k, sum(each) / len(each))
        for step, later in zip(MARKS[:-1], MARKS[1:], strict=True):
            way = flat[later] - flat[step]
            inside = probes.share(tops[step], way, [TOP]).values[0]
            yield row("shares", "way to the next mark", "", step, TOP, inside)
        for step in MARKS:
            for later in MARKS:
                common = probes.overlap(tops[step][:TOP], tops[later][:TOP])
                yield row("shares", "overlap", "", step, later, common)

    def _gradient(self, point: Params, step: int, k: int) -> Tensor:
        leaves = {name: t.clone().requires_grad_() for name, t in point.items()}
        found = torch.autograd.grad(self.loss(leaves, step + k), list(leaves.values()))
        return torch.cat([g.flatten() for g in found])

    def projected(self) -> Iterator[Row]:
        """Forked runs: with all of the gradient, and with a part of it."""
        start = self.trained((FORK,))[FORK]
        test = EmpiricalRisk(self.module, *data.fashion("test", limit=2000))
        size = sum(t.numel() for t in start.values())
        drawn = torch.randn(size, TOP, generator=params.stream(f"{self.seed}:ten"))
        fixed = torch.linalg.qr(drawn).Q.T.contiguous()
        ways: dict[str, dict[str, Any]] = {
            "all": {"keep": "all"},
            "top ten alone": {"keep": "inside", "subspace": self.top},
            "without the top ten": {"keep": "outside", "subspace": self.top},
            "ten random ones alone": {"keep": "inside", "subspace": lambda point: fixed},
        }
        for name, how in ways.items():
            self.last = None
            found = probes.projected_descent(
                start,
                loss=lambda point, step: self.loss(point, FORK + step),
                lr=RATE,
                steps=FORKED,
                refresh=FORKED if name == "ten random ones alone" else REFRESH,
                at=range(0, FORKED, EVERY),
                **how,
            )
            for step, point in zip(found.steps, found.points, strict=True):
                yield row("projected", name, "loss", step, -1, self.risk(point).loss)
                yield row("projected", name, "test error", step, -1, 100 * test(point).error)
            if len(found.shares):
                yield row("projected", name, "share inside", -1, -1, found.shares.mean())


def _classes(seed: int) -> Iterator[Row]:
    """The largest eigenvalues of networks for 3, 5 and 10 classes."""
    for count in CLASSES:
        kept = ClassSplit(tuple(range(count)))(*data.fashion("train"))
        inputs, targets = (tensor[:1000] for tensor in kept)
        run = Run(seed, replace(SMALL, classes=count), inputs, targets)
        for step, point in run.trained((100, 300)).items():
            operator = curvature.hessian(run.risk, point)
            found = curvature.eigenpairs(operator, MOST, tol=3e-2)
            for i, value in enumerate(found.values, 1):
                yield row("classes", f"{count}", "eigenvalue", step, i, value)
            yield row("classes", f"{count}", "outliers", step, -1, outliers([*found.values]))
            yield row("classes", f"{count}", "loss", step, -1, run.risk(point).loss)


# Random subspaces ---------------------------------------------------------------------------


def _dimension(seed: int) -> Iterator[Row]:
    """Accuracy on test images after training in random subspaces, and in the whole space."""
    seen, test = data.fashion("train", limit=3000), data.fashion("test", limit=2000)
    for name, (arch, rate, epochs) in SUBSPACES.items():
        module = models.build(arch, seed)
        size = sum(p.numel() for p in module.parameters())
        risk = EmpiricalRisk(module, *test)
        yield row("dimension", name, "parameters", -1, -1, size)
        for d in (*DIMS, 0):
            how = {"seed": seed, "rate": rate, "epochs": epochs}
            point = _in_subspace(Network(module), params.of(module), seen, d, **how)
            label = "accuracy" if d else "accuracy of the whole"
            yield row("dimension", name, label, d or -1, -1, 100 * risk(point).accuracy)


def _in_subspace(
    network: Network,
    base: Params,
    seen: tuple[Tensor, Tensor],
    d: int,
    *,
    seed: int,
    rate: float,
    epochs: int,
) -> Params:
    """Train by Adam in a random subspace of d dimensions, or with d = 0 in the whole space.

    A step of Adam moves each coordinate by about the rate. So that steps are as long in the
    subspace as in the whole space, the rate is larger there by the root of n over d.
    """
    inputs, targets = seen
    batch = 100
    if d:
        space = probes.random_subspace(base, d, seed=seed)
        z = torch.zeros(d, requires_grad=True)
        leaves, point = [z], lambda: space.point(z)
        rate *= (space.size / d) ** 0.5
    else:
        whole = {name: t.clone().requires_grad_() for name, t in base.items()}
        leaves, point = list(whole.values()), lambda: whole
    optimizer = torch.optim.Adam(leaves, lr=rate)
    steps = epochs * -(-len(targets) // batch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(targets), generator=params.stream(f"{seed}:{epoch}"))
        for some in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(network(point(), inputs[some]), targets[some]).backward()
            optimizer.step()
            scheduler.step()
    return {name: tensor.detach() for name, tensor in point().items()}


# Task vectors -------------------------------------------------------------------------------


def _angles(setting: Setting) -> Iterator[Row]:
    """Cosines of pairs, and conflicts of signs among the largest fifth of entries of all four."""
    own = task_vectors.task_vectors(setting.models, setting.base)
    seeds = [10 * setting.recipe("broad").seed + i for i in range(len(TASKS))]
    kinds = {"task vectors": own}
    for name in ("shuffled", "random"):
        kinds[name] = [nulls(tau, s)[name] for tau, s in zip(own, seeds, strict=True)]
    for name, vectors in kinds.items():
        ends = [params.add(setting.base, v) for v in vectors]
        found = merge.report(ends, merge.average(ends), base=setting.base, top=0.2)
        for i in range(len(TASKS)):
            yield row("angles", name, "length", i, -1, found.norms[i])
            for j in range(len(TASKS)):
                yield row("angles", name, "cosine", i, j, found.cosines[i, j])
                across = params.cosine(own[i], vectors[j])
                yield row("angles", name, "cosine with task vectors", i, j, across)
        yield row("angles", name, "conflict of the largest", -1, -1, 100 * found.largest.rate)
        yield row("angles", name, "conflict of all", -1, -1, 100 * found.signs.rate)


def _along(setting: Setting) -> Iterator[Row]:
    """The loss of each task along its vector, along another's, and along two nulls as long."""
    taus = dict(zip(TASKS, task_vectors.task_vectors(setting.models, setting.base), strict=True))
    for i, (task, tau) in enumerate(taus.items()):
        others = [t for t in TASKS if t != task]
        ways = {"its own": tau, **nulls(tau, 10 * setting.recipe("broad").seed + i)}
        for name, way in ways.items():
            for length in LENGTHS:
                point = params.combine([1, length], [setting.base, way])
                loss = setting.report[task](point).loss
                yield row("along", name, task, length, -1, loss)
        for length in (-1.0, 1.0):
            for other in others:
                point = params.combine([1, length], [setting.base, taus[other]])
                loss = setting.report[task](point).loss
                yield row("along", "another's", task, length, TASKS.index(other), loss)


def _meddling(setting: Setting) -> Iterator[Row]:
    """The disentanglement error of two tasks, in three settings."""
    sets = [images(task, "report") for task in PAIR]
    inputs, base = [x[:500] for x, _ in sets], setting.base
    network = setting.network
    linear = task_vectors.linearised(setting.module, base)
    tuned = [setting.load(task)[1] for task in PAIR]
    flat = [setting.load(f"tangent-{task}")[1] for task in PAIR]
    recipes = [setting.recipe(task) for task in PAIR]
    blank = params.of(models.build(recipes[0].arch, setting.recipe("broad").seed))
    fresh = [training.fine_tune(recipe, blank) for recipe in recipes]
    settings: Mapping[str, tuple[Callable[..., Tensor], Params, list[Params]]] = {
        "network": (network, base, tuned),
        "first-order model": (linear, base, flat),
        "from random weights": (network, blank, fresh),
    }
    for name, (predict, start, ends) in settings.items():
        taus = task_vectors.task_vectors(ends, start)
        found = probes.disentanglement(predict, start, taus, inputs, alphas=GRID)
        for i, a in enumerate(GRID):
            for j, b in enumerate(GRID):
                yield row("meddling", name, "error", a, b, 100 * found.error[i, j])
        for task, (x, y), end in zip(PAIR, sets, ends, strict=True):
            for which, point in (
                ("alone", end),
                ("both", params.combine([1, 1, 1], [start, *taus])),
            ):
                with torch.no_grad():
                    right = (predict(point, x).argmax(1) == y).double().mean()
                yield row("meddling", name, f"accuracy {which}", PAIR.index(task), -1, 100 * right)


def _signs(setting: Setting) -> Iterator[Row]:
    """What is left of the gain when the signs of a share of the entries are turned round."""
    taus = task_vectors.task_vectors(setting.models, setting.base)
    for task, tau in zip(TASKS, taus, strict=True):
        how = {"seed": setting.recipe(task).seed}
        asked = [(which, s) for which in ("largest", "smallest", "random") for s in FLIPPED]
        parts = [probes.flip_signs(tau, s, which=which, **how) for which, s in asked]
        found = probes.gains(setting.report[task], setting.base, tau, parts)
        for (which, part), kept in zip(asked, found.kept, strict=True):
            yield row("signs", which, task, part, -1, 100 * kept)


def _election(setting: Setting) -> Iterator[Row]:
    """TIES, its signs elected or taken from joint training; density and scale are chosen."""
    joint = task_vectors.task_vectors([setting.load("joint-tasks")[1]], setting.base)[0]
    taus = task_vectors.task_vectors(setting.models, setting.base)
    kinds = {
        "elected": lambda trimmed: disjoint_mean(trimmed, [1.0] * len(trimmed)),
        "all": lambda trimmed: _mean_where(trimmed, [t != 0 for t in trimmed]),
    }
    for name in (*kinds, "joint training's"):
        best = (-1.0, 0.0, 0.0, setting.base)
        for density in (0.1, 0.2, 0.5, 1.0):
            trimmed = [task_vectors.trim(tau, density) for tau in taus]
            step = {}
            for key in joint:
                each = [t[key] for t in trimmed]
                same = [t * joint[key] > 0 for t in each]
                step[key] = kinds[name](each) if name in kinds else _mean_where(each, same)
            for scale in SCALES:
                point = params.combine([1, scale], [setting.base, step])
                score = sum(risk(point).accuracy for risk in setting.choose.values())
                best = max(best, (score, density, scale, point), key=lambda b: b[0])
        _, density, scale, point = best
        right = [100 * risk(point).accuracy for risk in setting.report.values()]
        yield row("election", name, "accuracy", density, scale, sum(right) / len(right))


def _mean_where(tensors: list[Tensor], chosen: list[Tensor]) -> Tensor:
    total = sum(t.where(c, 0.0) for t, c in zip(tensors, chosen, strict=True))
    return total / sum(chosen).clamp(min=1)


def _features(setting: Setting) -> Iterator[Row]:
    """Features of the average of two networks against the average of their features."""
    layers = ("hidden.1", "hidden.2", "head")
    ends = {prefix: [setting.load(prefix + t)[1] for t in PAIR] for prefix in ("", "lone-")}
    for prefix, name in (("", "one base"), ("lone-", "two starts")):
        for i, task in enumerate(PAIR):
            x = images(task, "report")[0][:1000]
            found = feature_connectivity(setting.network, *ends[prefix], x, layers, at="input")
            for k in range(len(layers)):
                yield row("features", name, "gap", k, i, found.gap[k])
                yield row("features", name, "apart", k, i, found.apart[k])
        middle = merge.average(ends[prefix])
        right = [setting.report[task](middle).accuracy for task in PAIR]
        alone = [setting.report[t](e).accuracy for t, e in zip(PAIR, ends[prefix], strict=True)]
        for label, found in (("of the average", right), ("of each", alone)):
            yield row("features", name, f"accuracy {label}", -1, -1, 50 * sum(found))


STUDY = Study("directedness", rows)
