"""Attacks: closed forms, properties, a second implementation, and what must be refused."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.probe.adversarial import fgsm, pgd

BOX = (-1.0, 1.0)
X = torch.rand(20, 3, generator=params.stream("inputs"), dtype=torch.float64) * 2 - 1
Y = torch.randint(4, (20,), generator=params.stream("targets"))
NET = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
POINT = params.scale(params.normal_like(params.of(NET), 1), 1.5)

seeds = st.integers(0, 2**31)
few = settings(max_examples=10, deadline=None)


def _linear(seed):
    """Two classes with logits w x and 0, and targets that are all right."""
    net = nn.Linear(3, 2, bias=False).double().eval()
    w = torch.randn(3, generator=params.stream(f"w:{seed}"), dtype=torch.float64)
    return Network(net), {"weight": torch.stack([w, 0 * w])}, w, (X @ w <= 0).long()


def _attack(steps=7, key="a", network=None, point=POINT, **how):
    given = {"epsilon": 0.2, "bounds": BOX, "steps": steps, "key": key} | how
    return pgd(network or Network(NET), point, X, Y, **given)


@few
@given(seeds, st.floats(0, 0.9))
def test_of_two_linear_classes_the_worst_point_is_a_corner(seed, epsilon):
    """Margin m(x) = +-w x falls by epsilon |w|_1 where the box is not cut off: x - eps sign."""
    network, point, w, y = _linear(seed)
    inner, away = 0.1 * X, torch.where(y == 0, -1.0, 1.0)[:, None] * w.sign()
    worst = inner + epsilon * away
    how = {"epsilon": epsilon, "bounds": BOX}
    one = fgsm(network, point, inner, y, **how)
    many = pgd(network, point, inner, y, steps=4, key=f"{seed}", **how)
    for found in (one, many):
        torch.testing.assert_close(found.inputs, worst)
        margin = (inner @ w).abs() - epsilon * w.abs().sum()
        torch.testing.assert_close(found.loss, F.softplus(-margin))
        clear = margin.abs() > 1e-9
        assert torch.equal(found.success[clear], (margin < 0)[clear])


@few
@given(seeds, st.floats(0, 3), st.floats(0.01, 5), st.integers(0, 4))
def test_no_point_leaves_the_box(seed, epsilon, size, steps):
    found = _attack(steps, f"{seed}", epsilon=epsilon, step_size=size)
    assert float((found.inputs - X).abs().max()) <= epsilon + 1e-12
    assert BOX[0] <= float(found.inputs.min()) and float(found.inputs.max()) <= BOX[1]


@few
@given(seeds, st.integers(0, 6))
def test_more_steps_and_more_restarts_never_find_less(seed, steps):
    how = {"step_size": 0.05, "key": f"{seed}"}
    less = _attack(steps, **how)
    for more in (_attack(steps + 1, **how), _attack(steps, restarts=3, **how)):
        assert bool((more.success | ~less.success).all())
        alike = more.success == less.success
        assert bool((more.loss >= less.loss)[alike].all())
        assert more.accuracy <= less.accuracy


def test_a_second_implementation_one_input_at_a_time():
    """Written out, with backward passes of its own: FGSM, and PGD with two restarts."""
    epsilon, size, steps = 0.3, 0.1, 5
    one = fgsm(Network(NET), POINT, X, Y, epsilon=epsilon, bounds=BOX)
    many = _attack(steps, "two", epsilon=epsilon, step_size=size, restarts=2, chunk=7)
    starts = [torch.rand(X.shape, generator=params.stream(f"two:{r}")) * 2 - 1 for r in (0, 1)]

    def look(x, y):
        leaf = x.clone().requires_grad_()
        logits = functional_call(NET, POINT, (leaf[None],))
        height = F.cross_entropy(logits, y[None])
        height.backward()
        return (bool(logits.argmax() != y), height.item()), leaf.grad.sign()

    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        slope = look(x, y)[1]
        moved = (x + epsilon * slope).clamp(*BOX)
        torch.testing.assert_close(one.inputs[i], moved)
        assert look(moved, y)[0] == (bool(one.success[i]), pytest.approx(float(one.loss[i])))
        seen = [(look(x, y)[0], x)]
        for start in starts:
            here = torch.clamp(x + epsilon * start[i].double(), *BOX)
            for _ in range(steps):
                found, slope = look(here, y)
                seen.append((found, here))
                here = (here + size * slope).clamp(x - epsilon, x + epsilon).clamp(*BOX)
            seen.append((look(here, y)[0], here))
        (errs, height), best = max(seen, key=lambda each: each[0])
        assert bool(many.success[i]) == errs and float(many.loss[i]) == pytest.approx(height)
        torch.testing.assert_close(many.inputs[i], best)


def test_what_is_found_is_there_and_accuracy_counts_it():
    found = _attack()
    logits = functional_call(NET, POINT, (found.inputs,))
    assert torch.equal(found.success, logits.argmax(1) != Y) and found.n == len(X)
    torch.testing.assert_close(found.loss, F.cross_entropy(logits, Y, reduction="none"))
    right = 1 - found.success.double().mean().item()
    assert found.accuracy == right
    expected = found.success.double().std().item() / math.sqrt(found.n)
    assert found.accuracy_stderr == pytest.approx(expected)


def test_without_room_nothing_changes_and_a_whole_box_breaks_what_can_be_broken():
    """With weights of both signs in each logit, some point of the bounds has any class."""
    still = _attack(epsilon=0.0)
    torch.testing.assert_close(still.inputs, X)
    wrong = functional_call(NET, POINT, (X,)).argmax(1) != Y
    assert torch.equal(still.success, wrong)
    network, point, _, y = _linear(0)
    all_of_it = pgd(network, point, X, y, epsilon=2.0, steps=5, bounds=BOX, key="all")
    assert all_of_it.accuracy == 0


def test_steps_of_no_number_are_noise_which_is_weaker():
    noise, climbed = _attack(0), _attack(7)
    assert not torch.equal(noise.inputs, X) and noise.accuracy >= climbed.accuracy
    assert float(noise.loss.mean()) < float(climbed.loss.mean())
    assert torch.equal(noise.inputs, _attack(0).inputs)
    assert not torch.equal(noise.inputs, _attack(0, "b").inputs)


def test_a_unit_for_each_entry():
    """Inputs divided by sigma, attacked by epsilon / sigma, are what was attacked before."""
    sigma = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    scaled = POINT | {"0.weight": POINT["0.weight"] * sigma}
    how = {"steps": 6, "key": "u"}
    found = pgd(
        Network(NET), scaled, X / sigma, Y, epsilon=0.3 / sigma,
        bounds=(-1 / sigma, 1 / sigma), **how,
    )  # fmt: skip
    torch.testing.assert_close(found.inputs * sigma, _attack(6, "u", epsilon=0.3).inputs)


def test_statistics_are_those_of_the_given_inputs():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).double().eval()
    point = params.normal_like(params.of(net), 2)
    found = pgd(Network(net), point, X, Y, epsilon=0.2, steps=2, bounds=BOX, key="b", chunk=3)
    state = Network(net).state(point, X)
    logits = functional_call(net, state, (found.inputs,))
    assert torch.equal(found.success, logits.argmax(1) != Y)
    other = fgsm(Network(net), point, X, Y, epsilon=0.2, bounds=BOX, calibration=3 * X)
    assert not torch.equal(
        other.loss, fgsm(Network(net), point, X, Y, epsilon=0.2, bounds=BOX).loss
    )


def test_another_loss_is_climbed():
    """Made large where the target's logit is small, with no regard to the others."""

    def sunk(outputs, targets, reduction):
        return -outputs.gather(1, targets[:, None]).squeeze(1)

    one = _attack(loss=sunk)
    logits = functional_call(NET, POINT, (one.inputs,))
    torch.testing.assert_close(one.loss, sunk(logits, Y, "none"))


@pytest.mark.parametrize(
    ("error", "how"),
    [
        ("^epsilon: found -0.1; expected 0 or more", {"epsilon": -0.1}),
        ("^bounds: found inputs outside", {"bounds": (0.0, 1.0)}),
        ("^bounds: found a width of -2", {"bounds": (1.0, -1.0)}),
        ("^steps: found -1 steps", {"steps": -1}),
        ("^restarts: found 7 steps from 0", {"restarts": 0}),
        ("^targets: found shape", {"chunk": 0}),
        ("^params: found keys missing", {"point": {"0.weight": POINT["0.weight"]}}),
    ],
)
def test_what_cannot_be_attacked_is_refused(error, how):
    with pytest.raises(ArgumentError, match=error):
        _attack(**how)


def test_targets_must_be_one_for_each_input():
    with pytest.raises(ArgumentError, match="^targets: found shape"):
        fgsm(Network(NET), POINT, X, Y[:-1], epsilon=0.1, bounds=BOX)
