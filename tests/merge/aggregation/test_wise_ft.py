"""WiSE-FT: a line from the base."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, task_arithmetic, wise_ft

EPS = torch.finfo(torch.float32).eps


def test_the_ends_are_exact(draw_model):
    base, models = draw_model(0), [draw_model(1)]
    assert torch.equal(wise_ft(models, base=base, alpha=0)["w"], base["w"])
    assert torch.equal(wise_ft(models, base=base, alpha=1)["w"], models[0]["w"])
    assert wise_ft(models, base=base)["steps"] is base["steps"]
    several = [draw_model(1), draw_model(2)]
    assert torch.equal(wise_ft(several, base=base, alpha=1)["w"], average(several)["w"])


@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
@settings(max_examples=20)
def test_it_is_a_scaled_task_vector(draw_model, seed, alpha):
    base, model = draw_model(seed), draw_model(seed + 1)
    found = wise_ft([model], base=base, alpha=alpha)
    expected = task_arithmetic([model], base=base, scale=alpha)
    for key in ("w", "b"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=16 * EPS)
    again = wise_ft([base], base=base, alpha=alpha)
    assert torch.equal(again["w"], base["w"])


def test_unusable_arguments_are_named(draw_model):
    with pytest.raises(ArgumentError, match="alpha: found 1.1"):
        wise_ft([draw_model(1)], base=draw_model(0), alpha=1.1)
    with pytest.raises(ArgumentError, match="models: found no models"):
        wise_ft([], base=draw_model(0))
    with pytest.raises(ArgumentError, match="base: found keys missing"):
        wise_ft([draw_model(1)], base={"w": draw_model(0)["w"]})
