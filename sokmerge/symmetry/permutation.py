r"""Permutations of hidden units that leave a network's function unchanged.

The units of a hidden layer have no order of their own. If the rows of the layer that makes them
and the columns of every layer that reads them are permuted together, the network computes the
same function (Hecht-Nielsen 1990). A :class:`PermutationGroup` says which axes of which
parameters move together; its elements are one permutation for each such set of axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host

__all__ = ["Axis", "Site", "Block", "Permutation", "PermutationGroup"]

Permutation = Mapping[str, Tensor]
"""An element of a group: for each block a permutation, an int64 tensor of shape (size,)."""


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter, along which units lie.

    Attributes:
        parameter: name of the parameter.
        dim: which of its dimensions.
        repeat: how many consecutive entries belong to one unit. It is 1 except where a feature
            map of ``size`` channels was flattened into ``size * repeat`` features.
        buffer: whether this is a buffer, such as a running mean, or a second name of a
            parameter that is used twice. It moves with its units where it is present, and Params
            that hold the parameters alone may lack it.
        places: where the entries of each unit lie, ``repeat`` of them for each, if they are not
            simply one unit after the other: beside other units (a part of a concatenation), or
            spread among them (the channels of a head, the same in every head). The entries that
            are not named stay.
        length: length of the dimension, where ``places`` is given.
    """

    parameter: str
    dim: int
    repeat: int = 1
    buffer: bool = False
    places: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)
    length: int | None = None

    def entries(self, order: Tensor) -> Tensor:
        """Turn an order of units, shape (size,), into one of all entries of the dimension.

        >>> Axis("head.weight", 1, repeat=2).entries(torch.tensor([1, 0]))
        tensor([2, 3, 0, 1])
        >>> Axis("head.weight", 1, places=((1,), (2,)), length=4).entries(torch.tensor([1, 0]))
        tensor([0, 2, 1, 3])
        """
        if self.places is not None:
            places = self._places.to(order.device)
            index = torch.arange(self.length, device=order.device)
            return index.scatter(0, places.flatten(), places[order].flatten())
        if self.repeat == 1:
            return order
        inside = torch.arange(self.repeat, device=order.device)
        return (order[:, None] * self.repeat + inside).flatten()

    def rows(self, tensor: Tensor) -> Tensor:
        """View a parameter as a matrix with one row for each unit of this axis.

        >>> Axis("head.weight", 1, repeat=2).rows(torch.arange(8).view(2, 4))
        tensor([[0, 4, 1, 5],
                [2, 6, 3, 7]])
        """
        first = tensor.movedim(self.dim, 0)
        if self.places is not None:
            first = first[self._places.flatten().to(tensor.device)]
        return first.reshape(first.shape[0] // self.repeat, -1)

    @cached_property
    def _places(self) -> Tensor:
        return torch.tensor(self.places)


@dataclass(frozen=True)
class Site:
    """Where the units of a block can be observed: at the input of the module that reads them.

    Attributes:
        module: name of the submodule.
        dim: dimension of its input along which the units lie.
        repeat: as in :class:`Axis`.
    """

    module: str
    dim: int
    repeat: int = 1


@dataclass(frozen=True)
class Block:
    """A set of axes that must be permuted together.

    Attributes:
        name: name of the block, by convention that of the layer that makes the units.
        size: number of units.
        axes: every axis along which these units lie.
        site: where their activations can be observed, if anywhere.
        within: name of the block whose units these units lie in, in order and equally many in
            each, as channels lie in heads. Then a permutation of this block says where each unit
            goes in all, and it takes the units of one whole to those of one whole: the one to
            which the permutation of that block takes it.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    site: Site | None = None
    within: str | None = None


@dataclass(frozen=True)
class PermutationGroup:
    r"""The product of symmetric groups :math:`S_{n_1}\times\dots\times S_{n_B}` of a network.

    An element is a mapping from block name to a permutation :math:`\pi`, stored as an index
    tensor. It acts by indexing, :math:`(\pi\cdot\theta)_i = \theta_{\pi(i)}`, along each axis of
    the block, hence :meth:`compose` obeys ``act(compose(p, q), x) == act(p, act(q, x))``.

    A block within another one adds, instead of a factor of its own, the permutations inside each
    of the other's units: with h heads of d channels, the wreath product
    :math:`S_d\wr S_h`, of which an element takes heads to heads and channels along with them.

    >>> hidden = Block("hidden", 2, (Axis("hidden.weight", 0), Axis("head.weight", 1)))
    >>> group = PermutationGroup((hidden,))
    >>> net = {"hidden.weight": torch.tensor([[1.0], [2.0]]), "head.weight": torch.eye(2)}
    >>> swapped = group.act({"hidden": torch.tensor([1, 0])}, net)
    >>> swapped["hidden.weight"].flatten(), swapped["head.weight"]
    (tensor([2., 1.]), tensor([[0., 1.],
            [1., 0.]]))
    """

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        seen: dict[tuple[str, int], bool] = {}
        for block in self.blocks:
            for axis in block.axes:
                partial = axis.places is not None
                if not (partial and seen.setdefault((axis.parameter, axis.dim), True)) and (
                    partial or (axis.parameter, axis.dim) in seen
                ):
                    raise ArgumentError(
                        "blocks",
                        found=f"axis {axis.dim} of {axis.parameter!r} in two places",
                        expected="each axis in one block, once",
                    )
                seen[axis.parameter, axis.dim] = partial
        if len({block.name for block in self.blocks}) != len(self.blocks):
            raise ArgumentError("blocks", found="a name twice", expected="different names")
        sizes: dict[str, int] = {}
        for block in self.blocks:
            if block.within is not None and block.size % sizes.get(block.within, block.size + 1):
                raise ArgumentError(
                    "blocks",
                    found=f"{block.name!r}, {block.size} units within {block.within!r}",
                    expected="an earlier block, whose units each hold equally many",
                )
            sizes[block.name] = block.size

    @property
    def by_name(self) -> Mapping[str, Block]:
        """The blocks by name."""
        return MappingProxyType({block.name: block for block in self.blocks})

    def plain(self) -> PermutationGroup:
        """Return the subgroup of the blocks that have their axes to themselves.

        Left out are blocks within others, the others, and blocks that share an axis with further
        units, so that each axis of a block is ``size`` runs of ``repeat`` entries.
        """
        wholes = {block.within for block in self.blocks}
        return PermutationGroup(
            tuple(
                block
                for block in self.blocks
                if block.within is None
                and block.name not in wholes
                and all(axis.places is None for axis in block.axes)
            )
        )

    def identity(self) -> dict[str, Tensor]:
        """Return the element that changes nothing."""
        return {block.name: torch.arange(block.size) for block in self.blocks}

    def sample(self, seed: int) -> dict[str, Tensor]:
        """Return an element drawn uniformly."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, Tensor] = {}
        for block in self.blocks:
            if block.within is None:
                drawn[block.name] = torch.randperm(block.size, generator=generator)
                continue
            wholes = drawn[block.within]
            each = block.size // len(wholes)
            inside = [torch.randperm(each, generator=generator) + w * each for w in wholes.tolist()]
            drawn[block.name] = torch.cat(inside)
        return drawn

    def compose(self, p: Permutation, q: Permutation) -> dict[str, Tensor]:
        r"""Return the element that acts as q first and p next: :math:`i\mapsto q(p(i))`."""
        return {b.name: q[b.name][p[b.name]] for b in self.blocks}

    def invert(self, p: Permutation) -> dict[str, Tensor]:
        """Return the element that undoes p."""
        return {b.name: torch.argsort(p[b.name]) for b in self.blocks}

    def act(self, permutation: Permutation, params: Params) -> dict[str, Tensor]:
        """Return the parameters of the network whose units are re-indexed.

        Args:
            permutation: an element of this group. Its indices lie on the host or on any device.
            params: parameters on any device; entries that the group does not name are passed on.

        Raises:
            ArgumentError: a block is missing, is no permutation, or does not fit the parameters.
        """
        self.require_fits(params)
        self._require_element(permutation)
        moved = dict(params)
        for block in self.blocks:
            order = permutation[block.name]
            for axis in block.axes:
                if axis.buffer and axis.parameter not in moved:
                    continue
                tensor = moved[axis.parameter]
                index = axis.entries(order).to(tensor.device)
                moved[axis.parameter] = tensor.index_select(axis.dim, index)
        return moved

    def require_fits(self, params: Params, name: str = "params") -> None:
        """Raise unless every axis of the group exists in ``params`` with the right length."""
        for block in self.blocks:
            for axis in block.axes:
                length = block.size * axis.repeat if axis.length is None else axis.length
                expected = f"{length} entries along dimension {axis.dim}"
                if axis.buffer and axis.parameter not in params:
                    continue
                if axis.parameter not in params:
                    raise ArgumentError(
                        name,
                        found=f"no parameter {axis.parameter!r}",
                        expected=f"one with {expected}, for block {block.name!r}",
                        do="The group belongs to another architecture.",
                    )
                shape = tuple(params[axis.parameter].shape)
                if axis.dim >= len(shape) or shape[axis.dim] != length:
                    raise ArgumentError(
                        f"{name}[{axis.parameter!r}]",
                        found=f"shape {shape}",
                        expected=f"{expected}, for block {block.name!r}",
                        do="The group belongs to another architecture.",
                    )

    def _require_element(self, permutation: Permutation) -> None:
        for block in self.blocks:
            if block.name not in permutation:
                raise ArgumentError(
                    "permutation",
                    found=f"no entry for block {block.name!r}",
                    expected=f"one of {block.size} indices",
                )
            order = permutation[block.name]
            fine = order.shape == (block.size,) and order.dtype in (torch.int64, torch.int32)
            if not fine or (np.abs(np.sort(host(order)) - np.arange(block.size)) > 0).any():
                raise ArgumentError(
                    f"permutation[{block.name!r}]",
                    found=f"{order.dtype} of shape {tuple(order.shape)} that is no permutation",
                    expected=f"each integer of 0 ... {block.size - 1} once, in a vector",
                )
            if block.within is not None:
                each = block.size // len(permutation[block.within])
                wholes = host(permutation[block.within])
                if (np.abs(host(order) // each - np.repeat(wholes, each)) > 0).any():
                    raise ArgumentError(
                        f"permutation[{block.name!r}]",
                        found=f"units that leave those of one whole of {block.within!r}",
                        expected="the units of each whole together, where the whole goes",
                    )
