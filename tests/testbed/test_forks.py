"""Forks: a run that is stopped and gone on with is the run that was never stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.testbed import forks, models, training
from sokmerge.testbed.adapters import LowRank

RUNS = {
    "mlp": {"arch": models.MLP(width=4, depth=1)},
    "sgd": {"arch": models.PlainCNN(channels=(4, 4)), "optimizer": "sgd", "lr": 0.05},
    "adam": {"arch": models.PlainCNN(channels=(4, 4))},
    "batch": {"arch": models.ResidualCNN(norm="batch", channels=(4, 6)), "optimizer": "sgd"},
    "cyclic": {"arch": models.MLP(width=4, depth=1), "schedule": "cyclic", "cycle": 1},
    "constant": {"arch": models.MLP(width=4, depth=1), "schedule": "constant"},
}


def _equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def _params_of(state):
    """The parameters of a state of a network without buffers."""
    return state.params


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_stopping_changes_nothing(tiny, settings):
    """Two epochs of two steps, stopped at the start, within an epoch, between two, at the end."""
    recipe = tiny(epochs=2, **settings)
    states = forks.trajectory(recipe, [0, 1, 2, 3, 4])
    whole = training.fine_tune(recipe, models.build(recipe.arch, recipe.seed).state_dict())
    assert forks.steps(recipe) == 4 and _equal(states[4].params, whole)
    assert _equal(training.round_to_half(states[4].params), training.train(recipe).state)
    for step, state in states.items():
        before = {name: tensor.clone() for name, tensor in state.params.items()}
        assert _equal(forks.resume(recipe, state, order_seed=recipe.order_seed), whole)
        assert _equal(state.params, before) and state.step == step
        assert _equal(forks.resume(recipe, state, order_seed=recipe.order_seed), whole)


def test_a_run_can_be_gone_on_with_up_to_a_step(tiny):
    recipe = tiny(epochs=2)
    states = forks.trajectory(recipe, [1, 3])
    assert _equal(forks.resume(recipe, states[1], order_seed=0, until=3), _params_of(states[3]))
    assert _equal(forks.resume(recipe, states[1], order_seed=0, until=1), _params_of(states[1]))


def test_children_differ_by_their_order_and_come_from_one_state(tiny):
    recipe = tiny(epochs=2)
    states = forks.trajectory(recipe, [1, 4])
    children = [forks.resume(recipe, states[1], order_seed=seed) for seed in (1, 2, 1)]
    assert _equal(children[0], children[2]) and not _equal(children[0], children[1])
    assert not _equal(children[0], _params_of(states[4]))
    last = forks.resume(recipe, states[4], order_seed=9)
    assert _equal(last, _params_of(states[4]))


def test_what_is_left_of_an_epoch_stands_in_the_new_order(tiny):
    """After step 1 of 2, the child's step is on the second batch of its own order."""
    recipe = tiny(optimizer="sgd", lr=0.1, schedule="constant", batch=100)
    state = forks.trajectory(recipe, [1])[1]
    child = forks.resume(recipe, state, order_seed=5)
    x, y = training.inputs_of(recipe, "train")
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))[100:]
    module = models.build(recipe.arch)
    module.load_state_dict(state.params)
    torch.nn.functional.cross_entropy(module(x[order]), y[order]).backward()
    buffers = state.optimizer["state"]
    for number, (name, weight) in enumerate(module.named_parameters()):
        velocity = 0.9 * buffers[number]["momentum_buffer"] + weight.grad
        expected = weight.detach() - 0.1 * (weight.grad + 0.9 * velocity)
        torch.testing.assert_close(child[name], expected)


def test_a_changed_state_is_where_the_child_starts(tiny):
    recipe = tiny(epochs=1)
    state = forks.trajectory(recipe, [1])[1]
    moved = replace(state, params={n: t + 0.1 for n, t in state.params.items()})
    still = forks.resume(recipe, moved, order_seed=0, until=1)
    assert _equal(still, _params_of(moved))


def test_other_images_and_another_start_are_taken(tiny):
    recipe, start = tiny(), params.of(models.build(tiny().arch, seed=8))
    x, y = training.inputs_of(tiny(limit=100), "train")
    run = forks.trajectory(recipe, [0, 1], start=start, inputs=x, targets=y)
    assert _equal(run[0].params, start)
    assert _equal(run[1].params, training.fine_tune(recipe, start, x, y))
    assert _equal(forks.resume(recipe, run[0], order_seed=0, inputs=x, targets=y), run[1].params)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_masked_weights_are_zero_and_take_no_part(tiny, optimizer):
    """Pruning a whole hidden unit is training a network without that unit."""
    recipe = tiny(epochs=2, optimizer=optimizer, lr=0.01)
    start = params.of(models.build(recipe.arch, seed=3))
    keep = torch.tensor([1.0, 0.0, 1.0, 1.0])
    mask = {"hidden.0.weight": keep[:, None].expand(4, 784), "hidden.0.bias": keep,
            "head.weight": keep.expand(10, 4)}  # fmt: skip
    states = forks.trajectory(recipe, [0, 2, 4], start=start, mask=mask)
    for state in states.values():
        assert all(not (state.params[name] * (1 - mask[name])).any() for name in mask)
    again = forks.resume(recipe, states[2], order_seed=0, mask=mask)
    assert _equal(again, _params_of(states[4]))

    small = tiny(arch=models.MLP(width=3, depth=1), epochs=2, optimizer=optimizer, lr=0.01)
    rows = keep.bool()
    cut = {"hidden.0.weight": start["hidden.0.weight"][rows],
           "hidden.0.bias": start["hidden.0.bias"][rows],
           "head.weight": start["head.weight"][:, rows],
           "head.bias": start["head.bias"]}  # fmt: skip
    there = training.fine_tune(small, cut)
    torch.testing.assert_close(again["head.weight"][:, rows], there["head.weight"])


def test_what_cannot_be_is_named(tiny):
    recipe = tiny()
    with pytest.raises(ArgumentError, match="^keep: found no step"):
        forks.trajectory(recipe, [])
    with pytest.raises(ArgumentError, match="^step: found 3; expected 2 to 2"):
        forks.trajectory(recipe, [2, 3])
    state = forks.trajectory(recipe, [2])[2]
    with pytest.raises(ArgumentError, match="^step: found 1; expected 2 to 2, steps to come"):
        forks.resume(recipe, state, order_seed=0, until=1)
    adapted = tiny(start=recipe, adapter=LowRank(2))
    with pytest.raises(ArgumentError, match="^recipe: found the adapter"):
        forks.trajectory(adapted, [0])
