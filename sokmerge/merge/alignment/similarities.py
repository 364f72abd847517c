r"""How alike the units of two networks are by their weights, while other units change places."""

from __future__ import annotations

import torch
from torch import Tensor

from sokmerge.params import Params, has_values, wide
from sokmerge.symmetry import Axis, Block, Permutation, PermutationGroup

__all__ = ["Similarities"]

_KEPT = 1 << 28
"""Bytes of similarities that are kept, to be updated where few units have moved."""


class Similarities:
    r"""The similarities of a block's units, for any present order of all units.

    For units i of a and j of b it is

    .. math:: S_{ij} = \sum_{\text{axes}} \langle \theta_A[i],\ \theta_B[j]\rangle,

    the sum over all weights that lie along the units' axes, with the units of b along all other
    axes in their present order. It is the derivative of the inner product of a and b by the
    block's permutation matrix, in double precision where there is any.

    A parameter along which few units have moved since a similarity was last computed is not
    multiplied again: what has moved is. The result is the same but for rounding.
    """

    def __init__(self, a: Params, b: Params, group: PermutationGroup) -> None:
        self._a, self._b = a, b
        self._along: dict[str, list[tuple[str, Axis]]] = {}
        for block in group.blocks:
            for axis in block.axes:
                if not axis.buffer:  # running statistics are not weights
                    self._along.setdefault(axis.parameter, []).append((block.name, axis))
        self._covered: dict[int, frozenset[int]] = {}
        self._neighbours = {
            block.name: tuple(
                dict.fromkeys(
                    name
                    for mine in block.axes
                    for name, axis in self._along.get(mine.parameter, [])
                    if self._meet(axis, mine)
                )
            )
            for block in group.blocks
        }
        self._last: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
        self._budget = _KEPT

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return the blocks whose order the similarity of a block depends on."""
        return self._neighbours[name]

    def coupled(self, names: frozenset[str]) -> tuple[str, ...]:
        """Return the parameters in which units of these blocks meet one another.

        Where there are none, the inner product is linear in the permutations of these blocks.
        """
        found = []
        for parameter, along in self._along.items():
            mine = [axis for name, axis in along if name in names]
            if any(self._meet(x, y) for i, x in enumerate(mine) for y in mine[:i]):
                found.append(parameter)
        return tuple(found)

    def of(self, block: Block, permutation: Permutation) -> Tensor:
        """Return S, shape (size, size), for the present order of all units."""
        orders = {name: permutation[name] for name in self._neighbours[block.name]}
        if block.name in self._last:
            total, before = self._last[block.name]
            moved = self._updated(total, block, before, orders)
            if moved is not None:
                self._last[block.name] = moved, orders
                return moved
        total = None
        for axis in block.axes:
            if axis.buffer:
                continue
            b = self._b[axis.parameter]
            for name, other in self._others(axis):
                b = _re_indexed(b, other, orders[name])
            term = axis.rows(wide(self._a[axis.parameter])) @ axis.rows(wide(b)).T
            total = term if total is None else total + term
        if total is None:  # units without a parameter of their own
            like = wide(next(iter(self._b.values())))
            total = torch.zeros(block.size, block.size, dtype=like.dtype, device=like.device)
        if block.name not in self._last and has_values(total):
            size = total.numel() * total.element_size()
            if size <= self._budget:
                self._budget -= size
                self._last[block.name] = total, orders
        elif block.name in self._last:
            self._last[block.name] = total, orders
        return total

    def product(self, permutation: Permutation, parameters: tuple[str, ...]) -> Tensor:
        """Return the inner product of some parameters of a with those of b, in its order."""
        terms = []
        for parameter in parameters:
            b = self._b[parameter]
            for name, axis in self._along[parameter]:
                b = _re_indexed(b, axis, permutation[name])
            terms.append((wide(self._a[parameter]) * wide(b)).sum())
        return torch.stack(terms).sum()

    def _others(self, mine: Axis) -> list[tuple[str, Axis]]:
        return [x for x in self._along[mine.parameter] if self._meet(x[1], mine)]

    def _meet(self, axis: Axis, other: Axis) -> bool:
        """Say whether two axes share entries of a parameter: what moves one moves the other's.

        Along one dimension they do only where both name the same entries.
        """
        if axis is other:
            return False
        if axis.dim != other.dim:
            return True
        for each in (axis, other):
            if id(each) not in self._covered:  # a block has an axis without places to itself
                places = each.places or ()
                self._covered[id(each)] = frozenset(p for unit in places for p in unit)
        return not self._covered[id(axis)].isdisjoint(self._covered[id(other)])

    def _updated(
        self, total: Tensor, block: Block, before: Permutation, orders: Permutation
    ) -> Tensor | None:
        """Add what has changed since; None where computing it all is no more work."""
        changed = {}
        for name, order in orders.items():
            if order is not before[name] and len(at := (order != before[name]).nonzero()[:, 0]):
                changed[name] = at
        if not changed:
            return total
        for axis in block.axes:
            if axis.buffer:
                continue
            others = self._others(axis)
            hit = [(name, other) for name, other in others if name in changed]
            if not hit:
                continue
            (name, other), at = hit[0], changed[hit[0][0]]
            whole = other.dim != axis.dim and other.places is None
            if len(others) > 1 or not whole or 2 * len(at) > len(orders[name]):
                return None
            entries = _entries(other, at)
            a = self._a[axis.parameter].index_select(other.dim, entries.to(total.device))
            new, old = (
                wide(self._b[axis.parameter].index_select(other.dim, moved.to(total.device)))
                for moved in (_entries(other, orders[name][at]), _entries(other, before[name][at]))
            )
            total = total + axis.rows(wide(a)) @ axis.rows(new - old).T
        return total


def _re_indexed(tensor: Tensor, axis: Axis, order: Tensor) -> Tensor:
    return tensor.index_select(axis.dim, axis.entries(order).to(tensor.device))


def _entries(axis: Axis, units: Tensor) -> Tensor:
    inside = torch.arange(axis.repeat, device=units.device)
    return (units[:, None] * axis.repeat + inside).flatten()

