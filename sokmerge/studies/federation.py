r"""Federation: training in several places, and averaging now and then.

* ``rounds``: FedAvg from a random start, for ``CLIENTS`` clients whose classes differ more or less
  (alpha of a Dirichlet distribution) and who take more or fewer local steps between two averages:
  accuracy after as many rounds and after as many steps; in the last round the barriers between
  clients and between consecutive averages, how far the clients' ways point in one direction, and
  what each client's own loss rises by when it is replaced by the average.
* ``again``: the barrier between two such runs from one start, each with a split of its own.
* ``one shot``: clients share the first k steps, then train alone, and are averaged once. Beside
  it clients with starts of their own: averaged, matched and averaged, and asked together.
* ``local steps``: workers with momentum, from a random and from a pre-trained start, who talk at
  each step, now and then, or at the end: averaged, moved by an outer optimiser, or kept apart.

Accuracies are in percent of 2,000 test images, losses in nats, barriers of errors in points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sokmerge import merge, params, probe, symmetry
from sokmerge.merge.ensembling import domains
from sokmerge.params import Params
from sokmerge.probe import determinism
from sokmerge.studies.study import Study
from sokmerge.testbed import data, models, training, zoo
from sokmerge.testbed.loop import Run
from sokmerge.testbed.recipes import Recipe, master_seed
from sokmerge.testbed.splits import dirichlet_split, holdings
from sokmerge.testbed.tasks import Rotated

__all__ = [
    "ALPHAS", "CLIENTS", "LOCAL", "METHODS", "MLP", "ROUNDS", "SHARED", "SKEWED", "SPLITS",
    "STARTS", "STEPS", "STUDY", "Worker", "rows", "split",
]  # fmt: skip

#: Clients, the images that they divide, images a step, and the fewest that a client must have.
CLIENTS, LIMIT, BATCH, SMALLEST = 4, 4_000, 32, 100

#: How much classes differ: Dirichlet concentrations; which one stands for skewed splits.
ALPHAS, SKEWED = (0.1, 1.0, math.inf), 0.1
SPLITS = {"alike": math.inf, "skewed": SKEWED}

#: Steps of each client in all, and steps between two averages of FedAvg.
STEPS, LOCAL = 240, (1, 8, 40, 240)

#: After how many rounds runs are compared.
ROUNDS = 6

#: Shared steps before clients part, of ``STEPS``.
SHARED = (0, 20, 60, 120)

#: Rates: of plain SGD in FedAvg, and of SGD with momentum where clients are merged once.
PLAIN, ONCE = 0.05, 0.05

MLP = models.MLP(64)
CHECKED = 2_000
POINTS = 5
TURN = 45.0

Row = dict[str, Any]


def row(part: str, method: str, split: str, steps: int, measure: str, value: float) -> Row:
    """A row of the table; ``steps`` are those between two averages, or those that are shared."""
    said = {"part": part, "method": method, "split": split, "steps": steps, "measure": measure}
    return {**said, "value": round(float(value), 6)}


def rows(seed: int) -> Iterator[Row]:
    """Measure all of it for one seed."""
    own = 1000 * master_seed() + seed
    yield from _rounds(own)
    yield from _one_shot(own)
    broad = zoo.family("broad")[seed]
    random = params.of(models.build(broad.arch, 6_000_000 + own))
    yield from _local_steps(own, "random", random)
    yield from _local_steps(own, "pre-trained", zoo.load(broad)[1])


def split(own: int, alpha: float, number: int = 0) -> list[Tensor]:
    """The rows of each client, of the first ``LIMIT`` training images."""
    targets = data.fashion("train", limit=LIMIT)[1]
    key = f"federation:{own}:{number}"
    return dirichlet_split(targets, CLIENTS, alpha=alpha, key=key, smallest=SMALLEST)


class Worker:
    """A client at work: its images, its optimiser, and a place in the schedule of its rate.

    Called with parameters it goes on from there for ``local`` steps, and returns where that leads.
    Momentum stays its own and is kept, so that workers who talk at each step are one run of SGD
    with momentum on the batches of all of them.

    Args:
        arch: the network.
        images: inputs and targets.
        rate: the first rate; it falls to zero by a cosine if there is momentum.
        momentum: whether there is (Nesterov, 0.9); if not the rate is constant.
        order: seed of the order of images.
        local: steps in a round.
        total: steps in all, in which the rate falls to zero; by default ``STEPS``.
        seed: of initial weights, for a worker that begins with its own.

    Attributes:
        run: the training run.
        reached: where it is.
    """

    def __init__(
        self,
        arch: models.Architecture,
        images: tuple[Tensor, Tensor],
        rate: float,
        order: int,
        *,
        momentum: bool = True,
        local: int = 1,
        total: int | None = None,
        seed: int = 0,
    ) -> None:
        total = STEPS if total is None else total
        epochs = math.ceil(total / math.ceil(len(images[1]) / BATCH))
        recipe = Recipe(
            "federation", arch, seed, order, batch=BATCH, epochs=epochs, optimizer="sgd", lr=rate,
            schedule="constant",
        )  # fmt: skip
        self.local = local
        self.run = Run(models.build(arch, seed), *images, recipe)
        if momentum:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR
            self.run.scheduler = schedule(self.run.optimizer, total)
        else:
            self.run.optimizer.param_groups[0].update(momentum=0.0, nesterov=False)
        self.reached: Params = params.of(self.run.module)

    def __call__(self, point: Params) -> Params:
        self.run.module.load_state_dict(dict(point))
        self.run.to(self.run.step + self.local)
        self.reached = params.of(self.run.module)
        return self.reached


def _workers(
    parts: Sequence[Tensor],
    images: tuple[Tensor, Tensor],
    arch: models.Architecture,
    rate: float,
    orders: int,
    **how: Any,
) -> list[Worker]:
    """One worker for each part of the images."""
    return [
        Worker(arch, (images[0][part], images[1][part]), rate, orders + k, **how)
        for k, part in enumerate(parts)
    ]


def _orders(own: int, number: int) -> int:
    """Seed of the orders of the clients' images; numbers of one seed are not those of another."""
    return 10_000 * (own + 1) + 10 * number


def _judge(arch: models.Architecture, turn: float = 0.0) -> probe.EmpiricalRisk:
    """The risk on test images."""
    return probe.EmpiricalRisk(models.build(arch), *_test(turn))


def _test(turn: float = 0.0) -> tuple[Tensor, Tensor]:
    return Rotated(turn)(*data.fashion("test", limit=CHECKED))


def _sizes(parts: Sequence[Tensor]) -> list[float]:
    return [float(len(part)) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / len(values)


def _federated(
    start: Params, workers: Sequence[Worker], sizes: Sequence[float]
) -> Iterator[tuple[Params, Params]]:
    """Yield the common point before and after each round of FedAvg."""
    point = start
    for _ in range(STEPS // workers[0].local):
        before, point = point, merge.fedavg(point, workers, weights=sizes)
        yield before, point


# --- FedAvg, and how much classes differ ------------------------------------------------------


def _rounds(own: int) -> Iterator[Row]:
    images, judge = data.fashion("train", limit=LIMIT), _judge(MLP)
    start = params.of(models.build(MLP, own))
    for alpha in ALPHAS:
        ends = []
        for number, local in enumerate((*LOCAL, LOCAL[-2])):
            again = number == len(LOCAL)
            parts = split(own, alpha, int(again))
            how = {"momentum": False, "local": local}
            workers = _workers(parts, images, MLP, PLAIN, _orders(own, number), **how)
            for done, (before, point) in enumerate(  # noqa: B007
                _federated(start, workers, _sizes(parts)), start=1
            ):
                if done == ROUNDS and not again:
                    accuracy = 100 * judge(point).accuracy
                    yield row("rounds", "FedAvg", f"{alpha}", local, "after rounds", accuracy)
            if local == LOCAL[-2]:
                ends.append(point)
            if not again:
                accuracy = 100 * judge(point).accuracy
                yield row("rounds", "FedAvg", f"{alpha}", local, "after steps", accuracy)
            if not again and local > 1:
                for measure, value in _drift(judge, before, point, workers):
                    yield row("rounds", "FedAvg", f"{alpha}", local, measure, value)
        wall = probe.barrier(judge, *ends, points=POINTS)
        yield row("again", "FedAvg", f"{alpha}", LOCAL[-2], "loss barrier", wall.loss)
        yield row("again", "FedAvg", f"{alpha}", LOCAL[-2], "error barrier", 100 * wall.error)


def _drift(
    judge: probe.EmpiricalRisk, before: Params, after: Params, workers: Sequence[Worker]
) -> Iterator[tuple[str, float]]:
    """What a round looked like: clients who left one point, and their average."""
    reached = [worker.reached for worker in workers]
    found = determinism.instability(judge, reached, points=POINTS)
    yield "loss barrier, clients", found.loss.mean()
    yield "error barrier, clients", 100 * found.error.mean()
    wall = probe.barrier(judge, before, after, points=POINTS)
    yield "loss barrier, averages", wall.loss
    yield "error barrier, averages", 100 * wall.error
    ways = [params.subtract(point, before) for point in reached]
    pairs = itertools.combinations(ways, 2)
    yield "cosine of ways", _mean([params.cosine(*pair) for pair in pairs])
    accuracies = [judge(point).accuracy for point in reached]
    yield "accuracy, clients", 100 * _mean(accuracies)
    rises = []
    for worker, point in zip(workers, reached, strict=True):
        own = probe.EmpiricalRisk(models.build(MLP), worker.run.inputs, worker.run.targets)
        rises.append(own(after).loss - own(point).loss)
    yield "own loss, average less client", _mean(rises)


# --- one average, after shared steps or of starts of their own --------------------------------


def _one_shot(own: int) -> Iterator[Row]:
    images, judge = data.fashion("train", limit=LIMIT), _judge(MLP)
    for name, alpha in SPLITS.items():
        parts = split(own, alpha)
        sizes = _sizes(parts)
        workers = _workers(parts, images, MLP, ONCE, _orders(own, 20))
        states, point = {}, params.of(models.build(MLP, own))
        for worker in workers:
            worker.run.module.load_state_dict(point)
        for step in range(SHARED[-1] + 1):
            if step in SHARED:
                for worker in workers:
                    worker.run.module.load_state_dict(dict(point))
                states[step] = [worker.run.save() for worker in workers]
            point = merge.fedavg(point, workers, weights=sizes)
        for step, saved in states.items():
            for worker, state in zip(workers, saved, strict=True):
                worker.run.load(state)
                worker.run.to(STEPS)
            reached = [params.of(worker.run.module) for worker in workers]
            for measure, value in _merged_once(judge, reached, sizes):
                yield row("one shot", "average", name, step, measure, value)
        yield from _unshared(own, name, parts, images, judge)


def _merged_once(
    judge: probe.EmpiricalRisk, reached: Sequence[Params], sizes: Sequence[float]
) -> Iterator[tuple[str, float]]:
    yield "accuracy", 100 * judge(merge.average(reached, weights=sizes)).accuracy
    yield "accuracy, clients", 100 * _mean([judge(point).accuracy for point in reached])
    found = determinism.instability(judge, reached, points=POINTS)
    yield "error barrier, clients", 100 * found.error.mean()
    yield "loss barrier, clients", found.loss.mean()


def _unshared(
    own: int,
    name: str,
    parts: Sequence[Tensor],
    images: tuple[Tensor, Tensor],
    judge: probe.EmpiricalRisk,
) -> Iterator[Row]:
    """Clients who begin with weights of their own: what can be made of where they end."""
    sizes, counts = _sizes(parts), [*holdings(images[1], list(parts))]
    reached = []
    for k, part in enumerate(parts):
        seed = 7_000_000 + 10 * own + k
        mine = (images[0][part], images[1][part])
        worker = Worker(MLP, mine, ONCE, _orders(own, 30) + k, local=STEPS, seed=seed)
        reached.append(worker(worker.reached))
    for measure, value in _merged_once(judge, reached, sizes):
        yield row("one shot", "average", name, -1, measure, value)
    module = models.build(MLP)
    group = symmetry.chain(module, models.chain(MLP))
    first, *others = reached
    placed = [
        group.act(merge.weight_matching(first, other, group).permutation, other) for other in others
    ]
    test = _test()
    for method, merged in {
        "weight matching": merge.average([first, *placed], weights=sizes),
        "OT-Fusion": merge.ot_fusion(module, reached, group, weights=sizes),
        "PFNM": merge.pfnm(reached, group, counts=counts),
        "FedMA": merge.fedma(module, reached, group, counts=counts),
    }.items():
        found = merge.resized(module, merged)
        found.load_state_dict(dict(merged))
        accuracy = 100 * training.score(found, *test).accuracy
        yield row("one shot", method, name, -1, "accuracy", accuracy)
    together = merge.probability_ensemble(reached, module=module, weights=sizes)(test[0])
    accuracy = 100 * float((together.argmax(1) == test[1]).double().mean())
    yield row("one shot", "ensemble", name, -1, "accuracy", accuracy)


# --- local steps, and what is sent ------------------------------------------------------------

#: Method to steps between two talks; those who take all steps in one talk once, at the end.
METHODS: dict[str, tuple[int, ...]] = {
    "local SGD": LOCAL,
    "DiLoCo": (8, 40),
    "ColD Fusion": (40,),
    "Branch-Train-Merge": (STEPS,),
}

#: Where training begins, and its rate there.
STARTS = {"random": 0.02, "pre-trained": 0.01}

#: Rate and momentum of the outer optimiser, the best of five in a pilot on another seed.
OUTER = {"rate": 0.7, "momentum": 0.7}


def _local_steps(own: int, start: str, point: Params) -> Iterator[Row]:
    arch, rate = zoo.family("broad")[0].arch, STARTS[start]
    images = Rotated(TURN)(*data.fashion("train", limit=LIMIT))
    judge, test = _judge(arch, TURN), _test(TURN)
    for name, alpha in SPLITS.items():
        parts = split(own, alpha)
        sizes = _sizes(parts)

        def workers(local: int, parts: Sequence[Tensor] = parts) -> list[Worker]:
            return _workers(parts, images, arch, rate, _orders(own, 40), local=local)

        def said(method: str, steps: int, accuracy: float, name: str = name) -> Iterator[Row]:
            sent = merge.bytes_communicated(point, clients=CLIENTS, rounds=STEPS // steps)
            yield row(f"from {start}", method, name, steps, "accuracy", 100 * accuracy)
            yield row(f"from {start}", method, name, steps, "bytes", sent)

        for local in METHODS["local SGD"]:
            mine = workers(local)
            *_, (_, end) = _federated(point, mine, sizes)
            yield from said("local SGD", local, judge(end).accuracy)
        experts = [worker.reached for worker in mine]
        known = domains([worker.run.inputs for worker in mine])
        told = merge.branch_train_merge(experts, module=models.build(arch), posterior=known)
        right = (told(test[0]).argmax(1) == test[1]).double().mean()
        yield from said("Branch-Train-Merge", STEPS, float(right))
        for local in METHODS["DiLoCo"]:
            yield from said("DiLoCo", local, judge(_outer(point, workers(local), sizes)).accuracy)
        for local in METHODS["ColD Fusion"]:
            end = _fused(point, parts, images, arch, rate, _orders(own, 50), local)
            yield from said("ColD Fusion", local, judge(end).accuracy)


def _outer(start: Params, workers: Sequence[Worker], sizes: Sequence[float]) -> Params:
    point, velocity = start, None
    for _ in range(STEPS // workers[0].local):
        reached = [worker(point) for worker in workers]
        point, velocity = merge.outer_step(point, reached, velocity, weights=sizes, **OUTER)
    return point


def _fused(
    start: Params,
    parts: Sequence[Tensor],
    images: tuple[Tensor, Tensor],
    arch: models.Architecture,
    rate: float,
    orders: int,
    local: int,
) -> Params:
    """ColD Fusion: each contribution is a run of its own, whose rate falls to zero."""
    point = start
    for number in range(STEPS // local):
        how = {"local": local, "total": local}
        workers = _workers(parts, images, arch, rate, orders + CLIENTS * number, **how)
        point = merge.cold_fusion(point, workers)
    return point


STUDY = Study("federation", rows)
