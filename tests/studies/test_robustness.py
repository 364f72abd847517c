"""The study of robustness: its table is whole, and its numbers are what they are said to be."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from sokmerge import params, studies
from sokmerge.studies import robustness
from sokmerge.studies.determinism import chosen
from sokmerge.studies.robustness import (
    ALPHAS,
    ATTACKS,
    BOUNDS,
    EPSILONS,
    FORGOTTEN,
    LINES,
    NEGATIONS,
    POSITIONS,
    RELEARN,
    SEVERITIES,
    Under,
    barrier,
)
from sokmerge.testbed import data, models, zoo

SEEDS = range(5)


@pytest.fixture(scope="module")
def table():
    return studies.results("robustness")


def _whole(found, index):
    assert list(found.index) == list(index) and {*map(len, found)} == {len(SEEDS)}


def test_every_line_has_every_coefficient_and_severity(table):
    for line in LINES:
        groups = ("own", "clean") + (("reversed",) if line == "cued" else ("turned by 15",))
        if line != "cued":
            groups += tuple(f"severity {s}" for s in SEVERITIES)
        for group in groups:
            _whole(chosen(table, "accuracy", "x", part="shift", kind=line, group=group), ALPHAS)


def test_every_attack_was_tried_on_both_networks_and_the_order_is_that_of_strength(table):
    for kind in ("usual", "hardened"):
        left = {a: chosen(table, "accuracy", part="attack", kind=kind, group=a) for a in ATTACKS}
        assert {*map(len, left.values())} == {len(SEEDS)}
        for stronger, weaker in (
            ("noise", "none"),
            ("noise, best of 20", "noise"),
            ("PGD-20", "noise, best of 20"),
            ("PGD-20, 5 starts", "PGD-20"),
            ("PGD-20, all of the range", "PGD-20"),
        ):
            pairs = zip(left[stronger], left[weaker], strict=True)
            assert all(a <= b for a, b in pairs), (kind, stronger)
        sizes = chosen(table, "accuracy", "x", part="attack", kind=kind, group="by size")
        _whole(sizes, EPSILONS)
        assert sizes[0.0] == left["none"] and sizes[1.0] == left["PGD-20, all of the range"]


def test_every_way_has_the_same_ends(table):
    ways = (("one start", ("line", "curve", "robust curve")), ("two starts", ("line", "curve")))
    for measure in ("clean loss", "clean accuracy", "robust loss", "robust accuracy"):
        for group, kinds in ways:
            ends = []
            for kind in kinds:
                found = chosen(table, measure, "x", part="barrier", group=group, kind=kind)
                _whole(found, POSITIONS)
                ends.append((found[0.0], found[1.0]))
            assert all(each == ends[0] for each in ends)


def test_every_class_was_taken_away_and_taught_again(table):
    part = table[table.part == "unlearning"]
    assert set(part.group) == {str(c) for c in range(10)}
    for measure in ("forget", "retain"):
        found = chosen(part, measure, "x", kind="negation")
        _whole(found, (-1.0, *NEGATIONS))
    steps = part[part.measure == "steps"]
    assert len(steps) == 2 * 10 * len(SEEDS) and steps.value.between(0, RELEARN).all()
    gone = part[(part.measure == "forget") & (part.x == -1) & (part.kind == "never seen")]
    assert (gone.value == 0).all()
    taken = part[part.measure == "taken"]
    assert taken.value.isin(NEGATIONS[1:]).all() and FORGOTTEN < 10


def test_every_seed_has_every_part(table):
    assert set(table.seed) == set(SEEDS) and table.value.notna().all()
    counts = table.groupby(["part", "seed"]).size().unstack()
    assert (counts.nunique(axis=1) == 1).all() and len(counts) == 7
    percents = table[table.measure.isin(["accuracy", "attacked", "forget", "retain"])]
    assert percents.value.between(0, 100).all()


def test_a_barrier_is_the_rise_above_the_chord_for_each_seed():
    heights = pd.Series([[1.0, 2.0], [3.0, 0.0], [3.0, 4.0]], index=[0.0, 0.25, 1.0])
    assert barrier(heights) == [1.5, 0.0]


def test_attacks_stay_between_black_and_white():
    recipe = zoo.family("broad", master=0)[0]
    point = params.of(models.build(recipe.arch))
    under = Under(0.3, *data.fashion("test", limit=20))
    for found in (under.fgsm(point), under.pgd(point, 2), under.pgd(point, 0)):
        assert BOUNDS[0] <= float(found.inputs.min()) and float(found.inputs.max()) <= BOUNDS[1]
        change = float((found.inputs - under.images[0]).abs().max())
        assert change == pytest.approx(0.3 / data.STD, rel=1e-2)
    assert torch.equal(under.pgd(point, 2).inputs, under.pgd(point, 2).inputs)


def test_the_study_names_itself():
    assert robustness.STUDY.name == "robustness" and "robustness" in studies.names()
