"""What an alignment returns, and the assignment problem that every matching solves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sokmerge.params import has_values
from sokmerge.symmetry import Block, Permutation, PermutationGroup

__all__ = ["Matching", "assign", "assign_nested", "in_order", "nested"]

_LARGE = 1024
"""From this size on an assignment is left to lapx, where it is installed."""


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
    for the device). Equal similarities are broken as SciPy's ``linear_sum_assignment`` does; from
    1024 units on as ``lapx`` does, if it is installed.

    Args:
        similarity: shape (n, n); row i belongs to a's unit i, column j to b's unit j.

    Returns:
        int64 tensor of shape (n,) on the host; the identity if the similarity has no values.

    >>> assign(torch.tensor([[0.0, 1.0], [1.0, 0.9]]))
    tensor([1, 0])
    """
    if not has_values(similarity):
        return torch.arange(similarity.shape[0])
    values = similarity.cpu().numpy()
    if len(values) >= _LARGE and _has_lapx():
        import lap

        return torch.from_numpy(lap.lapjv(-values.astype(np.float64))[1].astype(np.int64))
    _, columns = linear_sum_assignment(values, maximize=True)
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


@cache
def _has_lapx() -> bool:
    try:  # its module is called lap, as others are
        importlib.metadata.distribution("lapx")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def nested(group: PermutationGroup) -> dict[str, tuple[Block, ...]]:
    """Return for each block that lies in no other the blocks within it, itself the first.

    Such blocks are matched together: where a head goes, its channels go.

    >>> from sokmerge.symmetry import Axis
    >>> heads = Block("heads", 2, (Axis("bias", 0),))
    >>> channels = Block("channels", 6, (Axis("value", 0),), within="heads")
    >>> ((_, blocks),) = nested(PermutationGroup((heads, channels))).items()
    >>> [block.name for block in blocks]
    ['heads', 'channels']
    """
    roots: dict[str, str] = {}
    found: dict[str, list[Block]] = {}
    for block in group.blocks:
        roots[block.name] = block.name if block.within is None else roots[block.within]
        found.setdefault(roots[block.name], []).append(block)
    return {root: tuple(blocks) for root, blocks in found.items()}


def assign_nested(
    blocks: Sequence[Block], similarities: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    r"""Return the permutations of a block and of all within it that maximise their similarities.

    With heads i of a, heads j of b and the channels within them, what is maximised is

    .. math:: \sum_i\Bigl(S_{i,\pi(i)}+\sum_{c\text{ in }i}S_{c,\pi(c)}\Bigr),\qquad
              \pi(c)\text{ in }\pi(i)\text{ for all }c\text{ in }i.

    Once it is known how well the channels of head i can be assigned to those of head j, for each
    pair of heads, the heads are a linear assignment themselves. So it is solved exactly, from the
    innermost blocks outwards: :math:`h^2` assignments of d channels and one of h heads.

    Args:
        blocks: as :func:`nested` returns them, each behind the one it lies in.
        similarities: for each block S, shape (size, size).

    Returns:
        A permutation for each block, on the host; identities if the similarities have no values.

    >>> heads = Block("heads", 2, ())
    >>> channels = Block("channels", 4, (), within="heads")
    >>> moved = torch.eye(4)[[3, 2, 0, 1]]
    >>> assign_nested([heads, channels], {"heads": torch.zeros(2, 2), "channels": moved})
    {'heads': tensor([1, 0]), 'channels': tensor([3, 2, 0, 1])}
    """
    if len(blocks) == 1:
        return {blocks[0].name: assign(similarities[blocks[0].name])}
    if not all(has_values(s) for s in similarities.values()):
        return {block.name: torch.arange(block.size) for block in blocks}
    values = {block.name: similarities[block.name].double().cpu().numpy() for block in blocks}
    sizes = {block.name: block.size for block in blocks}
    inner: dict[str, np.ndarray] = {}  # for each pair of wholes: where the units in them go
    for block in reversed(blocks):
        if block.within is None:
            continue
        wholes = sizes[block.within]
        each = block.size // wholes
        # Shape (wholes of a, wholes of b, units of a, units of b).
        parts = values[block.name].reshape(wholes, each, wholes, each).swapaxes(1, 2)
        goes = np.empty((wholes, wholes, each), dtype=np.int64)
        for i, j in np.ndindex(wholes, wholes):
            goes[i, j] = linear_sum_assignment(parts[i, j], maximize=True)[1]
        reached = np.take_along_axis(parts, goes[..., None], -1).sum((-2, -1))
        values[block.within] = values[block.within] + reached
        inner[block.name] = goes
    found = {blocks[0].name: assign(torch.from_numpy(values[blocks[0].name]))}
    for block in blocks[1:]:
        wholes = found[block.within].numpy()
        goes = inner[block.name][np.arange(len(wholes)), wholes]
        found[block.name] = torch.from_numpy((wholes[:, None] * goes.shape[1] + goes).ravel())
    return found
