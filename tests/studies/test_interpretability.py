"""The study of interpretability: its table is whole, and its measures are what they are said."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from sokmerge import params, studies, symmetry
from sokmerge.network import Network
from sokmerge.studies import interpretability
from sokmerge.studies.interpretability import (
    ANCHORS,
    CAUSAL,
    COPIES,
    COUNTS,
    KINDS,
    MASKS,
    PASSES,
    SPOTS,
    Results,
    exchanged,
    table_of,
)
from sokmerge.studies.task_vectors import TASKS
from sokmerge.testbed import models

SEEDS = 5


@pytest.fixture(scope="module")
def of():
    return Results(studies.results("interpretability"))


def whole(values):
    return len(values) == SEEDS and np.isfinite(values).all()


def test_rankings_agree_with_themselves_and_in_both_orders(of):
    names = [*MASKS, *CAUSAL]
    rows = of.part("agreement").set_index(["measure", "seed", "group", "kind"]).value.sort_index()
    for measure, most in (("rank correlation", 1), ("shared", 100)):
        for seed in range(SEEDS):
            square = rows[measure, seed].unstack().loc[names, names].to_numpy()
            assert (square == square.T).all() and square.max() <= most
            assert np.diag(square) == pytest.approx(most)


def test_groups_are_there_for_every_ranking_and_grow(of):
    rows = of.part("groups").pivot(
        index=["seed", "kind", "measure", "x"], columns="group", values="value"
    )
    assert len(rows) == SEEDS * 2 * 2 * len(COUNTS) and rows.notna().all(axis=None)
    assert {*rows.columns} == {"moved", "grafted", "random", *CAUSAL}
    drawn = rows.random.xs(("undone", "loss"), level=("kind", "measure")).unstack()
    assert (drawn[COUNTS[-1]] > drawn[COUNTS[0]]).all()


def test_masks_share_what_two_masks_can(of):
    for a, b in itertools.combinations(TASKS, 2):
        assert whole(of("masks", "cosine", group="vectors", kind=f"{a}, {b}"))
        for name in ("trimmed", "TALL", "grafted"):
            for measure in ("shared", "chance"):
                found = of("masks", measure, group=name, kind=f"{a}, {b}")
                assert whole(found) and 0 < min(found) and max(found) < 100
    for kind in ("alone", "without"):
        assert whole(of("grafts", "loss", group="learned", kind=kind))


def test_what_does_not_see_the_order_of_units_is_the_same_after_alignment(of):
    for kind in KINDS:
        for measure in ("barrier", "error"):
            assert whole(of("pairs", measure, group=kind))
        for measure in ("cka", "gap", "apart", "identity", "linear"):
            assert whole(of("pairs", measure, group=kind, kind="head"))
        for measure in ("direct", "mapped", "relative", "relative, own"):
            assert whole(of("pairs", measure, group=kind, x=ANCHORS))
    for measure, tolerance in (("cka", 1e-4), ("relative", 0.2), ("mapped", 0.2)):
        first, second = (of("pairs", measure, group=k, kind="head") for k in KINDS[:2])
        assert first == pytest.approx(second, abs=tolerance)


def test_planted_lines_are_low_and_shuffling_hides_them(of):
    for net, kind in itertools.product(("3 layers", "8 layers"), ("fine-tuned", "forked")):
        where = {"group": net, "kind": kind}
        planted, shuffled = (of("planted", m, **where) for m in ("planted", "shuffled"))
        assert max(planted) < 0.1 and min(shuffled) > 0.3
        for passes in PASSES:
            missed = of("planted", "missed", x=passes, **where)
            assert whole(missed) and 0 <= min(missed) and max(missed) <= 100
    found = of.part("searches")
    heights = found[(found.measure == "barrier") & (found.kind == "weights")]
    assert len(heights) == SEEDS * COPIES and whole(of("searches", "barrier", kind="activations"))


def test_steering_has_every_task_and_layer(of):
    rows = of.part("steering").query("kind != ''")
    rows = rows.pivot(index=["seed", "group", "kind"], columns="measure", values="value")
    assert len(rows) == SEEDS * len(TASKS) * len(SPOTS) and rows.notna().all(axis=None)
    assert {"cosine", "cosine by chance", "cosine with others", "steered", "moved", "random",
            "length", "reliability"} == {*rows.columns}  # fmt: skip
    assert whole(of.gain("steered", SPOTS[1])) and whole(of.gain("biases", ""))


def test_gains_are_summed_over_tasks_before_they_are_divided():
    rows = [
        ("steering", task, kind, measure, value + seed)
        for seed in range(2)
        for task, up in (("a", 10.0), ("b", 30.0))
        for kind, measure, value in (
            ("", "base", 50.0), ("", "tuned", 50 + up), ("l", "steered", 55.0),
        )
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["part", "group", "kind", "measure", "value"])
    table["seed"] = [0] * 6 + [1] * 6
    assert Results(table).gain("steered", "l", ["a", "b"]) == pytest.approx([25.0, 25.0])
    agree = [("agreement", a, b, "rank correlation", v) for a, b, v in
             (("x", "x", 1.0), ("x", "y", 0.2), ("y", "x", 0.2), ("y", "y", 1.0))]  # fmt: skip
    table = pd.DataFrame(agree, columns=["part", "group", "kind", "measure", "value"])
    table["seed"] = 0
    assert Results(table).agreement("xy", "xy") == pytest.approx([0.2])


def test_a_shuffled_copy_is_read_by_a_map_and_by_relations_alone():
    arch = models.MLP(12, depth=1)
    module = models.build(arch, seed=3)
    group, own = symmetry.chain(module, models.chain(arch)), params.of(module)
    copy = group.act(group.sample(1), own)
    x = torch.randn(300, 1, 28, 28, generator=params.stream("images"))
    y = Network(module)(own, x)[:, :3].argmax(1)
    fit, judged = (x[:200], y[:200]), (x[200:], y[200:])
    found, plain = (exchanged(Network(module), own, b, fit, judged, 50) for b in (copy, own))
    assert found.error["relative"] == plain.error["relative"] == plain.own["relative"]
    assert found.error["direct"] > plain.error["direct"] and found.anchors == 50


def test_a_table_is_shaded_column_by_column():
    ax = Figure().subplots()
    table_of(ax, {"a": [0.1, 20.0], "b": [0.2, 5.0]}, {"x": (".1f", 0.2), "y": (".0f", 20.0)})
    assert [text.get_text() for text in ax.texts] == ["0.1", "20", "0.2", "5"]
    assert ax.images[0].get_array().tolist() == [[0.5, 1.0], [1.0, 0.25]]


def test_the_study_names_itself():
    assert interpretability.STUDY.name == "interpretability"
    assert "interpretability" in studies.names()
