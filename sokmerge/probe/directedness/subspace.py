r"""How much of a vector lies in a subspace, and how much two subspaces have in common.

A subspace of dimension K is given by K orthonormal rows, such as the ``vectors`` of
:class:`~sokmerge.probe.curvature.Eigenpairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import host, wide

__all__ = ["Share", "overlap", "require_basis", "share", "split"]


@dataclass(frozen=True)
class Share:
    r"""The share of a vector's squared length in nested subspaces.

    Attributes:
        dims: K, shape (D,).
        values: :math:`f_K=\lVert P_Kg\rVert^2/\lVert g\rVert^2`, shape (D,); NaN for g = 0.
        chance: what a random direction has on average, :math:`K/n`.
        chance_spread: the standard deviation of that, over random directions.
    """

    dims: np.ndarray
    values: np.ndarray
    chance: np.ndarray
    chance_spread: np.ndarray


def share(basis: Tensor, vector: Tensor, dims: Sequence[int] | None = None) -> Share:
    r"""Return the share of a vector in the space of the first K rows of a basis, for each K.

    .. math:: f_K = \frac{\lVert P_Kg\rVert^2}{\lVert g\rVert^2}
                  = \frac{\sum_{i\le K}\langle v_i,g\rangle^2}{\lVert g\rVert^2}

    With the eigenvectors of the largest eigenvalues of the Hessian and the gradient this is the
    measure of Gur-Ari et al. (2018). A uniformly random direction in n dimensions has a share
    that is distributed as Beta(K/2, (n-K)/2); its mean and standard deviation are given along.

    Args:
        basis: orthonormal rows, shape (k, n).
        vector: shape (n,).
        dims: K from 1 to k; by default all of them.

    Raises:
        ArgumentError: rows that are not orthonormal, shapes that do not fit, or a K out of range.

    >>> found = share(torch.eye(3)[:2], torch.tensor([3.0, 0.0, 4.0]))
    >>> found.values, found.chance.round(3)
    (array([0.36, 0.36]), array([0.333, 0.667]))
    """
    require_basis(basis, vector)
    k, n = basis.shape
    dims = np.array(range(1, k + 1) if dims is None else list(dims))
    if not len(dims) or dims.min() < 1 or dims.max() > k:
        raise ArgumentError("dims", found=f"{dims.tolist()}", expected=f"numbers from 1 to {k}")
    squares = (wide(basis) @ wide(vector)).square().cumsum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = host(squares)[dims - 1] / host(wide(vector).square().sum())
    spread = np.sqrt(2 * dims * (n - dims) / (n**2 * (n + 2.0)))
    return Share(dims, values, dims / n, spread)


def overlap(a: Tensor, b: Tensor) -> float:
    r"""Return how much two subspaces of one dimension K have in common.

    .. math:: \frac1K\lVert P_AP_B\rVert_F^2 = \frac1K\lVert AB^\top\rVert_F^2

    It is 1 for one and the same, 0 for orthogonal ones, and K/n on average for random ones
    (Gur-Ari et al. 2018).

    Args:
        a: orthonormal rows, shape (K, n).
        b: the same.

    Raises:
        ArgumentError: rows that are not orthonormal, or other shapes.

    >>> overlap(torch.eye(3)[:2], torch.eye(3)[1:])
    0.5
    """
    require_basis(a)
    require_basis(b)
    if a.shape != b.shape:
        raise ArgumentError("b", found=f"shape {tuple(b.shape)}", expected=f"{tuple(a.shape)}")
    return float(host((wide(a) @ wide(b).T).square().sum())) / len(a)


def split(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the part of a vector in a subspace and the part orthogonal to it.

    .. math:: g = P_Kg + (I-P_K)\,g

    The device is not waited for, and rows are taken to be orthonormal without a check.

    >>> split(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 1.0]]))
    (tensor([0., 4.]), tensor([3., 0.]))
    """
    inside = (basis @ vector) @ basis
    return inside, vector - inside


def require_basis(basis: Tensor, vector: Tensor | None = None) -> None:
    """Raise unless a matrix has orthonormal rows, and a vector fits it. Waits for the device."""
    if basis.dim() != 2 or not 1 <= len(basis) <= basis.shape[1]:
        raise ArgumentError(
            "basis", found=f"shape {tuple(basis.shape)}", expected="(k, n) with 1 <= k <= n"
        )
    gram = wide(basis) @ wide(basis).T
    off = float(
        host((gram - torch.eye(len(basis), dtype=gram.dtype, device=gram.device)).abs().max())
    )
    # Rows in single precision are orthonormal to about 1e-6; unknown numbers (NaN) pass.
    if off > 1e-3:
        raise ArgumentError(
            "basis",
            found=f"rows whose inner products are off by {off:.2g}",
            expected="orthonormal rows",
            do="Take Eigenpairs.vectors, or orthonormalise with torch.linalg.qr.",
        )
    if vector is not None and vector.shape != basis.shape[1:]:
        raise ArgumentError(
            "vector", found=f"shape {tuple(vector.shape)}", expected=f"shape ({basis.shape[1]},)"
        )
