"""Model Stock against its closed form and against the geometry from which it is derived."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation import average, model_stock

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


@given(seed=seeds, number=st.integers(2, 6))
def test_of_copies_it_is_the_copy(draw_model, seed, number):
    model = draw_model(seed)
    merged = model_stock([model] * number, base=draw_model(seed + 1))
    for key in ("w", "b"):
        torch.testing.assert_close(merged[key], model[key], rtol=4 * EPS, atol=4 * EPS)
    assert merged["steps"] is model["steps"]


@given(seed=seeds, number=st.integers(2, 4))
def test_the_ratio_is_that_of_the_mean_cosine_of_the_pairs(draw_model, seed, number):
    models, base = [draw_model(seed + i) for i in range(number)], draw_model(seed + 9)
    # A common part makes the models agree.
    models = [{k: t + base[k] if k != "steps" else t for k, t in m.items()} for m in models]
    merged, mean = model_stock(models, base=base), average(models)
    for key in ("w", "b"):
        changes = [(m[key].double() - base[key].double()).flatten() for m in models]
        cosines = [x @ y / x.norm() / y.norm() for x, y in itertools.combinations(changes, 2)]
        cosine = max(sum(cosines) / len(cosines), 0.0)
        t = number * cosine / ((number - 1) * cosine + 1)
        expected = t * mean[key].double() + (1 - t) * base[key].double()
        torch.testing.assert_close(merged[key].double(), expected, rtol=1e-6, atol=1e-6)


@given(seed=seeds, number=st.integers(2, 6), spread=st.floats(0.1, 10))
def test_it_is_the_foot_of_the_perpendicular_from_the_centre(seed, number, spread):
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    base = torch.randn(8, generator=generator, dtype=torch.float64)
    centre = base + frame[0]
    models = [{"w": centre + spread * frame[1 + i]} for i in range(number)]
    step = average(models)["w"] - base
    merged = model_stock(models, base={"w": base})["w"]
    assert ((merged - centre) @ step).item() == pytest.approx(0, abs=1e-10 * spread**2 + 1e-10)
    assert (merged - centre).norm() <= (average(models)["w"] - centre).norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_models_do_not_agree_it_is_the_base(dtype, device):
    base = {"w": torch.ones(2, dtype=dtype, device=device)}
    for steps in ([[1, 0], [0, 2]], [[1, 0], [-1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]):
        models = [{"w": base["w"] + torch.tensor(s, dtype=dtype, device=device)} for s in steps]
        assert torch.equal(model_stock(models, base=base)["w"], base["w"])


@given(seed=seeds)
def test_the_order_does_not_matter_up_to_rounding(draw_model, seed):
    models, base = [draw_model(seed + i) for i in range(3)], draw_model(seed + 9)
    first = model_stock(models, base=base)
    for order in itertools.permutations(models):
        for key in ("w", "b"):
            other = model_stock(order, base=base)[key]
            torch.testing.assert_close(first[key], other, rtol=4 * EPS, atol=4 * EPS)


def test_wrong_arguments_are_named(draw_model):
    with pytest.raises(ArgumentError, match="models: found 1 models; expected at least 2"):
        model_stock([draw_model(0)], base=draw_model(1))
    with pytest.raises(ArgumentError, match=r"base\['w'\]: found dtype torch.float16"):
        model_stock([draw_model(0), draw_model(1)], base=draw_model(2, torch.float16))
