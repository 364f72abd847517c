"""CCA Merge: what its maps must do, on networks where that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge import cca_merge
from sokmerge.merge.alignment.cca import _canonical
from sokmerge.symmetry import Axis, Block, PermutationGroup, chain


def _mlp(activation=nn.ReLU):
    module = nn.Sequential(nn.Linear(6, 9), activation(), nn.Linear(9, 7), activation(),
                           nn.Linear(7, 3)).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "4"])


def _cnn():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 3),
    ).double().eval()  # fmt: skip
    return module, chain(module, ["0", "2", "5"])


def _point(module, seed):
    """No unit is silent, so every direction varies."""
    noise = params.normal_like(params.of(module), seed)
    return {n: t.abs() if t.dim() == 1 else t / t[0].numel() ** 0.5 for n, t in noise.items()}


def _inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("make", "shape"), [(_mlp, (80, 6)), (_cnn, (20, 1, 6, 6))])
@pytest.mark.parametrize("gamma", [1e-3, 1.0])
def test_with_equal_networks_nothing_happens(make, shape, gamma):
    module, group = make()
    a = _point(module, 1)
    merged = cca_merge(module, [a, a, a], group, _inputs(*shape), regularisation=gamma)
    for name in a:
        torch.testing.assert_close(merged[name], a[name], rtol=1e-7, atol=1e-9)


def test_units_that_never_vary_do_not_spoil_that():
    module, group = _mlp()
    a = _point(module, 1)
    for unit in (0, 3, 4):
        a["0.weight"][unit], a["0.bias"][unit] = 0, -1.0
    merged = cca_merge(module, [a, a], group, _inputs(80, 6))
    for name in a:
        torch.testing.assert_close(merged[name], a[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("make", "shape"), [(_mlp, (200, 6)), (_cnn, (60, 1, 6, 6))])
def test_a_planted_permutation_is_undone(make, shape):
    module, group = make()
    a = _point(module, 1)
    b = group.act(group.sample(2), a)
    merged = cca_merge(module, [a, b], group, _inputs(*shape))
    for name in a:
        torch.testing.assert_close(merged[name], a[name], rtol=0, atol=1e-3)


def test_where_the_network_is_linear_the_function_of_each_stays():
    module, group = _mlp(nn.Identity)
    a, b, x = _point(module, 1), _point(module, 2), _inputs(80, 6)
    for weights, own in (([1, 0], a), ([0, 1], b)):
        merged = cca_merge(module, [a, b], group, x, weights=weights)
        found, expected = (functional_call(module, point, (x,)) for point in (merged, own))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_where_the_network_is_linear_any_mixture_of_units_is_undone():
    """Far beyond permutations: b is a with its units mixed by an invertible matrix."""
    module = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 3)).double().eval()
    a, x, mix = _point(module, 1), _inputs(300, 12), torch.eye(9).double() + 0.3 * _inputs(9, 9)
    b = {
        **a,
        "0.weight": mix @ a["0.weight"],
        "0.bias": mix @ a["0.bias"],
        "1.weight": a["1.weight"] @ torch.linalg.inv(mix),
    }
    merged = cca_merge(module, [a, b], chain(module, ["0", "1"]), x, regularisation=1e-9)
    for name in a:
        torch.testing.assert_close(merged[name], a[name], rtol=0, atol=1e-4)


def test_the_map_against_numpy():
    """It carries B's covariance to A's, and pairs the canonical directions with each other."""
    z = _inputs(400, 5) @ _inputs(5, 10, seed=1) + 0.3 * _inputs(400, 10, seed=2)
    joint = torch.from_numpy(np.cov(z.numpy(), rowvar=False, bias=True))
    a, b, ab = joint[:5, :5], joint[5:, 5:], joint[:5, 5:]
    there, home = _canonical(a, b, ab, gamma=1e-12)
    torch.testing.assert_close(there @ b @ there.T, a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(there @ home, torch.eye(5).double(), rtol=0, atol=1e-8)
    # Whitened, A and the mapped B have a symmetric, positive cross-covariance, whose eigenvalues
    # are the canonical correlations: those of the orthonormal bases of the centred data.
    root = np.linalg.inv(np.linalg.cholesky(a.numpy()))
    cross = root @ (ab @ there.T).numpy() @ root.T
    bases = [np.linalg.qr(half - half.mean(0))[0] for half in (z[:, :5].numpy(), z[:, 5:].numpy())]
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(cross).real)[::-1], expected, atol=1e-5)


def test_a_normalisation_is_refused():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    a = params.of(module)
    with pytest.raises(ArgumentError, match="group: found block '0'.* normalisation"):
        cca_merge(module, [a, a], chain(module, ["0", "1", "3"]), torch.randn(8, 3))


def test_bad_arguments_are_named():
    module, group = _mlp()
    a, x = _point(module, 0), _inputs(8, 6)
    with pytest.raises(ArgumentError, match="regularisation: found 0"):
        cca_merge(module, [a, a], group, x, regularisation=0)
    with pytest.raises(ArgumentError, match="models: found 1 models"):
        cca_merge(module, [a], group, x)
    with pytest.raises(ArgumentError, match="inputs: found 1; expected at least 2 examples"):
        cca_merge(module, [a, a], group, x[:1])
    blind = PermutationGroup((Block("0", 9, (Axis("0.weight", 0), Axis("2.weight", 1))),))
    with pytest.raises(ArgumentError, match="group: found block '0'"):
        cca_merge(module, [a, a], blind, x)
