"""Low-rank modules: their factors, and the arithmetic on them."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import module_arithmetic, task_arithmetic
from sokmerge.merge.task_vectors import expand, low_rank

MATRICES = ("0.weight", "1.weight")
seeds = st.integers(0, 2**31)


@given(seed=seeds, rank=st.integers(1, 3))
@settings(max_examples=10)
def test_the_factors_of_a_low_rank_update_give_it_back(fleet, seed, rank):
    base, [model] = fleet(seed, 1, rank=rank)
    factors = low_rank(model, base=base, rank=rank)
    assert factors["0.up"].shape == (6, rank) and factors["1.down"].shape == (rank, 24)
    found = expand(factors, base=base)
    for key in MATRICES:
        torch.testing.assert_close(found[key], model[key])
    assert torch.equal(found["0.bias"], base["0.bias"]) and found["steps"] is base["steps"]


def test_of_any_update_they_are_the_best_approximation(fleet):
    base, [model] = fleet(0, 1)
    found = expand(low_rank(model, base=base, rank=2), base=base)
    for key in MATRICES:
        steps = [(m[key] - base[key]).reshape(len(base[key]), -1).numpy() for m in (model, found)]
        left = np.linalg.svd(steps[0], compute_uv=False)[2:]
        assert np.linalg.norm(steps[0] - steps[1]) == pytest.approx(np.linalg.norm(left))


@given(seed=seeds, scale=st.floats(-2, 2))
@settings(max_examples=10)
def test_sums_are_taken_factor_by_factor_and_a_sign_counts_once(fleet, seed, scale):
    base, models = fleet(seed, 2)
    modules = [low_rank(m, base=base, rank=2) for m in models]
    weights = [0.7, -0.4]
    merged = module_arithmetic(modules, base=base, scale=scale, weights=weights)
    for key in MATRICES:
        up, down = (key.replace("weight", part) for part in ("up", "down"))
        b = sum(w * m[up].numpy() for w, m in zip(weights, modules, strict=True))
        a = sum(abs(w) * m[down].numpy() for w, m in zip(weights, modules, strict=True))
        expected = base[key].numpy() + scale * (b @ a).reshape(base[key].shape)
        np.testing.assert_allclose(merged[key].numpy(), expected, atol=1e-12)


def test_copies_are_themselves_and_a_negated_module_is_its_mirror_image(fleet):
    base, [model] = fleet(0, 1, rank=2)
    module = low_rank(model, base=base, rank=2)
    same = module_arithmetic([module] * 3, base=base)
    mirrored = module_arithmetic([module], base=base, weights=[-1])
    for key in MATRICES:
        torch.testing.assert_close(same[key], model[key])
        torch.testing.assert_close(mirrored[key], 2 * base[key] - model[key])


def test_sums_of_products_are_task_arithmetic_and_products_of_sums_are_not(fleet):
    base, models = fleet(0, 2, rank=2)
    modules = [low_rank(m, base=base, rank=2) for m in models]
    grown = [expand(m, base=base) for m in modules]
    total = task_arithmetic(grown, base=base)
    factors = module_arithmetic(modules, base=base, weights=[1, 1])
    for key in MATRICES:
        up, down = (key.replace("weight", part) for part in ("up", "down"))
        cross = modules[0][up] @ modules[1][down] + modules[1][up] @ modules[0][down]
        torch.testing.assert_close(factors[key] - total[key], cross.reshape(base[key].shape))
        assert cross.abs().max() > 0.1


def test_half_precision_bases_have_factors_in_single(fleet):
    base, [model] = fleet(0, 1, dtype=torch.bfloat16)
    factors = low_rank(model, base=base, rank=1)
    assert {f.dtype for f in factors.values()} == {torch.float32}
    assert expand(factors, base=base)["0.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {}, r"models\[0\]: found no parameters|models\[0\]: found no factors"),
        (lambda m: {**m, "9.up": m["0.up"]}, r"found entries \['9.up'\] that fit no matrix"),
        (lambda m: {"0.up": m["0.up"]}, r"found entries \['0.up'\]"),
        (lambda m: {**m, "0.up": m["0.up"][:3]}, r"found entries \['0.down', '0.up'\]"),
        (lambda m: {**m, "0.up": m["0.up"][:, :1]}, r"found entries \['0.down', '0.up'\]"),
    ],
    ids=["none", "unknown", "half", "rows", "rank"],
)
def test_factors_that_do_not_fit_are_named(fleet, change, message):
    base, [model] = fleet(0, 1)
    module = change(low_rank(model, base=base, rank=2))
    with pytest.raises(ArgumentError, match=message):
        module_arithmetic([module], base=base)


def test_it_refuses(fleet):
    base, [model] = fleet(0, 1)
    with pytest.raises(ArgumentError, match="rank: found 0; expected at least one"):
        low_rank(model, base=base, rank=0)
    with pytest.raises(ArgumentError, match="models: found no models"):
        module_arithmetic([], base=base)
    module = low_rank(model, base=base, rank=1)
    with pytest.raises(ArgumentError, match="weights: found"):
        module_arithmetic([module], base=base, weights=[1, 2])
