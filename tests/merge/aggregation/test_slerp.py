"""Spherical interpolation: its ends, its norm, its angle."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation import average, slerp

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=seeds)
def test_the_ends_are_exact(draw_model, dtype, seed):
    a, b = draw_model(seed, dtype), draw_model(seed + 1, dtype)
    for alpha, end in ((0, a), (0.0, a), (1, b), (1.0, b)):
        merged = slerp([a, b], alpha=alpha)
        for key in ("w", "b"):
            assert torch.equal(merged[key], end[key]) and merged[key].dtype == dtype
        assert merged["steps"] is a["steps"]


@given(seed=seeds, alpha=st.floats(0, 1))
def test_between_copies_lies_the_copy(draw_model, seed, alpha):
    model = draw_model(seed)
    assert all(torch.equal(slerp([model, model], alpha=alpha)[k], model[k]) for k in model)


@given(seed=seeds, alpha=st.floats(0, 1))
def test_on_a_sphere_the_norm_stays_and_the_angle_grows_evenly(draw_model, seed, alpha):
    models = draw_model(seed), draw_model(seed + 1)
    a, b = ({k: m[k] / m[k].norm() for k in ("w", "b")} for m in models)
    merged = slerp([a, b], alpha=alpha)
    for key in ("w", "b"):
        x, y, z = (p[key].double().flatten() for p in (a, b, merged))
        assert z.norm().item() == pytest.approx(1, abs=8 * EPS)
        whole, part = (torch.acos((x @ v / x.norm() / v.norm()).clamp(-1, 1)) for v in (y, z))
        assert part.item() == pytest.approx(alpha * whole.item(), abs=1e-3)


@given(seed=seeds, alpha=st.floats(0, 1))
def test_the_way_back_is_the_same(draw_model, seed, alpha):
    a, b = draw_model(seed), draw_model(seed + 1)
    there, back = slerp([a, b], alpha=alpha), slerp([b, a], alpha=1 - alpha)
    for key in ("w", "b"):
        torch.testing.assert_close(there[key], back[key], rtol=1e-4, atol=1e-4)


def test_a_quarter_circle(device):
    a, b = ({"w": torch.tensor(w, device=device)} for w in ([[3.0, 0.0]], [[0.0, 3.0]]))
    expected = 3 * torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]], device=device)
    torch.testing.assert_close(slerp([a, b], alpha=1 / 3)["w"], expected)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-2.0, -4.0]), ([1.0, 2.0], [0.0, 0.0]),
     ([0.0, 0.0], [1.0, 2.0]), ([0.0, 0.0], [0.0, 0.0]), ([1.0, 2.0], [1.00001, 2.0])],
)  # fmt: skip
def test_where_there_is_no_arc_it_is_the_line(x, y):
    a, b = {"w": torch.tensor(x)}, {"w": torch.tensor(y)}
    expected = average([a, b], weights=[3, 1])["w"]
    torch.testing.assert_close(slerp([a, b], alpha=0.25)["w"], expected, rtol=2 * EPS, atol=0)


def test_wrong_arguments_are_named(draw_model):
    model = draw_model(0)
    with pytest.raises(ArgumentError, match="models: found 3 models; expected two"):
        slerp([model] * 3)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match=f"alpha: found {alpha}; expected a number from 0"):
            slerp([model, model], alpha=alpha)
    with pytest.raises(ArgumentError, match=r"models\[1\]\['w'\]: found dtype torch.float16"):
        slerp([model, draw_model(1, torch.float16)])
