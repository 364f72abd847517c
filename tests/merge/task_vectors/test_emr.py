"""EMR-Merging against numpy, entry by entry."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors import emr, task_vectors

EPS = torch.finfo(torch.float32).eps
SHAPES = {"w": (5, 4), "b": (5,)}
seeds = st.integers(0, 2**31)


def _models(seed, number=3, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    made = [
        {k: torch.randn(s, generator=generator).to(device, dtype) for k, s in SHAPES.items()}
        | {"steps": torch.tensor(i, device=device)}
        for i in range(number + 1)
    ]
    return made[0], made[1:]


def _oracle(models, base):
    """Every task's parameters, by going through the entries one at a time."""
    start = {k: base[k].double().numpy() for k in SHAPES}
    taus = [{k: m[k].double().numpy() - start[k] for k in SHAPES} for m in models]
    steps = [{k: np.zeros(s) for k, s in SHAPES.items()} for _ in models]
    for key in SHAPES:
        for index in np.ndindex(SHAPES[key]):
            values = [tau[key][index] for tau in taus]
            positive = sum(values) > 0
            agreeing = [v for v in values if v != 0 and (v > 0) == positive]
            elected = max(agreeing, key=abs)
            for i, v in enumerate(values):
                steps[i][key][index] = elected if v in agreeing else 0.0
    for own, tau in zip(steps, taus, strict=True):
        length = sum(np.abs(tau[k]).sum() for k in SHAPES)
        cover = sum(np.abs(own[k]).sum() for k in SHAPES)
        for key in SHAPES:
            own[key] = start[key] + own[key] * length / cover
    return steps


@given(seed=seeds, number=st.integers(1, 5))
@settings(max_examples=25)
def test_each_task_agrees_with_a_naive_oracle(seed, number):
    base, models = _models(seed, number)
    found = emr(models, base=base)
    for i, expected in enumerate(_oracle(models, base)):
        merged = found.task(i)
        assert merged["steps"] is base["steps"]
        for key in SHAPES:
            there = merged[key].double().numpy()
            np.testing.assert_allclose(there, expected[key], rtol=4 * EPS, atol=4 * EPS)


@given(seed=seeds)
def test_one_model_is_recovered(seed):
    base, [model] = _models(seed, 1)
    found = emr([model], base=base)
    assert float(found.rescalers[0]) == pytest.approx(1.0, abs=1e-12)
    for key in SHAPES:
        torch.testing.assert_close(found.task(0)[key], model[key], rtol=2 * EPS, atol=4 * EPS)


@given(seed=seeds)
def test_the_step_of_each_task_is_as_long_as_its_task_vector(seed):
    base, models = _models(seed)
    found = emr(models, base=base)
    steps = task_vectors([found.task(i) for i in range(3)], base)
    for own, tau in zip(steps, task_vectors(models, base), strict=True):
        lengths = [sum(float(v[k].double().abs().sum()) for k in SHAPES) for v in (own, tau)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)


def test_the_order_of_the_models_is_only_the_order_of_the_tasks():
    base, models = _models(0)
    found = emr(models, base=base)
    for order in itertools.permutations(range(3)):
        other = emr([models[i] for i in order], base=base)
        for place, i in enumerate(order):
            for key in SHAPES:
                torch.testing.assert_close(other.task(place)[key], found.task(i)[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_dtype_and_device(dtype, device):
    base, models = _models(0, dtype=dtype, device=device)
    found = emr(models, base=base)
    for key in SHAPES:
        assert found.task(0)[key].dtype == dtype and found.task(0)[key].device == base[key].device
        assert found.masks[0][key].dtype == torch.bool and found.unified[key].dtype == torch.float32


def test_a_task_without_a_say_gets_the_base():
    base = {"w": torch.zeros(2)}
    models = [{"w": torch.tensor([3.0, 2.0])}, {"w": torch.tensor([-1.0, 0.0])}]
    found = emr(models, base=base)
    assert found.task(1)["w"].tolist() == [0.0, 0.0] and float(found.rescalers[1]) == 0
    assert emr([base, base], base=base).task(0)["w"].tolist() == [0.0, 0.0]
    balanced = emr([models[0], {"w": -models[0]["w"]}], base=base)
    assert balanced.unified["w"].tolist() == [0.0, 0.0]
    nothing = {"steps": torch.tensor(1)}
    assert emr([nothing], base=nothing).task(0) == nothing


def test_refusals_name_the_argument():
    base, models = _models(0)
    with pytest.raises(ArgumentError, match="index: found 3; expected a task from 0 to 2"):
        emr(models, base=base).task(3)
    with pytest.raises(ArgumentError, match="models: found no models"):
        emr([], base=base)
