r"""What the methods on singular vectors share: tensors as matrices, and their decompositions.

A tensor with two axes or more is read as a matrix: its first axis, the outputs, are the rows, and
all others together are the columns. Decompositions are taken in double precision (single on
devices that have no other).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_matrix", "is_matrix", "polar_factor", "singular"]


def is_matrix(tensor: Tensor) -> bool:
    """Say whether a tensor has rows and columns, and numbers in them.

    >>> is_matrix(torch.zeros(3, 2)), is_matrix(torch.zeros(3)), is_matrix(torch.zeros(0, 2))
    (True, False, False)
    """
    return tensor.dim() >= 2 and tensor.numel() > 0


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor with its first axis as rows and all others as columns.

    >>> as_matrix(torch.zeros(3, 2, 5, 5)).shape
    torch.Size([3, 50])
    """
    return tensor.reshape(tensor.shape[0], -1)


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return U, the singular values, and V^T; what belongs to a value of zero is zero.

    Where a singular value is zero its vectors are not determined: what a machine gives there is
    chance. They would not matter in the product :math:`U\Sigma V^\top`, but methods that put other
    values in place of :math:`\Sigma` would make them matter. A value is zero if it is below
    :math:`\epsilon\max(m,n)\,\sigma_1`, with the precision :math:`\epsilon` of the matrix.

    >>> u, values, vt = singular(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    >>> values, (u @ vt).abs()
    (tensor([2., 0.]), tensor([[1., 0.],
            [0., 0.]]))
    """
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    least = torch.finfo(matrix.dtype).eps * max(matrix.shape) * values[0]
    there = values > least
    return u.where(there, 0.0), values.where(there, 0.0), vt.where(there[:, None], 0.0)


def polar_factor(matrix: Tensor) -> Tensor:
    r"""Return :math:`PQ^\top` for :math:`P D Q^\top` the singular value decomposition of a matrix.

    Of a matrix with independent columns it is the nearest one with orthonormal columns (the
    orthogonal Procrustes problem). Of others it is a partial isometry: directions that are not
    there are not invented.

    >>> polar_factor(torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    tensor([[1., 0.],
            [0., 1.],
            [0., 0.]])
    """
    u, _, vt = singular(matrix)
    return u @ vt


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Return :math:`\frac1n\sum_i w_i\,x_i`.

    >>> weighted_mean([torch.ones(2), torch.zeros(2)], [1.0, 1.0])
    tensor([0.5000, 0.5000])
    """
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + tensor * weight
    return total / len(tensors)
