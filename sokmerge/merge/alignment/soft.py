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
from sokmerge.symmetry import Axis, Block, Permutation, PermutationGroup

__all__ = ["act_softly", "completed", "free_blocks", "harden", "matrices"]


def free_blocks(group: PermutationGroup) -> tuple[Block, ...]:
    """Return the blocks whose units are free: not those that lie within the units of another."""
    return tuple(block for block in group.blocks if block.within is None)


def completed(group: PermutationGroup, permutation: Permutation) -> dict[str, Tensor]:
    """Return an element of the group from the orders of its free blocks.

    Units that lie within others go where these go, in the order that they have.
    """
    full = dict(permutation)
    for block in group.blocks:
        if block.name not in full:
            wholes = full[block.within]
            inside = torch.arange(block.size // len(wholes), device=wholes.device)
            full[block.name] = (wholes[:, None] * len(inside) + inside).flatten()
    return full


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
        maps: for each block a matrix, shape (m, size); a network that has m units results. A
            block within another one may be left out: then its units go with their wholes.
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
    maps, readers = _with_inside(group, maps), _with_inside(group, readers or maps)
    for block in group.blocks:
        for axis in block.axes:
            if axis.buffer and axis.parameter not in moved:
                continue
            matrix = (readers if reads(axis) else maps)[block.name]
            tensor = moved[axis.parameter].to(matrix.dtype)
            first = tensor.movedim(axis.dim, 0)
            mixed = (matrix @ axis.rows(tensor)).reshape(-1, *first.shape[1:])
            if axis.places is not None:  # the other entries of the dimension stay
                places = torch.tensor(axis.places, device=tensor.device).flatten()
                mixed = first.index_copy(0, places, mixed)
            moved[axis.parameter] = mixed.movedim(0, axis.dim)
    return {
        name: tensor.to(params[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in moved.items()
    }


def _with_inside(group: PermutationGroup, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the maps of blocks within others: each whole is mixed as one."""
    full = dict(maps)
    for block in group.blocks:
        if block.name not in full:
            whole = full[block.within]
            inside = torch.eye(block.size // whole.shape[1], dtype=whole.dtype, device=whole.device)
            full[block.name] = torch.kron(whole, inside)
    return full
