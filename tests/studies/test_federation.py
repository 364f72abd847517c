"""The study of federation: its table is whole, and its workers do what they are said to do."""

from __future__ import annotations

import math

import pytest
import torch

from sokmerge import merge, params, studies
from sokmerge.reader.series import chosen
from sokmerge.studies import federation as study
from sokmerge.testbed import data, models
from sokmerge.testbed.loop import Run
from sokmerge.testbed.recipes import Recipe

SEEDS = range(5)
TINY = models.MLP(4, depth=1)


@pytest.fixture(scope="module")
def table():
    return studies.results("federation")


def test_every_part_has_every_seed(table):
    for alpha in study.ALPHAS:
        for local in study.LOCAL:
            where = {"part": "rounds", "split": f"{alpha}", "steps": local}
            assert len(chosen(table, **where, measure="after steps")) == len(SEEDS)
            late = table[(table.part == "rounds") & (table.steps == local)]
            early = late[late.measure == "after rounds"]
            assert (len(early) > 0) == (study.ROUNDS * local <= study.STEPS)
        assert len(chosen(table, part="again", split=f"{alpha}")) == len(SEEDS)
    for split in study.SPLITS:
        for shared in (-1, *study.SHARED):
            where = {"part": "one shot", "method": "average", "split": split, "steps": shared}
            assert len(chosen(table, **where, measure="accuracy")) == len(SEEDS)
        for start in study.STARTS:
            for method, steps in study.METHODS.items():
                for local in steps:
                    where = {"part": f"from {start}", "method": method, "split": split}
                    found = chosen(table, **where, steps=local, measure="accuracy")
                    assert len(found) == len(SEEDS)
    assert set(table.seed) == set(SEEDS) and table.value.notna().all()


def test_numbers_are_in_their_range_and_bytes_add_up(table):
    shares = ["accuracy", "accuracy, clients", "after rounds", "after steps"]
    assert table[table.measure.isin(shares)].value.between(0, 100).all()
    assert table[table.measure == "cosine of ways"].value.between(-1, 1).all()
    barriers = table[table.measure.str.contains("barrier")]
    assert (barriers.value >= 0).all()
    sent = table[table.measure == "bytes"]
    each = sent.value * sent.steps / study.STEPS
    assert each.max() == pytest.approx(each.min(), rel=1e-5)  # a round costs the same


def test_workers_who_talk_at_each_step_are_one_run_with_momentum():
    inputs, targets = data.fashion("train", limit=2 * study.BATCH)
    halves = [(inputs[k::2], targets[k::2]) for k in (0, 1)]
    apart = [study.Worker(TINY, half, 0.05, k, total=6) for k, half in enumerate(halves)]
    point = params.of(models.build(TINY, 3))
    start = models.build(TINY, 3)
    for _ in range(6):
        point = merge.fedavg(point, apart)
    recipe = Recipe("one", TINY, 3, 0, batch=2 * study.BATCH, epochs=6, optimizer="sgd", lr=0.05)
    run = Run(start, inputs, targets, recipe)
    run.to(6)
    end = params.of(run.module)
    way = float(params.distance(end, params.of(models.build(TINY, 3))))
    assert float(params.distance(point, end)) < 1e-4 * way


def test_a_worker_without_momentum_takes_plain_steps():
    images = data.fashion("train", limit=study.BATCH)
    worker = study.Worker(TINY, images, 0.05, 0, momentum=False, local=2, total=4)
    point = params.of(models.build(TINY, 3))
    module = models.build(TINY, 3)
    for _ in range(2):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(images[0]), images[1]).backward()
        with torch.no_grad():
            for tensor in module.parameters():
                tensor -= 0.05 * tensor.grad
    found = worker(point)
    assert float(params.distance(found, params.of(module))) < 1e-6
    assert worker.reached is found and worker.run.step == 2


def test_splits_belong_to_their_seed():
    first, same, other = (study.split(own, 0.1) for own in (0, 0, 1))
    again = study.split(0, 0.1, 1)
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other)) and not all(map(torch.equal, first, again))
    assert min(map(len, first)) >= study.SMALLEST and sum(map(len, first)) == study.LIMIT
    assert {*map(len, study.split(0, math.inf))} == {study.LIMIT // study.CLIENTS}


def test_orders_of_one_seed_are_not_those_of_another():
    numbers = [*range(len(study.LOCAL) + 1), 20, 30, 40, 50]
    taken = [study._orders(own, n) + k for own in (0, 1, 1000) for n in numbers
             for k in range(study.CLIENTS)]  # fmt: skip
    assert len(taken) == len(set(taken))


def test_the_study_names_itself():
    assert study.STUDY.name == "federation" and "federation" in studies.names()
