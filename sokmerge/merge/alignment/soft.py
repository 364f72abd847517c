r"""Linear maps of units in the place of permutations of units.

A permutation of a block is the matrix with :math:`P_{i,\pi(i)}=1`. What acts on parameters by
indexing when it is a permutation acts by multiplication when it is any other matrix: that is what
relaxations to soft permutations differentiate through, and what merges beyond permutation use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sokmerge.params import Params
from sokmerge.symmetry import Axis, Permutation, PermutationGroup

__all__ = ["act_softly", "harden", "matrices"]


def matrices(permutation: Permutation, like: Tensor) -> dict[str, Tensor]:
    """Return the matrix of each block's permutation, in the dtype and on the device of a tensor.

    >>> matrices({"hidden": torch.tensor([1, 0])}, torch.zeros(1))
    {'hidden': tensor([[0., 1.],
            [1., 0.]])}
    """
    return {
        name: torch.eye(len(order), dtype=like.dtype, device=like.device).index_select(
            0, order.to(like.device)
        )
        for name, order in permutation.items()
    }


def harden(soft: Mapping[str, Tensor], assign: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return for each block the permutation that a soft one is nearest to."""
    return {name: assign(matrix.detach()) for name, matrix in soft.items()}


def act_softly(
    group: PermutationGroup,
    maps: Mapping[str, Tensor],
    params: Params,
    *,
    readers: Mapping[str, Tensor] | None = None,
    reads: Callable[[Axis], bool] = lambda _: False,
) -> dict[str, Tensor]:
    r"""Return parameters whose units are mixed linearly: unit i becomes :math:`\sum_j M_{ij}\,u_j`.

    For the matrices of permutations this is :meth:`PermutationGroup.act`. It is differentiable in
    the maps and in the parameters. What is computed has the dtype of the maps; the result is
    rounded back to that of the parameters.

    Args:
        group: says along which axes units lie.
        maps: for each block a matrix, shape (m, size); a network that has m units results.
        params: the parameters; entries that the group does not name are passed on.
        readers: the matrices for the axes along which units are read, where these differ.
        reads: says of an axis whether units are read along it.

    >>> from sokmerge.symmetry import Block
    >>> group = PermutationGroup((Block("hidden", 2, (Axis("w", 0),)),))
    >>> half = {"hidden": torch.full((2, 2), 0.5)}
    >>> act_softly(group, half, {"w": torch.tensor([1.0, 3.0])})["w"]
    tensor([2., 2.])
    """
    moved = dict(params)
    for block in group.blocks:
        for axis in block.axes:
            if axis.buffer and axis.parameter not in moved:
                continue
            chosen = readers if readers is not None and reads(axis) else maps
            matrix, tensor = chosen[block.name], moved[axis.parameter]
            first = tensor.to(matrix.dtype).movedim(axis.dim, 0)
            mixed = matrix @ first.reshape(matrix.shape[1], -1)
            moved[axis.parameter] = mixed.reshape(-1, *first.shape[1:]).movedim(0, axis.dim)
    return {
        name: tensor.to(params[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in moved.items()
    }
