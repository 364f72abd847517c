"""DELLA-Merging: probabilities by rank, no bias, and what it has in common with DARE and TIES."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import della, ties
from sokmerge.merge.task_vectors import drop_and_rescale, drop_by_magnitude, task_vectors

seeds = st.integers(0, 2**31)


def _probabilities(rows, drop, spread):
    """By counting, entry by entry: rank 0 is the largest, equals share the mean of their ranks."""
    found = np.empty(rows.shape)
    for i, row in enumerate(np.abs(rows)):
        for j, value in enumerate(row):
            rank = (row > value).sum() + ((row == value).sum() - 1) / 2
            found[i, j] = drop + spread * ((rank + 0.5) / len(row) - 0.5)
    return found


@given(seed=seeds, drop=st.floats(0.3, 0.7), spread=st.floats(0, 0.6))
@settings(max_examples=20)
def test_what_is_kept_is_rescaled_by_its_own_probability(seed, drop, spread):
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randint(-4, 5, (3, 8), generator=generator).double()
    kept = drop_by_magnitude({"w": vector}, drop, seed, spread=spread)["w"].numpy()
    full = vector.numpy() / (1 - _probabilities(vector.numpy(), drop, spread))
    np.testing.assert_allclose(kept, np.where(kept != 0, full, 0), rtol=1e-12)


def test_dropping_by_magnitude_is_unbiased():
    """The mean over 400 seeds lies within five standard errors, for each of 24 entries."""
    vector = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws, drop, spread = 400, 0.7, 0.5
    sample = torch.stack(
        [drop_by_magnitude({"w": vector}, drop, s, spread=spread)["w"] for s in range(draws)]
    )
    p = torch.from_numpy(_probabilities(vector.numpy(), drop, spread))
    stderr = vector.abs() * (p / (1 - p) / draws).sqrt()
    assert ((sample.mean(0) - vector).abs() <= 5 * stderr).all()
    shares = (sample == 0).double().mean(0)
    assert ((shares - p).abs() <= 5 * (p * (1 - p) / draws).sqrt()).all()


@given(seed=seeds)
@settings(max_examples=10)
def test_without_spread_it_drops_what_dare_drops(seed):
    vector = {"w": torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))}
    for stream in ("0", "x"):
        mine = drop_by_magnitude(vector, 0.6, seed, spread=0, stream=stream)["w"]
        dares = drop_and_rescale(vector, 0.6, seed, stream=stream)["w"]
        torch.testing.assert_close(mine, dares)


def test_entries_of_equal_size_have_equal_chances_and_a_vector_is_one_row():
    ones = torch.ones(5, 40)
    assert set(drop_by_magnitude({"w": ones}, 0.5, 0, spread=0.9)["w"].unique().tolist()) == {0, 2}
    signs = {"b": torch.tensor([1.0, -1.0, 2.0, -2.0])}
    kept = [drop_by_magnitude(signs, 0.5, s, spread=0.8)["b"].abs() for s in range(30)]
    sizes = torch.stack(kept).unique()  # p is 0.7 for the small ones and 0.3 for the large
    torch.testing.assert_close(sizes, torch.tensor([0, 2 / 0.7, 1 / 0.3]))


def test_without_dropping_it_is_ties_without_trimming(fleet):
    base, models = fleet(0)
    options = {"base": base, "scale": 1.5, "weights": [1, 2, 0.5]}
    mine = della(models, seed=0, drop=0, spread=0, **options)
    theirs = ties(models, density=1, **options)
    assert all(torch.equal(mine[k], theirs[k]) for k in base)


def test_it_elects_and_averages_what_was_kept(fleet):
    base, models = fleet(1)
    kept = [
        drop_by_magnitude(tau, 0.5, 3, spread=0.4, stream=str(i))
        for i, tau in enumerate(task_vectors(models, base))
    ]
    merged = della(models, base=base, seed=3, drop=0.5, spread=0.4, scale=2)
    for key, start in base.items():
        if not start.is_floating_point():
            continue
        values = np.stack([k[key].numpy() for k in kept])
        sign = np.sign(values.sum(0))
        agree = (values * sign > 0) & (sign != 0)
        count = agree.sum(0)
        mean = np.where(count > 0, (values * agree).sum(0) / np.maximum(count, 1), 0)
        np.testing.assert_allclose(merged[key].numpy(), start.numpy() + 2 * mean, rtol=1e-9)


def test_masks_do_not_depend_on_order_or_workers(fleet):
    base, models = fleet(2, dtype=torch.float32)
    named = della(models, base=base, seed=4, streams=["a", "b", "c"])
    turned = della(models[::-1], base=base, seed=4, streams=["c", "b", "a"])
    other = {k: base[k] for k in reversed(base)}
    reordered = della(models, base=other, seed=4, streams=["a", "b", "c"])
    with ThreadPoolExecutor(4) as workers:
        parts = workers.map(
            lambda key: della(
                [{key: m[key]} for m in models],
                base={key: base[key]},
                seed=4,
                streams=["a", "b", "c"],
            )[key],
            base,
        )
        apart = dict(zip(base, parts, strict=True))
    for same in (turned, reordered, apart):
        assert all(torch.equal(named[k], same[k]) for k in base)
    assert not torch.equal(named["0.weight"], della(models, base=base, seed=5)["0.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 1.0}, r"drop: found 1.0; expected a number in \[0, 1\)"),
        ({"drop": 0.05, "spread": 0.2}, "spread: found 0.2 around a drop of 0.05"),
        ({"drop": 0.9, "spread": 0.2}, "spread: found 0.2 around a drop of 0.9"),
        ({"spread": -0.1}, "spread: found -0.1"),
        ({"spread": math.nan}, "spread: found nan"),
        ({"streams": ["a", "a", "b"]}, "streams: found"),
        ({"weights": [1, -1, 1]}, "weights: found .* non-negative"),
    ],
    ids=str,
)
def test_it_refuses(fleet, options, message):
    base, models = fleet(0)
    with pytest.raises(ArgumentError, match=message):
        della(models, base=base, seed=0, **options)
