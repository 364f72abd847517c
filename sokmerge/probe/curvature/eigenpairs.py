r"""The extreme eigenvalues of an operator and their eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.probe.curvature.lanczos import Krylov, lanczos
from sokmerge.probe.curvature.operator import Operator

__all__ = ["Eigenpairs", "eigenpairs"]

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True)
class Eigenpairs:
    r"""Eigenvalues with their eigenvectors, and how far each is from being one.

    Attributes:
        values: shape (k,), in the order of ``which``: "largest" descends, "smallest" ascends,
            "magnitude" descends in the absolute value.
        vectors: shape (k, n), orthonormal rows on the operator's device. Sign rule: the entry of
            the largest absolute value, the first one of them, is positive.
        residuals: :math:`\lVert Av_i-\lambda_iv_i\rVert`, shape (k,), as the Lanczos process
            tells it. An eigenvalue of A lies within this distance of :math:`\lambda_i`. In single
            precision, what is below :math:`10^{-6}\lVert A\rVert` is rounding.
        tol: the residual that was asked for, relative to :math:`|\lambda_i|`.
        products: how many products with a vector it took.
    """

    values: np.ndarray
    vectors: Tensor
    residuals: np.ndarray
    tol: float
    products: int

    @property
    def converged(self) -> bool:
        """Whether every residual is as small as was asked for."""
        return bool((self.residuals <= self.tol * np.abs(self.values)).all())


def eigenpairs(
    operator: Operator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    most: int = 200,
    seed: int = 0,
    start: Tensor | None = None,
) -> Eigenpairs:
    r"""Return k extreme eigenpairs by the Lanczos process with full re-orthogonalisation.

    After m steps the Ritz pairs :math:`(\theta_i, y_i = Q^\top s_i)` come from
    :math:`T s_i=\theta_i s_i`, and their residual is known without another product:

    .. math:: \lVert A y_i-\theta_i y_i\rVert = \beta_m\,|e_m^\top s_i|

    The process ends as soon as all k residuals are at most ``tol`` times :math:`|\theta_i|`, or
    after ``most`` steps; then ``converged`` is false, and the residuals say by how much. The error
    of an eigenvalue is at most the residual, and of the order of its square over the gap to the
    next one (Parlett 1998).

    A repeated eigenvalue is found once, unless the Krylov space closes before k are found: then
    the process goes on from a new direction. There is no restart: m vectors are held.

    Args:
        operator: a symmetric matrix.
        k: how many.
        which: which end of the spectrum: "largest", "smallest", or "magnitude" for both.
        tol: residual relative to the eigenvalue.
        most: steps at most.
        seed: seed of the random start.
        start: shape (n,); by default random noise, plus as much of the gradient where the
            operator has one: it lies for a large part in the space of the largest eigenvalues
            (Gur-Ari et al. 2018).

    Raises:
        ArgumentError: k, ``which`` or the start is not as described, or a product is not finite.

    >>> from sokmerge.probe.curvature import of_matrix
    >>> found = eigenpairs(of_matrix(torch.diag(torch.tensor([1.0, 5.0, -9.0]))), k=2)
    >>> found.values.round(3), found.vectors.round(decimals=3).abs(), found.converged
    (array([5., 1.]), tensor([[0., 1., 0.],
            [1., 0., 0.]]), True)
    """
    krylov = krylov_for(operator, k, which=which, tol=tol, most=most, seed=seed, start=start)
    return from_krylov(krylov, k, which, tol)


def krylov_for(
    operator: Operator,
    k: int,
    *,
    which: Which,
    tol: float,
    most: int,
    seed: int,
    start: Tensor | None = None,
) -> Krylov:
    """Run the Lanczos process until k eigenpairs have the residual that is asked for."""
    if not 1 <= k <= operator.size or k > most:
        raise ArgumentError(
            "k", found=f"{k}", expected=f"1 to {min(operator.size, most)}, the steps at most"
        )
    if which not in get_args(Which):
        raise ArgumentError("which", found=repr(which), expected=f"one of {get_args(Which)}")
    if start is not None and start.shape != (operator.size,):
        raise ArgumentError(
            "start", found=f"shape {tuple(start.shape)}", expected=f"shape ({operator.size},)"
        )

    def converged(diagonal: np.ndarray, beside: np.ndarray) -> bool:
        if len(diagonal) < k:
            return False
        krylov = Krylov(torch.empty(0), diagonal[None], beside[None], 0)
        values, residuals, _ = _ritz(krylov, k, which)
        return bool((residuals <= tol * np.abs(values)).all())

    first = _start(operator, seed) if start is None else start.to(operator.dtype)
    return lanczos(operator, first[None], most, key=f"{seed}:lanczos", stop=converged)


def from_krylov(krylov: Krylov, k: int, which: Which, tol: float) -> Eigenpairs:
    """Return the extreme Ritz pairs of a Krylov space with their residuals."""
    values, residuals, shares = _ritz(krylov, min(k, krylov.diagonal.shape[1]), which)
    basis = krylov.basis[0]
    vectors = torch.tensor(shares.T, dtype=basis.dtype).to(basis.device) @ basis
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    place = vectors.abs().argmax(1, keepdim=True)
    signs = torch.where(vectors.gather(1, place) < 0, -1.0, 1.0).to(vectors.dtype)
    return Eigenpairs(values, vectors * signs, residuals, tol, krylov.products)


def _start(operator: Operator, seed: int) -> Tensor:
    noise = operator.noise(1, f"{seed}:start")[0]
    noise = noise / noise.norm()
    if operator.gradient is None:
        return noise
    length = operator.gradient.norm()
    # A gradient of zero has no direction; the noise alone is left then.
    return noise + operator.gradient / torch.where(length > 0, length, torch.ones_like(length))


def _ritz(krylov: Krylov, k: int, which: Which) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return k Ritz values, their residuals, and their coordinates in the basis as columns."""
    values, shares = (found[0] for found in krylov.ritz())
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    order = np.argsort(keys[which], kind="stable")[:k]
    residuals = krylov.beside[0, -1] * np.abs(shares[-1, order])
    return values[order], residuals, shares[:, order]
