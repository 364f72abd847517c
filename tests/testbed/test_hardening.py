"""Runs whose steps look for the worst nearby: without a search they are plain ones, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, grad
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.testbed import models, training
from sokmerge.testbed.hardening import Hardened, SharpnessAware, harden
from sokmerge.testbed.loop import MOMENTUM, Run
from sokmerge.testbed.recipes import Recipe

RECIPE = Recipe("example", models.MLP(6, depth=1), 3, 4, limit=40, batch=16, epochs=2)
IMAGES = training.inputs_of(RECIPE, "train")
START = params.of(models.build(RECIPE.arch, seed=3))


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_with_plain_steps_it_is_fine_tuning():
    plain = training.fine_tune(RECIPE, START)
    assert _same(harden(Run, RECIPE), plain)  # from the recipe's own start
    other = params.of(models.build(RECIPE.arch, seed=9))
    assert _same(harden(Run, RECIPE, other), training.fine_tune(RECIPE, other))
    assert not _same(plain, training.fine_tune(RECIPE, other))


def test_an_attack_sees_the_present_network_and_what_it_makes_is_trained_on():
    seen = []

    def attack(point, inputs, targets, step):
        seen.append((step, point["head.bias"].clone(), len(targets)))
        return inputs.flip(-1)

    found = harden(Hardened, RECIPE, START, attack=attack)
    x, y = IMAGES
    assert _same(found, harden(Run, RECIPE, START, x.flip(-1), y))
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4, 5]
    assert [n for *_, n in seen] == [16, 16, 8] * 2
    assert torch.equal(seen[0][1], START["head.bias"])
    assert not torch.equal(seen[1][1], START["head.bias"])


def test_without_a_radius_it_is_the_plain_run():
    assert _same(harden(SharpnessAware, RECIPE, START, radius=0.0), harden(Run, RECIPE, START))


def test_a_step_uses_the_gradient_of_the_worse_point():
    """Written out for one step of SGD with Nesterov momentum, of which the first is 1 + m long."""
    recipe = replace(RECIPE, optimizer="sgd", lr=0.1, batch=40, epochs=1, schedule="constant")
    module, (x, y) = models.build(recipe.arch), IMAGES

    def slope(point):
        return grad(lambda p: F.cross_entropy(functional_call(module, p, (x,)), y))(point)

    first = slope(START)
    worse = params.combine([1, 0.2 / float(params.norm(first))], [START, first])
    expected = params.combine([1, -0.1 * (1 + MOMENTUM)], [START, slope(worse)])
    found = harden(SharpnessAware, recipe, START, radius=0.2)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_radius_is_not_negative():
    with pytest.raises(ArgumentError, match="^radius: found -1"):
        harden(SharpnessAware, RECIPE, START, radius=-1)
