"""Training: the same network twice, nothing global touched, and failures that are named."""

from __future__ import annotations

import pytest
import torch

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.testbed import models, tasks, training
from sokmerge.testbed.adapters import LowRank, Tangent

SMALL = {
    "mlp": models.MLP(width=4, depth=1),
    "cnn": models.PlainCNN(channels=(4, 4)),
    "batch": models.ResidualCNN(norm="batch", channels=(4, 6)),
    "layer": models.ResidualCNN(norm="layer", channels=(4, 6)),
}


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL)
def test_training_is_deterministic_and_leaves_no_trace(tiny, arch):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, second = (training.train(tiny(arch=arch)) for _ in range(2))
    assert first.train == second.train and first.test == second.test
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_both_seeds_matter(tiny):
    recipes = tiny(), tiny(seed=1, order_seed=0), tiny(order_seed=1)
    first, *others = (training.train(recipe).state["head.weight"] for recipe in recipes)
    assert not any(torch.equal(first, other) for other in others)


def test_training_learns_and_rounds_once(tiny, device):
    trained = training.train(tiny(arch=models.MLP(width=32), limit=2_000, epochs=4), device=device)
    assert trained.test.accuracy > 0.6 and trained.train.n == 2_000 and trained.test.n == 4_000
    for tensor in trained.state.values():
        assert torch.equal(tensor, tensor.half().float())


@pytest.mark.parametrize("settings", [{"optimizer": "sgd"}, {"schedule": "constant"}])
def test_other_settings_train_too(tiny, settings):
    epochs: list[int] = []
    trained = training.train(tiny(epochs=2, **settings), each_epoch=epochs.append)
    assert epochs == [1, 2] and trained.test.accuracy > 0.1


def test_tasks_are_part_of_training_and_test(tiny):
    recipe = tiny(tasks=(tasks.ClassSplit((0, 1)), tasks.ColourCue()))
    x, y = training.inputs_of(recipe, "train")
    assert x.shape == (40, 3, 28, 28) and set(y.tolist()) == {0, 1}
    assert len(training.inputs_of(recipe, "test")[1]) == 800
    with pytest.raises(ArgumentError, match=r"^recipe\.arch\.in_channels: found 1"):
        training.train(recipe)


@pytest.mark.parametrize("schedule", [{"schedule": "constant"}, {"schedule": "cyclic", "cycle": 1}])
def test_a_run_passes_through_the_networks_of_shorter_runs(tiny, schedule, monkeypatch):
    once, twice = (tiny(epochs=n, **schedule) for n in (1, 2))
    passed = {}

    def keep(epoch, params):
        passed[epoch] = training.round_to_half(params)

    training.fine_tune(twice, params.of(models.build(twice.arch, twice.seed)), each_epoch=keep)
    longer, shorter = training.train(twice), training.train(once)
    assert _equal(passed[1], shorter.state) and _equal(passed[2], longer.state)
    assert not _equal(passed[1], passed[2])


def test_a_run_with_a_start_begins_there(tiny):
    first = tiny()
    start = training.train(first).state
    child = tiny(start=first, lr=1e-9, optimizer="sgd")
    state = training.train(child, start=start).state
    assert _equal(state, start)
    with pytest.raises(ArgumentError, match="^start: found nothing; expected the state of tiny-s0"):
        training.train(child)
    with pytest.raises(ArgumentError, match="^start: found a state; expected None"):
        training.train(first, start=start)


def test_going_on_leaves_the_start_as_it_was_and_takes_any_images(tiny):
    recipe = tiny(limit=None)
    start = params.of(models.build(recipe.arch))
    before = {name: tensor.clone() for name, tensor in start.items()}
    x, y = training.inputs_of(tiny(), "train")
    there = training.fine_tune(recipe, start, x, y)
    assert _equal(before, start) and not _equal(start, there)
    assert _equal(there, training.fine_tune(tiny(), start))


def test_a_low_rank_run_saves_factors_and_a_tangent_run_parameters(tiny):
    first = tiny()
    start = training.train(first).state
    low = training.train(tiny(start=first, adapter=LowRank(2)), start=start)
    assert {k: tuple(t.shape) for k, t in low.state.items()} == {
        "hidden.0.down": (2, 784), "hidden.0.up": (4, 2), "head.down": (2, 4), "head.up": (10, 2),
    }  # fmt: skip
    tangent = training.train(tiny(start=first, adapter=Tangent()), start=start)
    assert tangent.state.keys() == start.keys()
    assert not torch.equal(tangent.state["head.weight"], start["head.weight"])


def test_divergence_is_named(tiny):
    with pytest.raises(ArgumentError, match="^recipe tiny-s0: found values that are not finite"):
        training.train(tiny(optimizer="sgd", lr=1e6, epochs=3))
