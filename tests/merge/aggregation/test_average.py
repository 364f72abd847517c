"""The average of networks."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


@given(seed=seeds, number=st.integers(1, 8))
def test_the_average_of_copies_is_the_copy(draw_model, seed, number):
    model = draw_model(seed)
    merged = average([model] * number)
    for key in model:
        torch.testing.assert_close(merged[key], model[key], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(seed=seeds, number=st.integers(1, 8))
def test_in_half_precision_it_is_the_copy_exactly(draw_model, dtype, seed, number):
    model = draw_model(seed, dtype)
    merged = average([model] * number)
    assert all(torch.equal(merged[k], model[k]) and merged[k].dtype == model[k].dtype
               for k in model)  # fmt: skip


@given(seed=seeds)
@settings(max_examples=20)
def test_the_order_does_not_matter_up_to_rounding(draw_model, seed):
    models, weights = [draw_model(seed + i) for i in range(4)], [1.0, 2.0, 0.5, 3.0]
    first = average(models, weights=weights)
    for order in itertools.permutations(range(4)):
        other = average([models[i] for i in order], weights=[weights[i] for i in order])
        for key in ("w", "b"):
            torch.testing.assert_close(first[key], other[key], rtol=0, atol=16 * EPS)


@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_only_the_proportions_of_weights_count(draw_model, seed, factor):
    models = [draw_model(seed), draw_model(seed + 1)]
    for key in ("w", "b"):
        torch.testing.assert_close(
            average(models, weights=[1, 3])[key],
            average(models, weights=[factor, 3 * factor])[key],
            rtol=0, atol=8 * EPS,
        )  # fmt: skip


def test_it_is_the_weighted_mean(draw_model, device):
    models = [draw_model(i, device=device) for i in range(3)]
    merged = average(models, weights=[1, 0, 3])
    for key in ("w", "b"):
        expected = (models[0][key].double().cpu() + 3 * models[2][key].double().cpu()) / 4
        torch.testing.assert_close(merged[key].cpu().double(), expected, rtol=0, atol=4 * EPS)
    assert merged["steps"] is models[0]["steps"]


def test_the_models_are_not_changed(draw_model):
    models = [draw_model(0), draw_model(1)]
    before = [{k: t.clone() for k, t in m.items()} for m in models]
    average(models)
    assert all(torch.equal(m[k], b[k]) for m, b in zip(models, before, strict=True) for k in m)


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1, 1], [], [0, 0], [1, -1], [math.nan, 1], [math.inf, 1], [math.inf, -math.inf]],
    ids=str,
)
def test_unusable_weights_are_shown(draw_model, weights):
    with pytest.raises(ArgumentError, match="weights: found .* for 2 models; expected one finite"):
        average([draw_model(0), draw_model(1)], weights=weights)


def test_models_that_do_not_match_are_named_by_their_place(draw_model):
    with pytest.raises(ArgumentError, match="models: found no models"):
        average([])
    with pytest.raises(ArgumentError, match=r"models\[1\]\['w'\]: found dtype torch.float16"):
        average([draw_model(0), draw_model(1, torch.float16)])
    with pytest.raises(ArgumentError, match=r"models\[2\]: found keys missing \['b'\]"):
        average(
            [draw_model(0), draw_model(1), {k: t for k, t in draw_model(2).items() if k != "b"}]
        )
    with pytest.raises(ArgumentError, match=r"models\[1\]\['w'\]: found a tensor on meta"):
        average([draw_model(0), draw_model(1, device="meta")])
    broken = draw_model(1)
    broken["b"][2] = math.nan
    with pytest.raises(ArgumentError, match=r"models\[1\]\['b'\]: found 1 of 3 entries NaN"):
        average([draw_model(0), broken])
