"""Population parameter averaging against its closed form."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import average, papa
from sokmerge.params import combine, lerp

EPS = torch.finfo(torch.float32).eps
seeds = st.integers(0, 2**31)


def _same(params):
    return params


@given(seed=seeds, rounds=st.integers(0, 5), rate=st.floats(0, 1))
@settings(max_examples=20)
def test_members_that_stand_still_come_together_and_keep_their_mean(draw_model, seed, rounds, rate):
    models = [draw_model(seed + i) for i in range(3)]
    population, mean = papa(models, [_same] * 3, rounds=rounds, rate=rate), average(models)
    left = (1 - rate) ** rounds
    for member, model in zip(population, models, strict=True):
        expected = combine([left, 1 - left], [model, mean])
        for key in ("w", "b"):
            torch.testing.assert_close(member[key], expected[key], rtol=0, atol=64 * EPS)
        assert torch.equal(member["steps"], model["steps"])


def test_without_a_pull_it_is_training_apart(draw_model):
    models, targets = [draw_model(0), draw_model(1)], [draw_model(2), draw_model(3)]
    steppers = [lambda params, t=t: lerp(params, t, 0.25) for t in targets]
    found = papa(models, steppers, rounds=4, rate=0)
    for member, model, step in zip(found, models, steppers, strict=True):
        for _ in range(4):
            model = step(model)
        assert all(torch.equal(member[key], model[key]) for key in model)


def test_papa_all_replaces_and_papa_2_takes_pairs(draw_model):
    models = [draw_model(i) for i in range(4)]
    mean = average(models)
    for member in papa(models, [_same] * 4, rate=1):
        assert torch.equal(member["w"], mean["w"])
    pairs = [average([models[i], models[j]])["w"] for i in range(4) for j in range(4) if i != j]
    found = papa(models, [_same] * 4, rate=1, partners=2, seed=1)
    for member in found:
        assert any(torch.allclose(member["w"], pair, atol=1e-6) for pair in pairs)
    again = papa(models, [_same] * 4, rate=1, partners=2, seed=1)
    other = papa(models, [_same] * 4, rate=1, partners=2, seed=2)
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(found, again, strict=True))
    assert any(not torch.equal(a["w"], b["w"]) for a, b in zip(found, other, strict=True))


def test_the_pull_keeps_noisy_members_together():
    generator = torch.Generator().manual_seed(0)

    def noisy(params):
        return {"w": params["w"] + torch.randn(50, generator=generator)}

    models = [{"w": torch.zeros(50)}] * 4

    def width(rate):
        members = torch.stack([m["w"] for m in papa(models, [noisy] * 4, rounds=200, rate=rate)])
        return float(members.std(0).mean())

    # A walk pulled back by 1 - rate has variance 1 / (1 - (1 - rate)^2) instead of the rounds.
    assert width(0.1) == pytest.approx((1 / (1 - 0.81)) ** 0.5 * 0.9, rel=0.25)
    assert width(0.0) > 4 * width(0.1)


def test_models_are_not_changed_and_unusable_arguments_are_named(draw_model):
    models = [draw_model(0), draw_model(1)]
    papa(models, [lambda params: {**params, "w": params["w"].zero_()}] * 2)
    assert torch.equal(models[0]["w"], draw_model(0)["w"])
    with pytest.raises(ArgumentError, match="steppers: found 1 for 2 models"):
        papa(models, [_same])
    with pytest.raises(ArgumentError, match="rate: found 1.5"):
        papa(models, [_same] * 2, rate=1.5)
    with pytest.raises(ArgumentError, match="partners: found 3"):
        papa(models, [_same] * 2, partners=3)
    with pytest.raises(ArgumentError, match="rounds: found -1"):
        papa(models, [_same] * 2, rounds=-1)
    with pytest.raises(ArgumentError, match="models: found no models"):
        papa([], [])
    with pytest.raises(ArgumentError, match=r"models\[1\].* NaN"):
        papa(models, [_same, lambda params: {**params, "w": params["w"] / 0}])
