"""The taxonomy is data, said once beside each function."""

from __future__ import annotations

import pytest

from sokmerge import merge
from sokmerge.errors import ArgumentError, UnknownNameError
from sokmerge.merge import taxonomy

MINE = {"branch": "weight aggregation", "paper": "me2026", "scope": "entry", "equation": "x"}


@pytest.fixture
def _restored(monkeypatch):
    monkeypatch.setattr(taxonomy, "_declared", dict(taxonomy._declared))


def test_what_is_declared_is_what_is_exported():
    for declared in merge.methods():
        assert getattr(merge, declared.name) is declared.function
        assert declared.function.__doc__ and declared.paper and declared.equation


def test_a_declaration_names_its_chapter_and_its_defaults():
    assert merge.declaration("ties").chapter == "task-vectors"
    assert merge.declaration("weight_matching").chapter == "neuron-alignment"
    assert merge.declaration("ties").defaults["density"] == 0.2
    assert "base" not in merge.declaration("ties").defaults


def test_they_come_by_branch_and_then_by_name():
    found = [(d.branch, d.name) for d in merge.methods()]
    branches = ["ensembling", "weight aggregation", "neuron alignment"]
    assert found == sorted(found, key=lambda pair: (branches.index(pair[0]), pair[1]))
    assert ("weight aggregation", "average") in found
    assert found[0][0] == "ensembling" and found[-1][0] == "neuron alignment"
    assert merge.declaration("weight_matching").needs == ("symmetry",)
    assert merge.declaration("activation_matching").returns == "permutation"


def test_a_declaration_leaves_the_function_as_it_is(_restored):
    def mine(models):
        return models[0]

    assert taxonomy.method(**MINE)(mine) is mine
    assert merge.declaration("mine").function is mine


def test_an_unknown_method_is_named_with_those_there_are():
    with pytest.raises(UnknownNameError, match="found 'avrage'; expected one of .*average"):
        merge.declaration("avrage")


def test_a_name_is_declared_once(_restored):
    def average(models):
        return models[0]

    with pytest.raises(ArgumentError, match="average: found a method of that name in sokmerge"):
        taxonomy.method(**MINE)(average)
    assert merge.declaration("average").function is merge.average


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"branch": "alchemy"}, "branch: found 'alchemy'; expected one of"),
        ({"needs": ("gold",)}, "needs: found 'gold'"),
        ({"returns": "lead"}, "returns: found 'lead'"),
        ({"scope": "world"}, "scope: found 'world'"),
    ],
)
def test_words_outside_the_taxonomy_are_named(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        taxonomy.method(**{**MINE, **wrong})
