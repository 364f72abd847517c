"""The study of connectivity: its batches, its networks, and what its table must hold."""

from __future__ import annotations

import math

import pytest
import torch

from sokmerge import params, studies
from sokmerge.studies import connectivity
from sokmerge.studies.connectivity import CUES, KINDS, PULLS, RATES, Losses, begun, fresh
from sokmerge.testbed import data, models, zoo

CURVES = {"line", "bezier", "chain", "band"}


@pytest.fixture(scope="module")
def table():
    return studies.results("connectivity")


def test_each_image_comes_once_in_a_pass_and_the_next_pass_has_another_order():
    x, y = data.fashion("train", limit=50)
    module = models.build(models.MLP(width=2))
    loss = Losses(module, x, y, "test", batch=10)
    point = params.of(module)
    first = [float(loss(point, step)) for step in range(5)]
    whole = torch.nn.functional.cross_entropy(module(x), y)
    assert math.fsum(first) / 5 == pytest.approx(float(whole.detach()), rel=1e-5)
    assert float(loss(point, 2)) == first[2]
    assert [float(loss(point, step)) for step in range(5, 10)] != first
    assert sorted(loss.orders[1].tolist()) == list(range(50))


def test_a_step_beyond_a_pass_begins_a_new_one_when_batches_do_not_fit():
    x, y = data.fashion("train", limit=25)
    loss = Losses(models.build(models.MLP(width=2)), x, y, "test", batch=10)
    loss(params.of(loss.module), 2)
    assert set(loss.orders) == {1}


def test_fresh_networks_differ_between_seeds_numbers_and_master_seeds(monkeypatch):
    recipe = zoo.family("mlp-width-16")[0]
    seen = {fresh(recipe, seed, number).seed for seed in range(5) for number in range(10)}
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "1")
    seen |= {fresh(recipe, seed, number).seed for seed in range(5) for number in range(10)}
    assert len(seen) == 100
    weight = begun(recipe)["head.weight"]
    assert not torch.equal(weight, begun(fresh(recipe, 0, 0))["head.weight"])


def test_the_counterfactual_cue_shows_another_class():
    x, y = data.fashion("test", limit=20)
    right, wrong = (CUES[name](x, y)[0] for name in ("cued", "counterfactual"))
    shown = CUES["cued"](x, (y + 1) % 10)[0]
    assert torch.equal(wrong, shown) and not torch.equal(wrong, right)
    assert CUES["clean"] is None


def test_every_seed_has_the_same_rows_but_for_the_plane_of_the_first(table):
    columns = ["part", "group", "kind", "x", "measure"]
    parts = table[table.part != "plane"].groupby("seed")
    sets = [set(map(tuple, part[columns].to_numpy().tolist())) for _, part in parts]
    assert len(sets) == 5 and all(each == sets[0] for each in sets)
    assert set(table[table.part == "plane"].seed) == {0}


def test_every_part_is_whole(table):
    curves = table[(table.part == "curves") & (table.x >= 0)]
    assert set(curves.group) == CURVES and set(curves.kind) == {"train", "test"}
    features = table[table.part == "features"]
    assert set(features.group) == set(KINDS)
    assert set(table[table.part == "tuning"].x) == set(RATES)
    assert set(table[table.measure == "straightness"].x) == {-1, *PULLS}
    assert set(table[table.part == "mechanisms"].kind) >= set(CUES)


def test_measures_are_in_their_range(table):
    value = table.groupby("measure").value
    low, high = value.min(), value.max()
    for measure in ("error", "ensemble error", "disagreement"):
        assert low[measure] >= 0 and high[measure] <= 100
    assert low["straightness"] >= 1 and low["detour"] >= 1
    assert low["barrier"] >= 0 and low["apart"] >= 0
    assert 0 <= low["cka"] and high["cka"] <= 1


def test_ends_of_all_curves_are_the_same_networks(table):
    ends = table[(table.part == "curves") & table.x.isin([0, 1])]
    for _, same in ends.groupby(["seed", "kind", "x", "measure"]):
        assert same.value.nunique() == 1


def test_the_study_names_itself():
    assert connectivity.STUDY.name == "connectivity" and "connectivity" in studies.names()
