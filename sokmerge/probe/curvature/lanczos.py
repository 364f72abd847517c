r"""The Lanczos process with full re-orthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import has_values, host, wide
from sokmerge.probe.curvature.operator import Operator

__all__ = ["Krylov", "lanczos"]


@dataclass(frozen=True)
class Krylov:
    r"""Orthonormal bases of Krylov spaces, and the operator restricted to them.

    With the basis vectors as the rows of Q,

    .. math:: Q A Q^\top = T = \begin{pmatrix}
                \alpha_1 & \beta_1 \\ \beta_1 & \alpha_2 & \ddots \\ & \ddots & \ddots
              \end{pmatrix},\qquad A Q^\top = Q^\top T + \beta_m\,q_{m+1}\,e_m^\top

    Attributes:
        basis: shape (p, m, n), for p starts and m steps.
        diagonal: :math:`\alpha`, shape (p, m).
        beside: :math:`\beta_1,\dots,\beta_m`, shape (p, m); 0 where a space is closed.
        products: how many products with a vector it took.
    """

    basis: Tensor
    diagonal: np.ndarray
    beside: np.ndarray
    products: int

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues of T, (p, m), ascending, and its eigenvectors, (p, m, m).

        Column j of the eigenvectors belongs to eigenvalue j.
        """
        pairs = [_eigen(d, b) for d, b in zip(self.diagonal, self.beside, strict=True)]
        return np.stack([values for values, _ in pairs]), np.stack([s for _, s in pairs])


Stop = Callable[[np.ndarray, np.ndarray], bool]


def lanczos(
    operator: Operator,
    starts: Tensor,
    steps: int,
    *,
    key: str,
    stop: Stop | None = None,
    without: Tensor | None = None,
) -> Krylov:
    r"""Run the Lanczos process (Lanczos 1950) from several starts, side by side.

    Each new vector is made orthogonal to all before it, twice: without that, rounding brings back
    directions that have converged, and an eigenvalue appears several times. Where a space is
    closed (:math:`\beta_m = 0` up to rounding) the process goes on from a new random direction,
    orthogonal to all before it, so that a repeated eigenvalue can be found then.

    Coefficients are summed in double precision; the basis has the precision of the operator. There
    is one wait for the device in each step.

    Args:
        operator: a symmetric matrix.
        starts: shape (p, n), not zero.
        steps: dimension of each space at most; never more than there are dimensions.
        key: what random numbers are made from.
        stop: with one start only: called after each step with :math:`\alpha` and :math:`\beta`
            so far; the process ends when it returns True.
        without: orthonormal rows; the process runs in the complement of their span, on
            :math:`PAP` with the projection P.

    Raises:
        ArgumentError: a product is NaN or infinite, a start is zero, or there is no dimension.
    """
    outside = 0 if without is None else len(without)
    steps = min(steps, operator.size - outside)
    if steps < 1:
        raise ArgumentError("steps", found=f"{steps}", expected="at least one step")
    count = len(starts)
    basis = starts.new_empty(count, min(steps, 16), operator.size)
    v, length = _normalised(_clear(starts, None, without))
    known = has_values(v)
    if known and not (host(length) > 0).all():
        raise ArgumentError("starts", found="a zero vector", expected="vectors that are not zero")
    diagonal, beside = np.empty((count, steps)), np.empty((count, steps))
    largest = np.zeros(count)
    for step in range(steps):
        if step == basis.shape[1]:  # room for as many again: most runs stop early
            basis = torch.cat([basis, torch.empty_like(basis)], dim=1)
        basis[:, step] = v
        moved = operator.rows(v)
        alpha = (wide(v) * wide(moved)).sum(-1)
        moved = _clear(moved, basis[:, : step + 1], without)
        v, beta = _normalised(moved)
        diagonal[:, step], beside[:, step] = host(torch.stack([alpha, beta]))
        if known and not np.isfinite(diagonal[:, step] + beside[:, step]).all():
            raise ArgumentError(
                "operator",
                found=f"a NaN or infinite product in step {step + 1}",
                expected="finite products",
                do="The loss overflows there: compute in torch.float64.",
            )
        largest = np.fmax(largest, np.abs(diagonal[:, step]) + beside[:, step])
        closed = beside[:, step] <= 16 * torch.finfo(basis.dtype).eps * largest
        beside[closed, step] = 0
        if stop is not None and stop(diagonal[0, : step + 1], beside[0, : step + 1]):
            break
        if closed.any() and step + 1 < steps:
            fresh = _clear(
                operator.noise(count, f"{key}:closed:{step}"), basis[:, : step + 1], without
            )
            chosen = torch.tensor(closed).to(v.device)[:, None]
            v = torch.where(chosen, _normalised(fresh)[0], v)
    taken = step + 1
    return Krylov(basis[:, :taken], diagonal[:, :taken], beside[:, :taken], count * taken)


def _clear(vectors: Tensor, basis: Tensor | None, without: Tensor | None) -> Tensor:
    """Return rows made orthogonal to those of the bases, twice."""
    for _ in range(2):
        if without is not None:
            vectors = vectors - (vectors @ without.T) @ without
        if basis is not None:
            shares = torch.matmul(basis, vectors[:, :, None])
            vectors = vectors - torch.matmul(shares.transpose(1, 2), basis)[:, 0]
    return vectors


def _normalised(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length one, and the lengths they had."""
    length = wide(vectors).square().sum(-1).sqrt()
    # A zero row stays zero: its place is taken by a new direction.
    safe = torch.where(length > 0, length, torch.ones_like(length))
    return vectors / safe[:, None].to(vectors.dtype), length


def _eigen(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues, ascending, and the eigenvectors of T; unknown if T is unknown."""
    size = len(diagonal)
    if np.isnan(diagonal).any() or np.isnan(beside).any():
        return np.full(size, math.nan), np.full((size, size), math.nan)
    return eigh_tridiagonal(diagonal, beside[: size - 1])
