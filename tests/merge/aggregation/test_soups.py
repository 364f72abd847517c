"""The greedy soup against its recipe."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation import average, greedy_soup

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


def _near(target):
    return lambda model: -float((model["w"] - target["w"]).square().sum())


@given(seed=seeds, number=st.integers(1, 6))
def test_of_copies_it_is_the_copy(draw_model, seed, number):
    model = draw_model(seed)
    merged = greedy_soup([model] * number, score=lambda _: 1.0)
    for key in ("w", "b"):
        torch.testing.assert_close(merged[key], model[key], rtol=4 * EPS, atol=0)


@given(seed=seeds)
def test_it_scores_at_least_as_well_as_the_best_and_in_any_order(draw_model, seed):
    models, score = [draw_model(seed + i) for i in range(4)], _near(draw_model(seed + 9))
    merged = greedy_soup(models, score=score)
    assert score(merged) >= max(map(score, models))
    for order in itertools.permutations(models):
        other = greedy_soup(order, score=score)
        assert all(torch.equal(merged[k], other[k]) for k in merged)


def test_what_does_no_harm_is_taken_in_and_what_does_is_left_out():
    models = [{"w": torch.tensor([w])} for w in (5.0, 2.0, -1.0, 1.0)]
    merged = greedy_soup(models, score=_near({"w": torch.tensor([1.5])}))
    assert merged["w"].item() == 1.5  # 2 and 1
    flat = greedy_soup(models, score=lambda _: 0.0)
    assert torch.equal(flat["w"], average(models)["w"])
    asked = []
    greedy_soup(models, score=lambda model: asked.append(model) or 0.0)
    assert len(asked) == 2 * len(models) - 1


def test_minus_infinity_is_a_score_and_nan_is_none(draw_model):
    models = [draw_model(0), draw_model(1)]
    merged = greedy_soup(models, score=lambda m: 0.0 if m is models[1] else -math.inf)
    assert torch.equal(merged["w"], models[1]["w"])
    with pytest.raises(ArgumentError, match=r"score: found NaN for models\[0\]"):
        greedy_soup(models, score=lambda _: math.nan)
    with pytest.raises(ArgumentError, match="models: found no models"):
        greedy_soup([], score=lambda _: 0.0)
