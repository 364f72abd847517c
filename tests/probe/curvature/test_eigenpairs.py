"""Lanczos and eigenpairs against known spectra, LAPACK, scipy and dense Hessians."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.curvature import eigenpairs, hessian, lanczos, of_matrix

SPECTRUM = [*np.linspace(-1, 1, 56), -7.0, 8.0, 12.0, 20.0]


def _residuals(matrix, found):
    moved = found.vectors @ matrix
    values = torch.tensor(found.values, dtype=matrix.dtype).to(matrix.device)
    return (moved - values[:, None] * found.vectors).norm(dim=1).cpu().double().numpy()


@pytest.mark.parametrize(
    ("which", "expected"),
    [("largest", [20, 12, 8]), ("smallest", [-7, -1]), ("magnitude", [20, 12, 8, -7])],
)
def test_the_ends_of_a_known_spectrum(symmetric, which, expected, device):
    matrix, rotation = (t.to(device) for t in symmetric(SPECTRUM))
    found = eigenpairs(of_matrix(matrix), len(expected), which=which, tol=1e-8)
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert found.converged and found.products < 60
    columns = rotation.T[[SPECTRUM.index(v) for v in expected]]
    assert (found.vectors @ columns.T).diagonal().abs().min() > 1 - 1e-12
    eye = torch.eye(len(expected), dtype=matrix.dtype)
    torch.testing.assert_close((found.vectors @ found.vectors.T).cpu(), eye)


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_the_residual_and_stops_the_run(symmetric, tol):
    matrix, _ = symmetric(SPECTRUM)
    found = eigenpairs(of_matrix(matrix), 3, tol=tol)
    np.testing.assert_allclose(found.residuals, _residuals(matrix, found), rtol=1e-4, atol=1e-12)
    assert (found.residuals <= tol * np.abs(found.values)).all() and found.tol == tol
    shorter = eigenpairs(of_matrix(matrix), 3, tol=tol, most=found.products - 1)
    assert not shorter.converged and shorter.products == found.products - 1
    np.testing.assert_allclose(shorter.residuals, _residuals(matrix, shorter), rtol=1e-4)


@given(
    st.lists(st.floats(-10, 10), min_size=3, max_size=12),
    st.integers(0, 5),
    st.sampled_from(["largest", "smallest", "magnitude"]),
)
@settings(max_examples=25)
def test_an_eigenvalue_lies_within_each_residual(symmetric_values, seed, which):
    generator = torch.Generator().manual_seed(seed)
    n = len(symmetric_values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = q @ torch.diag(torch.tensor(symmetric_values, dtype=torch.float64)) @ q.T
    found = eigenpairs(of_matrix((matrix + matrix.T) / 2), 2, which=which, seed=seed, most=4)
    scale = max(1.0, np.abs(symmetric_values).max())
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert np.abs(np.array(symmetric_values) - value).min() <= residual + 1e-9 * scale


def test_orthogonality_survives_many_steps_in_single_precision(symmetric):
    """Without re-orthogonalisation the two large eigenvalues would come back again and again."""
    matrix, _ = symmetric([*np.linspace(0, 1, 300), 1000.0, 2000.0], dtype=torch.float32)
    operator = of_matrix(matrix)
    krylov = lanczos(operator, operator.noise(2, "s"), 120, key="k")
    eye = torch.eye(120)
    for basis in krylov.basis:
        assert (basis @ basis.T - eye).abs().max() < 1e-5
    for values in krylov.ritz()[0]:
        assert (values > 10).sum() == 2 and values.max() == pytest.approx(2000, rel=1e-5)
    assert krylov.products == 240 and krylov.basis.shape == (2, 120, 302)


def test_the_process_gives_the_matrix_in_its_basis(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    operator = of_matrix(matrix)
    without = torch.linalg.qr(torch.randn(60, 3, dtype=torch.float64))[0].T
    for outside in (None, without):
        krylov = lanczos(operator, operator.noise(2, "s"), 20, key="k", without=outside)
        for i, q in enumerate(krylov.basis):
            beside = np.diag(krylov.beside[i, :-1], 1)
            expected = np.diag(krylov.diagonal[i]) + beside + beside.T
            np.testing.assert_allclose((q @ matrix @ q.T).numpy(), expected, atol=1e-10)
            if outside is not None:
                assert (q @ outside.T).abs().max() < 1e-13


def test_a_closed_space_is_left_for_a_new_direction(symmetric):
    """Three distinct eigenvalues close a space after three steps; five are asked for."""
    matrix, _ = symmetric([2.0, 2.0, 2.0, 5.0, 5.0, 9.0])
    one = eigenpairs(of_matrix(matrix), 1, tol=1e-12)
    assert one.products <= 3 and one.values == pytest.approx([9])
    five = eigenpairs(of_matrix(matrix), 5, tol=1e-9)
    np.testing.assert_allclose(five.values, [9, 5, 5, 2, 2], rtol=1e-9)
    assert five.products <= 6


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), torch.eye(4), torch.ones(1, 1)])
def test_degenerate_matrices(matrix):
    n = len(matrix)
    found = eigenpairs(of_matrix(matrix), n)
    np.testing.assert_allclose(found.values, np.full(n, float(matrix[0, 0])), atol=1e-6)
    assert found.converged and found.products == n


def test_the_sign_rule_and_the_seed(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    found = [eigenpairs(of_matrix(matrix), 4, which="magnitude", tol=1e-9, seed=s) for s in (1, 2)]
    for pairs in found:
        largest = pairs.vectors.abs().argmax(1)
        assert (pairs.vectors[torch.arange(4), largest] > 0).all()
    torch.testing.assert_close(found[0].vectors, found[1].vectors, rtol=0, atol=1e-8)
    again = eigenpairs(of_matrix(matrix), 4, which="magnitude", tol=1e-9, seed=1)
    assert torch.equal(again.vectors, found[0].vectors)
    assert (again.values == found[0].values).all()
    assert not torch.equal(found[0].vectors, found[1].vectors)


def test_scipy_finds_the_same_from_the_same_products(symmetric):
    matrix, _ = symmetric(SPECTRUM)
    operator = of_matrix(matrix)
    wrapped = LinearOperator(
        matrix.shape, lambda v: (operator @ torch.tensor(v)).numpy(), dtype=float
    )
    expected = np.sort(eigsh(wrapped, 4, which="LM", return_eigenvectors=False))
    found = eigenpairs(operator, 4, which="magnitude", tol=1e-9)
    np.testing.assert_allclose(np.sort(found.values), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hessian_of_a_small_network(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    operator = hessian(EmpiricalRisk(net, x, y, chunk=16), params.of(net), dtype=dtype)
    dense = operator @ torch.eye(operator.size, dtype=dtype)
    expected = torch.linalg.eigvalsh(dense.double()).flip(0)[:4].numpy()
    found = eigenpairs(operator, 4, tol=1e-4)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)
    assert found.converged and found.vectors.dtype == dtype
    named = operator.layout.unflatten(found.vectors[0])
    assert {k: t.shape for k, t in named.items()} == {k: t.shape for k, t in params.of(net).items()}
    torch.testing.assert_close(operator.layout.flatten(named), found.vectors[0])
    # From noise alone the same pairs, in more products.
    noise = eigenpairs(operator, 4, tol=1e-4, start=operator.noise(1, "n")[0])
    np.testing.assert_allclose(noise.values, found.values, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: found 0; expected 1 to 3"),
        ({"k": 4}, "k: found 4; expected 1 to 3"),
        ({"k": 3, "most": 2}, "k: found 3; expected 1 to 2"),
        ({"which": "top"}, "which: found 'top'; expected one of"),
        ({"start": torch.ones(2)}, r"start: found shape \(2,\); expected shape \(3,\)"),
        ({"start": torch.zeros(3)}, "starts: found a zero vector"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        eigenpairs(of_matrix(torch.eye(3)), **arguments)


def test_a_product_that_overflows_is_named():
    with pytest.raises(ArgumentError, match="operator: found a NaN or infinite product in step 1"):
        eigenpairs(of_matrix(torch.full((3, 3), torch.inf)))


def test_a_matrix_is_square():
    with pytest.raises(ArgumentError, match=r"matrix: found shape \(2, 3\)"):
        of_matrix(torch.ones(2, 3))


def test_noise_depends_on_nothing_but_key_number_and_name():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).eval()
    risk = EmpiricalRisk(net, torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    whole, head = (hessian(risk, params.of(net), names=n) for n in (None, ["1.weight", "1.bias"]))
    several = whole.noise(3, "k")
    assert torch.equal(several[1:], whole.noise(2, "k", first=1))
    assert torch.equal(several[:, -head.size :], head.noise(3, "k"))
    assert not torch.equal(several, whole.noise(3, "l"))
    doubled = hessian(risk, params.of(net), dtype=torch.float64).noise(3, "k")
    assert torch.equal(doubled.float(), several)
