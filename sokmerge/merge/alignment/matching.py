"""What an alignment returns, and the assignment problem that every matching solves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sokmerge.params import has_values
from sokmerge.symmetry import Permutation

__all__ = ["Matching", "assign", "in_order"]


@dataclass(frozen=True)
class Matching:
    r"""An alignment of network b to network a.

    ``group.act(matching.permutation, b)`` is b with its units in the order of a's.

    Attributes:
        permutation: an element of the symmetry group.
        similarity: the value of what was maximised, at this permutation.
        passes: how many passes over the blocks were made.
    """

    permutation: Permutation
    similarity: float
    passes: int


def assign(similarity: Tensor) -> Tensor:
    r"""Return the permutation :math:`\pi` that maximises :math:`\sum_i S_{i,\pi(i)}`.

    This is the linear assignment problem, solved exactly in :math:`O(n^3)` on the host (it waits
    for the device). Equal similarities are broken as SciPy's ``linear_sum_assignment`` does.

    Args:
        similarity: shape (n, n); row i belongs to a's unit i, column j to b's unit j.

    Returns:
        int64 tensor of shape (n,) on the host; the identity if the similarity has no values.

    >>> assign(torch.tensor([[0.0, 1.0], [1.0, 0.9]]))
    tensor([1, 0])
    """
    if not has_values(similarity):
        return torch.arange(similarity.shape[0])
    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)


def in_order(similarity: Tensor) -> Tensor:
    r"""Return a similarity whose ties are broken in favour of the order that the units are in.

    .. math:: S_{ij} + 10^{-7}\,\max|S|\; \frac{ij}{n^2}

    Among units that are equally similar, such as those that no input switches on, the sum of
    :math:`ij` is largest where both ascend (the rearrangement inequality). Without such a rule
    the last digit of an unrelated similarity decides, and that digit depends on the processor.

    Args:
        similarity: shape (n, n).

    >>> assign(in_order(torch.zeros(3, 3)))
    tensor([0, 1, 2])
    """
    place = torch.arange(len(similarity), device=similarity.device, dtype=similarity.dtype)
    place = place / max(len(similarity), 1)
    return similarity + 1e-7 * similarity.abs().max() * torch.outer(place, place)
