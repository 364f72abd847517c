"""The study of convexity: its training, its seeds, and what its table must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sokmerge import params, studies
from sokmerge.studies import convexity
from sokmerge.studies.convexity import ARCHES, FORKS, HELD, HOWS, SOURCES, own, sam, start_of
from sokmerge.testbed import models, training

SMALL = replace(
    convexity.RUN, arch=models.MLP(4, depth=1), limit=60, batch=20, epochs=2, schedule="cosine"
)


@pytest.fixture(scope="module")
def table():
    return studies.results("convexity")


def test_sharpness_aware_minimisation_with_no_radius_is_the_recipe_itself():
    start, images = start_of(SMALL), training.inputs_of(SMALL, "train")
    plain = training.fine_tune(SMALL, start, *images)
    for name, tensor in sam(SMALL, start, *images, rho=0.0).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)
    assert float(params.distance(sam(SMALL, start, *images, rho=0.5), plain)) > 1e-3


def test_every_seed_and_number_has_a_start_of_its_own():
    numbers = range(max(SOURCES + HELD, 5 + len(ARCHES)))
    seen = [own(SMALL, seed, number).seed for seed in range(5) for number in numbers]
    assert len(set(seen)) == len(seen)


def test_another_master_seed_gives_other_starts(monkeypatch):
    ours = {own(SMALL, seed, k).seed for seed in range(5) for k in range(20)}
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "1")
    assert not ours & {own(SMALL, seed, k).seed for seed in range(5) for k in range(20)}


def test_twins_compute_the_same_function(table):
    found = table[(table.part == "averages") & table.measure.isin(["test loss", "test error"])]
    for _, rows in found.groupby(["seed", "measure"]):
        values = rows.set_index("name").value
        twins = values[[name for name in values.index if "rescaled" in name]]
        assert len(twins) == 2 and np.allclose(twins, values["cooled"], rtol=1e-3)


def test_every_hull_has_its_points_for_every_seed(table):
    hulls = table[(table.part == "hulls") & (table.measure == "loss")]
    groups = {f"fork at {step}" for step in FORKS} | {"independent"}
    assert set(hulls.group) == groups
    counts = hulls.groupby(["seed", "group", "name"]).size().unstack()
    assert len(counts) == 5 * len(groups)
    assert (counts.inside == convexity.POINTS).all() and (counts.outside == convexity.POINTS).all()
    assert (counts.member == convexity.CHILDREN).all()


def test_the_centre_lies_inside_and_a_convex_hull_has_no_excess(table):
    """Where all points of a hull have an excess of at most 0, so has its centre."""
    hulls = table[(table.part == "hulls") & (table.measure == "excess")]
    for _, rows in hulls.groupby(["seed", "group"]):
        values = rows.groupby("name").value.max()
        assert values["inside"] > 0 or values["centre"] <= 1e-6


def test_every_way_down_begins_where_nothing_is_learnt_and_none_is_left_out(table):
    ways = table[table.part == "descents"]
    assert set(ways.group) == set(ARCHES) and set(HOWS) <= set(ways.name)
    first = ways[(ways.measure == "loss") & (ways.x == 0) & ways.name.isin(list(HOWS))]
    assert len(first) == 5 * (4 * 4 - 4) and first.value.between(2.2, 2.6).all()
    assert (ways[ways.measure == "climb"].value >= 0).all()


def test_the_study_names_itself():
    assert convexity.STUDY.name == "convexity" and "convexity" in studies.names()
