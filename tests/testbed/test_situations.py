"""The four situations differ in the start and in the task, and in nothing else."""

from __future__ import annotations

import pytest
import torch

from sokmerge.errors import ArgumentError
from sokmerge.testbed import situations, training


@pytest.mark.parametrize("name", situations.NAMES)
def test_the_name_says_what_it_is(name):
    told = situations.situation(name, 1, master=0)
    first, second = told.models
    assert (first.start == second.start == told.start) and (
        (told.start is None) == name.startswith("different starts")
    )
    assert (first.seed == second.seed) == name.startswith("same start")
    assert first.order_seed != second.order_seed and first.arch == second.arch == told.joint.arch
    assert (told.tasks == (None, None)) == name.endswith("same task")
    if told.start is not None:
        assert told.joint.start == told.start


@pytest.mark.parametrize("name", situations.NAMES)
def test_the_two_networks_have_together_seen_what_the_joint_one_has(name):
    told = situations.situation(name, 0, master=0)
    halves = [training.inputs_of(recipe, "train") for recipe in told.models]
    joint = training.inputs_of(told.joint, "train")
    assert sum(len(y) for _, y in halves) == len(joint[1])
    total = sum(x.double().sum() for x, _ in halves)
    torch.testing.assert_close(total, joint[0].double().sum())


def test_a_merge_is_judged_on_both_tasks():
    told = situations.situation("same start, different tasks", 0)
    x, y = told.inputs("test", limit=20)
    parts = [told.inputs_of(model, "test", limit=20) for model in (0, 1)]
    assert torch.equal(x, torch.cat([p for p, _ in parts])) and len(y) == 40
    same = situations.situation("same start, same task", 0)
    assert len(same.inputs("test", limit=20)[1]) == 20


@pytest.mark.parametrize(("name", "seed"), [("same", 0), (situations.NAMES[0], 7)])
def test_what_is_not_there_is_named(name, seed):
    with pytest.raises(ArgumentError, match="^(name|seed): found"):
        situations.situation(name, seed)
