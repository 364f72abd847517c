"""The study of determinism: its table is whole, its pairs are what they are said to be."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from sokmerge import params, studies
from sokmerge.studies import determinism
from sokmerge.studies.determinism import (
    BARRIERS,
    PUSHED,
    PUSHES,
    RATES,
    REWINDS,
    RUNS,
    STEPS,
    TICKETS,
    UNSTABLE,
    between,
    chosen,
    difference,
    draw,
    estimate,
    last,
    order,
    sgd,
)
from sokmerge.testbed import models, training

SEEDS = range(5)


@pytest.fixture(scope="module")
def table():
    return studies.results("determinism")


def test_every_parent_was_forked_at_every_step(table):
    for name, (_, _, children, steps) in RUNS.items():
        for what in (*BARRIERS, "distance", "cosine", "disagreement", "cka"):
            found = chosen(table, what, "step", part="forks", run=name)
            assert list(found.index) == [-1, *steps] and {*map(len, found)} == {len(SEEDS)}
        lost = table[(table.measure == "lost") & (table.run == name)]
        assert len(lost) == len(SEEDS) * (1 + children * len(steps))


def test_every_part_has_every_seed(table):
    for kind, sizes in PUSHES.items():
        for size in sizes:
            found = chosen(table, BARRIERS[0], "step", part="pushes", kind=kind, x=size)
            assert list(found.index) == list(PUSHED) and {*map(len, found)} == {len(SEEDS)}
    assert list(chosen(table, BARRIERS[0], "x", run="pre-trained").index) == list(RATES)
    for run in TICKETS:
        for kind in ("found", "shuffled"):
            found = chosen(table, "test error", "step", part="pruning", run=run, kind=kind)
            assert list(found.index) == list(REWINDS)
    assert set(table.seed) == set(SEEDS) and table.value.notna().all()


def test_no_parent_was_lost_and_numbers_are_in_their_range(table):
    for name in RUNS:
        assert max(chosen(table, "test error", part="forks", run=name, step=STEPS[-1])) < 60
    rows = table[table.measure.isin(["cka", "cosine"])]
    assert rows.value.between(-0.2, 1 + 1e-6).all()
    barriers = table[table.measure.isin([*BARRIERS, "loss barrier"])]
    assert (barriers.value >= 0).all()
    left = chosen(table, "weights left", part="pruning", run=UNSTABLE)
    assert left == pytest.approx([16.0] * len(SEEDS), abs=0.1)


def test_orders_of_one_seed_are_not_those_of_another():
    numbers = [0, *range(1, 100), *range(500, 503), *range(600, 623), *range(700, 803)]
    taken = [order(own, n + 1_000 * lost) for own in (0, 1, 1000) for n in numbers
             for lost in range(3)]  # fmt: skip
    assert len(taken) == len(set(taken))


def test_a_start_decides_where_training_begins_and_images_may_be_given():
    recipe = sgd(models.MLP(4, depth=1), 0.01, 7, limit=64, epochs=1)
    x, y = training.inputs_of(recipe, "train")
    assert recipe.order_seed == order(7, 0)
    own, given = last(recipe), last(recipe, inputs=x, targets=y)
    assert all(torch.equal(own[name], given[name]) for name in own)
    start = params.of(models.build(recipe.arch, seed=8))
    there = last(recipe, inputs=x, targets=y, start=start)
    assert float(params.distance(there, start)) < float(params.distance(there, own))


def test_barriers_of_equal_networks_are_nothing():
    module = models.build(models.MLP(4, depth=1))
    x, y = torch.randn(6, 1, 28, 28, generator=params.stream("x")), torch.arange(6)
    risk = determinism.probe.EmpiricalRisk(module, x, y)
    found = dict(between({"test": risk, "train": risk}, [params.of(module)] * 2))
    assert all(found[what] == 0 for what in BARRIERS) and found["distance"] == 0
    assert found["cosine"] == pytest.approx(1)


def test_what_is_chosen_is_averaged_within_a_seed():
    rows = [(s, "a", step, "m", 10.0 * s + step + k) for s in SEEDS for step in (0, 1)
            for k in (-1, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["seed", "part", "step", "measure", "value"])
    assert chosen(table, "m", part="a", step=1) == [1, 11, 21, 31, 41]
    assert chosen(table, "m", "step", part="a").to_dict() == {
        0: [0, 10, 20, 30, 40],
        1: [1, 11, 21, 31, 41],
    }
    assert estimate(table, "label", "m", "nats", step=0).mean == 20
    apart = difference(table, "label", {"step": 1}, {"step": 0}, "m", "nats", part="a")
    assert (apart.mean, apart.low, apart.high, apart.unit) == (1, 1, 1, "nats")
    ax = Figure().subplots()
    draw(ax, chosen(table, "m", "step", part="a"), "label", [3, 4])
    assert ax.containers[0].lines[0].get_xdata().tolist() == [3, 4]
    assert ax.containers[0].lines[0].get_ydata().tolist() == [20, 21]


def test_the_study_names_itself():
    assert determinism.STUDY.name == "determinism" and "determinism" in studies.names()
