"""Recipes: their hash is stable and tells them apart, and unknown names bring suggestions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sokmerge.errors import ArgumentError, UnknownNameError
from sokmerge.testbed import recipes, tasks
from sokmerge.testbed.adapters import LowRank
from sokmerge.testbed.models import MLP, PlainCNN
from sokmerge.testbed.recipes import Recipe

RECIPE = Recipe("example", MLP(width=8), seed=1, order_seed=1)


def test_the_hash_does_not_change_from_day_to_day():
    assert RECIPE.canonical == (
        '{"arch":{"classes":10,"depth":3,"in_channels":1,"kind":"MLP","width":8},"batch":128,'
        '"epochs":20,"limit":null,"lr":0.001,"optimizer":"adam","order_seed":1,"procedure":1,'
        '"scale":"small","schedule":"cosine","seed":1,"tasks":[],"weight_decay":0.0}'
    )
    assert RECIPE.file_name == f"example-s1-{RECIPE.hash}.safetensors" and len(RECIPE.hash) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"arch": MLP(width=9)},
        {"arch": PlainCNN()},
        {"seed": 2},
        {"order_seed": 2},
        {"limit": 100},
        {"tasks": (tasks.Rotated(45),)},
        {"tasks": (tasks.PatchCue(),)},
        {"lr": 2e-3},
        {"epochs": 21},
        {"schedule": "constant"},
    ],
)
def test_each_field_enters_the_hash(change):
    assert replace(RECIPE, **change).hash != RECIPE.hash


def test_the_name_of_the_family_does_not():
    assert replace(RECIPE, family="renamed").hash == RECIPE.hash


def test_families_have_five_seeds_and_no_hash_twice():
    everything = [recipe for name in recipes.families() for recipe in recipes.family(name)]
    assert len({recipe.hash for recipe in everything}) == len(everything)
    assert {recipes.named(recipe.name) for recipe in everything} == {(r,) for r in everything}
    sizes = {name: len(recipes.family(name)) for name in recipes.families()}
    assert {name for name, size in sizes.items() if size == 1} == set(recipes.ALONG_ONE_RUN)
    assert set(sizes.values()) == {1, 5}


def test_what_not_every_run_has_enters_the_hash_where_it_is():
    child = replace(RECIPE, start=RECIPE)
    assert RECIPE.hash not in (child.hash, replace(child, adapter=LowRank(2)).hash)
    assert child.hash == replace(RECIPE, start=replace(RECIPE, family="renamed")).hash
    assert child.hash != replace(RECIPE, start=replace(RECIPE, seed=2)).hash
    cyclic = replace(RECIPE, schedule="cyclic", cycle=5)
    assert cyclic.hash != replace(cyclic, cycle=10).hash


def test_networks_of_one_seed_start_from_one_network_and_the_lone_ones_do_not():
    several = [name for name in recipes.families() if name not in recipes.ALONG_ONE_RUN]
    at = {name: recipes.family(name, master=0)[2] for name in several}
    together = [r for r in at.values() if r.start is not None]
    assert {r.start for r in together} == {at["broad"]} and len(together) == 19
    lone = [r.seed for name, r in at.items() if name.startswith("lone-")]
    assert len(set(lone)) == len(lone) == 6


def test_the_master_seed_makes_another_zoo(monkeypatch):
    shipped = recipes.family("cnn", master=0)
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "3")
    assert [recipe.seed for recipe in recipes.family("cnn")] == [3000, 3001, 3002, 3003, 3004]
    assert recipes.family("cnn", master=0) == shipped
    assert recipes.named("cnn-s2") == shipped[2:3]
    assert recipes.named("cnn-s3002") == recipes.family("cnn")[2:3]
    monkeypatch.setenv("SOKMERGE_MASTER_SEED", "many")
    with pytest.raises(ArgumentError, match="^SOKMERGE_MASTER_SEED: found 'many'"):
        recipes.family("cnn")


@pytest.mark.parametrize(
    ("name", "near"), [("mlp-widht-32", "mlp-width-32"), ("cnn-s9", "cnn-s"), ("CNN", "list")]
)
def test_an_unknown_name_brings_the_nearest(name, near):
    with pytest.raises(UnknownNameError, match=f"found '{name}'.*{near}"):
        recipes.named(name, master=0)
    with pytest.raises(UnknownNameError, match=f"^family: found '{name}'"):
        recipes.family(name)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "lion"},
        {"schedule": "warm"},
        {"lr": 0},
        {"batch": 0},
        {"epochs": 0},
        {"cycle": 5},
    ],
)
def test_a_wrong_setting_is_named(change):
    (field,) = change
    with pytest.raises(ArgumentError, match=rf"^Recipe\.{field}: found"):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schedule": "cyclic"}, "cycle"),
        ({"schedule": "cyclic", "cycle": 3}, "cycle"),
        ({"adapter": LowRank()}, "start"),
        ({"start": replace(RECIPE, arch=MLP(width=9))}, "start"),
    ],
)
def test_settings_that_do_not_go_together_are_named(change, field):
    with pytest.raises(ArgumentError, match=rf"^Recipe\.{field}: found"):
        replace(RECIPE, **change)
