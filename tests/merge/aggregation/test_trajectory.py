"""Running means against their closed forms."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, ema, lawa, swa

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)
METHODS = [swa, ema, lambda points: ema(points, debias=True), lambda points: lawa(points, window=3)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(seed=seeds, number=st.integers(1, 6))
@settings(max_examples=10)
def test_the_mean_of_copies_is_the_copy(draw_model, method, dtype, seed, number):
    model = draw_model(seed, dtype)
    mean = method([model] * number)
    assert mean.keys() == model.keys() and mean["steps"] is model["steps"]
    for key in ("w", "b"):
        torch.testing.assert_close(mean[key], model[key], rtol=4 * EPS, atol=0)


@given(seed=seeds, number=st.integers(1, 7))
@settings(max_examples=20)
def test_swa_is_the_average_also_from_a_generator_and_in_two_parts(draw_model, seed, number):
    points = [draw_model(seed + i) for i in range(number)]
    whole = average(points)
    for found in (
        swa(iter(points)),
        swa(points[1:], mean=points[0], count=1) if number > 1 else swa(points),
        swa(points[number // 2 :], mean=swa(points[: number // 2]), count=number // 2)
        if number > 1
        else swa(points),
    ):
        for key in ("w", "b"):
            torch.testing.assert_close(found[key], whole[key], rtol=0, atol=16 * EPS)


@given(seed=seeds, number=st.integers(1, 7), decay=st.floats(0, 0.999))
@settings(max_examples=30)
def test_ema_has_its_closed_form(draw_model, seed, number, decay):
    points = [draw_model(seed + i) for i in range(number)]
    ages = np.arange(number)[::-1]
    by_age = decay**ages
    started = (1 - decay) * by_age
    started[0] = by_age[0]
    for found, weights in (
        (ema(points, decay=decay), started),
        (ema(points, decay=decay, debias=True), by_age / by_age.sum()),
    ):
        assert weights.sum() == pytest.approx(1)
        expected = sum(w * p["w"].double() for w, p in zip(weights, points, strict=True))
        torch.testing.assert_close(found["w"].double(), expected, rtol=0, atol=1e-6)


def test_without_decay_ema_is_the_last_point_and_lawa_forgets(draw_model):
    points = [draw_model(i) for i in range(5)]
    assert torch.equal(ema(points, decay=0)["w"], points[-1]["w"])
    assert torch.equal(lawa(points, window=1)["w"], points[-1]["w"])
    assert torch.equal(lawa(iter(points), window=2)["w"], average(points[3:])["w"])
    assert torch.equal(lawa(points, window=9)["w"], average(points)["w"])


def test_half_precision_is_rounded_once():
    # Added up in bfloat16, ones stop counting at 256.
    points = [{"w": torch.full((1,), float(i), dtype=torch.bfloat16)} for i in range(257)]
    assert swa(points)["w"].item() == 128
    assert swa(points)["w"].dtype == torch.bfloat16


def test_the_points_are_not_changed(draw_model):
    points = [draw_model(0), draw_model(1)]
    before = [{k: t.clone() for k, t in p.items()} for p in points]
    for method in METHODS:
        method(points)
    assert all(torch.equal(p[k], b[k]) for p, b in zip(points, before, strict=True) for k in p)


def test_what_cannot_be_averaged_is_named(draw_model):
    for method in METHODS:
        with pytest.raises(ArgumentError, match="points: found no points"):
            method(iter([]))
    broken = draw_model(1)
    broken["b"][2] = math.nan
    with pytest.raises(ArgumentError, match=r"points\[1\]\['b'\]: found 1 of 3 entries NaN"):
        swa([draw_model(0), broken])
    with pytest.raises(ArgumentError, match=r"points\[1\]\['w'\]: found dtype torch.float16"):
        ema([draw_model(0), draw_model(1, torch.float16)])
    with pytest.raises(ArgumentError, match="decay: found 1.0"):
        ema([draw_model(0)], decay=1.0)
    with pytest.raises(ArgumentError, match="window: found 0"):
        lawa([draw_model(0)], window=0)
    for wrong in ({"count": 2}, {"mean": draw_model(0)}, {"mean": draw_model(0), "count": -1}):
        with pytest.raises(ArgumentError, match="count: found"):
            swa([draw_model(1)], **wrong)
