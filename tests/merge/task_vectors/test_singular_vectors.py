"""Merges by singular vectors, against numpy and against what they must leave alone."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sokmerge.errors import ArgumentError
from sokmerge.merge import iso_c, knots, task_arithmetic, ties, tsv
from sokmerge.merge.task_vectors.matrices import as_matrix, is_matrix, polar_factor, singular

MATRICES = ("0.weight", "1.weight")
VECTORS = ("0.bias", "scale")
seeds = st.integers(0, 2**31)
METHODS = {"iso_c": iso_c, "knots": knots, "tsv": tsv}


def _steps(merged, base, key):
    return (merged[key].double() - base[key].double()).reshape(len(base[key]), -1).numpy()


# --- the ground -------------------------------------------------------------------------------


@given(seed=seeds, rows=st.integers(1, 6), columns=st.integers(1, 6), rank=st.integers(0, 3))
@settings(max_examples=30)
def test_singular_vectors_of_nothing_are_zero(seed, rows, columns, rank):
    generator = torch.Generator().manual_seed(seed)
    factors = (
        torch.randn(s, generator=generator).double() for s in ((rows, rank), (rank, columns))
    )
    matrix = functools.reduce(torch.matmul, factors)
    u, values, vt = singular(matrix)
    torch.testing.assert_close((u * values) @ vt, matrix)
    found = int((values > 0).sum())
    assert found == min(rank, rows, columns)
    there = torch.diag((values > 0).double())
    torch.testing.assert_close(u.T @ u, there)
    torch.testing.assert_close(vt @ vt.T, there)


@given(seed=seeds)
@settings(max_examples=10)
def test_the_polar_factor_is_the_nearest_matrix_with_orthonormal_columns(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    factor = polar_factor(matrix)
    torch.testing.assert_close(factor.T @ factor, torch.eye(3, dtype=torch.float64))
    # M = Q H with H symmetric and positive semidefinite: the polar decomposition is unique.
    stretch = factor.T @ matrix
    torch.testing.assert_close(stretch, stretch.T)
    assert torch.linalg.eigvalsh(stretch).min() > 0
    # Whitening by the inverse root of the Gram matrix gives the same one.
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    whitened = matrix @ vectors @ torch.diag(values.rsqrt()) @ vectors.T
    torch.testing.assert_close(factor, whitened)


# --- what the three have in common ------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_keeps_dtype_device_and_what_is_not_floating(fleet, name, dtype, device):
    base, models = fleet(0, dtype=dtype, device=device)
    merged = METHODS[name](models, base=base)
    for key, tensor in base.items():
        assert merged[key].dtype == tensor.dtype and merged[key].device == tensor.device
    assert merged["steps"] is base["steps"]
    assert not torch.equal(merged["0.weight"], base["0.weight"])


@pytest.mark.parametrize("name", METHODS)
def test_copies_of_the_base_and_a_scale_of_zero_give_the_base(fleet, name):
    base, models = fleet(0)
    for merged in (METHODS[name]([base] * 3, base=base), METHODS[name](models, base=base, scale=0)):
        assert all(torch.equal(merged[k], base[k]) for k in base)


@pytest.mark.parametrize("name", METHODS)
@given(seed=seeds)
@settings(max_examples=5)
def test_the_order_of_the_models_does_not_matter(fleet, name, seed):
    base, models = fleet(seed)
    weights = [1.0, 2.0, 0.5]
    here = METHODS[name](models, base=base, weights=weights)
    there = METHODS[name](models[::-1], base=base, weights=weights[::-1])
    for key in (*MATRICES, *VECTORS):
        torch.testing.assert_close(here[key], there[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["iso_c", "tsv"])
def test_of_vectors_the_step_is_the_mean(fleet, name):
    base, models = fleet(0)
    merged = METHODS[name](models, base=base, weights=[1, -2, 3], scale=0.5)
    for key in VECTORS:
        taus = [m[key] - base[key] for m in models]
        expected = base[key] + 0.5 * (taus[0] - 2 * taus[1] + 3 * taus[2]) / 3
        torch.testing.assert_close(merged[key], expected)


def test_tensors_without_entries_pass_through():
    base = {"w": torch.zeros(0, 3), "v": torch.ones(2, 2)}
    for merge in METHODS.values():
        assert merge([base, base], base=base)["w"].shape == (0, 3)


@pytest.mark.parametrize("name", ["knots", "tsv"])
def test_it_refuses_a_rank_below_one(fleet, name):
    base, models = fleet(0)
    with pytest.raises(ArgumentError, match="rank: found 0; expected at least one"):
        METHODS[name](models, base=base, rank=0)


def test_what_is_a_matrix():
    assert [is_matrix(torch.zeros(s)) for s in ((2, 3), (2, 3, 1, 1), (3,), (), (0, 2))] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert as_matrix(torch.zeros(2, 3, 4, 5)).shape == (2, 60)


# --- Iso-C ------------------------------------------------------------------------------------


@given(seed=seeds, scale=st.floats(0.1, 2))
@settings(max_examples=15)
def test_isotropic_merging_keeps_singular_vectors_and_the_sum_of_the_values(fleet, seed, scale):
    base, models = fleet(seed)
    merged = iso_c(models, base=base, scale=scale)
    total = task_arithmetic(models, base=base)
    for key in MATRICES:
        u, values, vt = np.linalg.svd(_steps(total, base, key), full_matrices=False)
        flat = _steps(merged, base, key) / scale
        np.testing.assert_allclose(
            u.T @ flat @ vt.T, values.mean() * np.eye(len(values)), atol=1e-8
        )
        np.testing.assert_allclose(np.linalg.svd(flat, compute_uv=False), values.mean(), rtol=1e-8)
        assert np.linalg.norm(flat, "nuc") == pytest.approx(values.sum(), rel=1e-8)


def test_isotropic_merging_invents_no_direction(fleet):
    base, models = fleet(0, rank=1)
    total = task_arithmetic(models, base=base)
    merged = iso_c(models, base=base)
    for key in MATRICES:
        before, after = (np.linalg.svd(_steps(m, base, key))[1] for m in (total, merged))
        assert (before > 1e-9).sum() == (after > 1e-9).sum() == 3
        assert after.sum() == pytest.approx(before.sum())


# --- task singular vectors --------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=5)
def test_one_model_with_all_its_singular_vectors_is_that_model(fleet, seed):
    base, [model] = fleet(seed, 1)
    merged = tsv([model], base=base)
    for key in (*MATRICES, *VECTORS):
        torch.testing.assert_close(merged[key], model[key])


def test_one_model_with_fewer_is_its_best_approximation(fleet):
    base, [model] = fleet(0, 1)
    merged = tsv([model], base=base, rank=2)
    for key in MATRICES:
        u, values, vt = np.linalg.svd(_steps(model, base, key), full_matrices=False)
        best = (u[:, :2] * values[:2]) @ vt[:2]
        np.testing.assert_allclose(_steps(merged, base, key), best, atol=1e-10)


@given(seed=seeds, rank=st.integers(1, 2))
@settings(max_examples=10)
def test_task_singular_vectors_agree_with_numpy(fleet, seed, rank):
    base, models = fleet(seed)
    weights = [1.0, 0.5, 2.0]
    merged = tsv(models, base=base, rank=rank, scale=0.7, weights=weights)
    for key in MATRICES:
        kept = min(rank, min(_steps(base, base, key).shape) // 3)
        parts = [np.linalg.svd(_steps(m, base, key), full_matrices=False) for m in models]
        left = np.hstack([u[:, :kept] for u, _, _ in parts])
        right = np.hstack([vt[:kept].T for _, _, vt in parts])
        values = np.hstack([w * s[:kept] for w, (_, s, _) in zip(weights, parts, strict=True)])
        whiten = [m @ np.linalg.inv(_root(m.T @ m)) for m in (left, right)]
        expected = 0.7 * whiten[0] @ np.diag(values) @ whiten[1].T
        np.testing.assert_allclose(_steps(merged, base, key), expected, atol=1e-7)


def _root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def test_tasks_that_are_orthogonal_already_are_added():
    base = {"w": torch.zeros(4, 4, dtype=torch.float64)}
    first, second = torch.zeros(2, 4, 4, dtype=torch.float64)
    first[:2, :2] = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
    second[2:, 2:] = torch.tensor([[1.0, -1.0], [4.0, 2.0]])
    merged = tsv([{"w": first}, {"w": second}], base=base)
    torch.testing.assert_close(merged["w"], first + second)


def test_two_copies_are_one(fleet):
    base, [model] = fleet(0, 1, rank=2)
    merged = tsv([model, model], base=base)
    for key in MATRICES:
        torch.testing.assert_close(merged[key], model[key])


# --- KnOTS ------------------------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=10)
def test_a_linear_merge_does_not_see_the_change_of_basis(fleet, seed):
    base, models = fleet(seed)
    options = {"base": base, "weights": [1.0, -2.0, 0.5]}
    tied = knots(models, merge=task_arithmetic, scale=0.7, **options)
    plain = task_arithmetic(models, scale=0.7, **options)
    for key in (*MATRICES, *VECTORS):
        torch.testing.assert_close(tied[key], plain[key])


def test_with_one_direction_kept_it_is_the_joint_best_approximation(fleet):
    base, models = fleet(1)
    merged = knots(models, base=base, merge=task_arithmetic, rank=1)
    for key in MATRICES:
        steps = [_steps(m, base, key) for m in models]
        u = np.linalg.svd(np.hstack(steps))[0][:, :1]
        np.testing.assert_allclose(_steps(merged, base, key), u @ u.T @ sum(steps), atol=1e-9)


@given(seed=seeds, density=st.floats(0.2, 1))
@settings(max_examples=10)
def test_the_tied_parts_are_merged_by_signs_and_sizes(fleet, seed, density):
    """The oracle trims and elects on numpy's singular vectors, all tensors together."""
    base, models = fleet(seed)
    merged = knots(models, base=base, merge=functools.partial(ties, density=density))
    bases, parts = {}, [{} for _ in models]
    for key in MATRICES:
        steps = [_steps(m, base, key) for m in models]
        u, values, vt = np.linalg.svd(np.hstack(steps), full_matrices=False)
        bases[key] = u * values
        for part, own in zip(parts, np.split(vt, 3, axis=1), strict=True):
            part[key] = own
    for key in VECTORS:
        for part, model in zip(parts, models, strict=True):
            part[key] = (model[key] - base[key]).numpy()
    for part in parts:
        flat = np.sort(np.abs(np.concatenate([v.ravel() for v in part.values()])))
        least = flat[len(flat) - max(1, round(density * len(flat)))]
        for key in part:
            part[key] = np.where(np.abs(part[key]) >= least, part[key], 0)
    for key in (*MATRICES, *VECTORS):
        values = np.stack([part[key] for part in parts])
        agree = values * np.sign(values.sum(0)) > 0
        mean = (values * agree).sum(0) / np.maximum(agree.sum(0), 1)
        step = bases[key] @ mean if key in bases else mean
        found = _steps(merged, base, key) if key in bases else (merged[key] - base[key]).numpy()
        np.testing.assert_allclose(found, step, atol=1e-8)
