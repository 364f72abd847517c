"""Snapshots and fast geometric ensembles: the schedules, and which points are taken."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge import merge
from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling import cosine_cycle, triangular_cycle


@settings(max_examples=30)
@given(step=st.integers(0, 200), period=st.integers(1, 20), high=st.floats(1e-4, 10))
def test_the_cosine_begins_high_falls_and_returns(step, period, high):
    rate = cosine_cycle(step, period=period, high=high)
    assert 0 < rate <= high
    assert cosine_cycle(step + period, period=period, high=high) == rate
    if step % period == 0:
        assert rate == high
    else:
        assert rate < cosine_cycle(step - 1, period=period, high=high)


def test_the_cosine_is_that_of_the_optimiser():
    weight = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([weight], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, 5)
    for step in range(15):
        found = cosine_cycle(step, period=5, high=0.3)
        assert found == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()


@settings(max_examples=30)
@given(step=st.integers(1, 200), half=st.integers(1, 10), low=st.floats(1e-4, 1))
def test_the_triangle_is_low_in_the_middle_and_high_at_the_end(step, half, low):
    high, period = 3 * low, 2 * half
    rate = triangular_cycle(step, period=period, high=high, low=low)
    place = (step - 1) % period + 1
    assert rate == pytest.approx(low + (high - low) * abs(1 - place / half))
    if place == half:
        assert rate == pytest.approx(low)
    if place == period:
        assert rate == pytest.approx(high)


def _constant(c, value):
    zero = {k: torch.zeros_like(t) for k, t in c.base.items()}
    return {**zero, "3.bias": torch.tensor([value, 0.0, 0.0], dtype=torch.float64)}


def test_snapshots_are_the_ends_of_the_last_cycles(club):
    c = club(0)
    run = [_constant(c, float(t)) for t in range(1, 12)]  # three cycles of three, and a begun one
    found = merge.snapshot_ensemble(iter(run), module=c.module, period=3, last=2)
    wanted = merge.probability_ensemble([run[5], run[8]], module=c.module)
    assert found.passes == 2
    torch.testing.assert_close(found(c.inputs), wanted(c.inputs), rtol=0, atol=0)
    every = merge.snapshot_ensemble(run, module=c.module)
    assert every.passes == len(run)


def test_fge_takes_the_minima_of_the_rate(club):
    c, rates = club(0), []

    def train(point, rate):
        rates.append(rate)
        return {**point, "3.bias": point["3.bias"] + 1}

    start = _constant(c, 0.0)
    found = merge.fge([start], module=c.module, train=train, high=0.4, low=0.1, period=4, cycles=3)
    at = [{**start, "3.bias": start["3.bias"] + n} for n in (2, 6, 10)]
    wanted = merge.probability_ensemble(at, module=c.module)
    torch.testing.assert_close(found(c.inputs), wanted(c.inputs), rtol=0, atol=0)
    assert rates == pytest.approx([0.25, 0.1, 0.25, 0.4] * 2 + [0.25, 0.1])
    assert found.passes == 3


def test_runs_of_several_models_go_into_one_ensemble(club):
    c = club(0)
    found = merge.fge(
        c.models, module=c.module, train=lambda p, _: p, high=1.0, low=1.0, period=2, cycles=1
    )
    wanted = merge.probability_ensemble(c.models, module=c.module)
    torch.testing.assert_close(found(c.inputs), wanted(c.inputs))


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"period": 3}, "period"), ({"period": 0}, "period"), ({"low": 0.0}, "low"),
     ({"low": 2.0}, "low"), ({"cycles": 0}, "cycles")],
)  # fmt: skip
def test_cycles_that_cannot_be_used_are_refused(club, changed, name):
    c = club(0)
    how = {"train": lambda p, _: p, "high": 1.0, "low": 0.1, **changed}
    with pytest.raises(ArgumentError, match=f"^{name}"):
        merge.fge(c.models, module=c.module, **how)


def test_snapshots_that_cannot_be_used_are_refused(club):
    c = club(0)
    for how, name in (({"period": 0}, "period"), ({"last": 0}, "last"), ({"period": 9}, "models")):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            merge.snapshot_ensemble(c.models, module=c.module, **how)
    with pytest.raises(ArgumentError, match="^step"):
        cosine_cycle(-1, period=3, high=1.0)
    with pytest.raises(ArgumentError, match="^step"):
        triangular_cycle(0, period=2, high=1.0, low=0.5)
    assert math.isclose(cosine_cycle(0, period=1, high=2.0), 2.0)
