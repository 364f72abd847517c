"""The study of directedness: its counts, its runs, and the shape of its table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sokmerge import params, studies
from sokmerge.probe.directedness import projected_descent
from sokmerge.studies import directedness
from sokmerge.studies.directedness import DIMS, LENGTHS, MARKS, Run, outliers
from sokmerge.studies.task_vectors import TASKS
from sokmerge.testbed import models


@pytest.fixture(scope="module")
def table():
    return studies.results("directedness")


def test_outliers_end_at_the_largest_gap_behind_the_first():
    assert outliers([90.0, 3.0, 2.9, 2.8, 0.5, 0.45, 0.4]) == 4
    assert outliers([9.0, 8.0, 1.0, 0.9]) == 2
    assert outliers([1.0] * 9 + [0.1] * 11) == 9


def tiny(seed=0):
    x, y = torch.randn(100, 1, 28, 28, generator=params.stream("x")), torch.arange(100) % 10
    return Run(seed, models.MLP(4, depth=1), x, y)


def test_an_epoch_sees_each_image_once_and_the_next_in_another_order():
    run = tiny()
    losses = run.risk.per_example(params.of(run.module))[0]
    with torch.no_grad():
        batches = [run.loss(params.of(run.module), step) for step in range(4)]
    assert float(sum(batches[:2]) / 2) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(batches[0]) != pytest.approx(float(batches[2]), rel=1e-6)


def test_a_run_that_is_kept_on_the_way_is_the_run_itself():
    run = tiny(seed=3)
    whole = run.trained((2, 5))
    on = projected_descent(whole[2], loss=lambda p, s: run.loss(p, 2 + s), lr=0.05, steps=3)
    for name, tensor in whole[5].items():
        torch.testing.assert_close(on.points[-1][name], tensor)


def test_the_top_is_the_same_from_where_the_last_one_was():
    run = tiny(seed=1)
    point = params.of(run.module)
    first, again = run.top(point, 2, tol=1e-4), run.top(point, 2, tol=1e-4)
    assert float((first @ again.T).square().sum() / 2) == pytest.approx(1, abs=1e-3)


def test_every_seed_has_every_row(table):
    counts = table.groupby("seed").size()
    assert list(counts.index) == list(range(5)) and counts.nunique() == 1
    dims = table[(table.part == "dimension") & (table.measure == "accuracy")]
    assert set(dims.x) == set(DIMS) and set(dims.group) == {"MLP", "CNN"}
    along = table[(table.part == "along") & (table.group == "its own")]
    assert set(along.x) == set(LENGTHS) and set(along.measure) == set(TASKS)


def test_the_table_obeys_what_must_hold(table):
    overlap = table[(table.part == "shares") & (table.group == "overlap")]
    same = overlap[overlap.x == overlap.y].value
    np.testing.assert_allclose(same, 1, atol=1e-4)
    shares = table[table.group.isin(["gradient", "batch"])].pivot_table(
        "value", ["seed", "group", "x"], "y"
    )
    assert (shares.diff(axis=1).iloc[:, 1:] >= -1e-6).all().all() and (shares <= 1).all().all()
    assert not table[table.measure == "not converged"].value.any()
    assert set(shares.index.get_level_values("x")) == set(MARKS)
    maps = table[(table.part == "meddling") & (table.measure == "error")]
    assert not maps[(maps.x == 0) & (maps.y == 0)].value.any() and maps.value.between(0, 200).all()
    start = table[(table.part == "along") & (table.x == 0)].groupby(["seed", "measure"]).value
    assert (start.nunique() == 1).all()


def test_the_study_names_itself():
    assert directedness.STUDY.name == "directedness" and "directedness" in studies.names()
