"""A picture of a symmetry: parameters, their edges coloured by what moves together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np

from sokmerge.reader.styling import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sokmerge.symmetry import PermutationGroup

__all__ = ["group_map"]

_STAYS = "0.75"
_BAR, _GAP, _LINE = 0.2, 0.45, 0.3


def group_map(
    ax: Axes,
    group: PermutationGroup,
    shapes: Mapping[str, Sequence[int]],
    *,
    width: float = 6.5,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw each parameter as a rectangle, and which of its entries trade places.

    The bar at its left lists the entries along its first dimension, the bar above it those along
    its second; a vector has only the first. Bars of one colour and letter move together, each in
    the same way. Grey entries stay. Further dimensions, such as the sides of a kernel, are left
    out. The parameters of a module stand side by side over its name, and below all of them the
    blocks with their sizes.

    Args:
        ax: where to draw; its frame is switched off.
        group: the symmetry.
        shapes: the parameters to draw, in this order, with their shapes.
        width: of the picture, in sides of the longest rectangle.
        names: what to call blocks, where not by their own names.

    >>> import matplotlib.pyplot as plt
    >>> from sokmerge.symmetry import Axis, Block, PermutationGroup
    >>> hidden = Block("hidden", 3, (Axis("in.weight", 0), Axis("out.weight", 1)))
    >>> _, ax = plt.subplots()
    >>> group_map(ax, PermutationGroup((hidden,)), {"in.weight": (3, 2), "out.weight": (1, 3)})
    >>> [text.get_text() for text in ax.texts]
    ['A', 'in', 'A', 'out', 'A', 'hidden, 3 units']
    """
    names = names or {}
    letters = dict(zip((b.name for b in group.blocks), _letters(), strict=False))
    colours = {b.name: PALETTE[i % len(PALETTE)] for i, b in enumerate(group.blocks)}
    longest = max(max(shape[:2], default=1) for shape in shapes.values())
    modules: dict[str, list[str]] = {}
    for name in shapes:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(name)

    def bar(at: tuple[float, float], wide: float, high: float, owner: str | None) -> None:
        ax.add_patch(_rectangle(at, wide, high, colours.get(owner, _STAYS)))
        if owner is not None:
            ax.text(at[0] + wide / 2, at[1] + high / 2, letters[owner], ha="center",
                    va="center_baseline", fontsize=8, color="white", weight="bold")  # fmt: skip

    x = top = 0.0
    lowest = 0.0
    for module, held in modules.items():
        sides = {n: [max((k / longest) ** 0.5, 0.3) for k in shapes[n][:2]] for n in held}
        wides = [_BAR + (side[1] if len(side) > 1 else 0) + 0.1 for side in sides.values()]
        cell = max(sum(wides), 0.115 * len(module)) + _GAP
        if x > 0 and x + cell - _GAP > width:
            x, top = 0.0, lowest - _LINE - _GAP
        at, bottom = x, top
        for name, wide in zip(held, wides, strict=True):
            shape, side = shapes[name], sides[name]
            if len(shape) > 1:
                ax.add_patch(_rectangle((at + _BAR, top - side[0]), side[1], side[0], "0.94"))
            for dim in range(min(len(shape), 2)):
                for start, end, owner in _runs(_owners(group, name, dim, shape[dim])):
                    a, b = (place / shape[dim] * side[dim] for place in (start, end))
                    if dim == 0:
                        bar((at, top - b), _BAR, b - a, owner)
                    else:
                        bar((at + _BAR + a, top), b - a, _BAR, owner)
            at, bottom = at + wide, min(bottom, top - side[0])
        ax.text(x, bottom - 0.07, module, va="top", fontsize=8)
        lowest = min(lowest, bottom - _LINE)
        x += cell
    y = lowest - _GAP
    for block in group.blocks:
        told = f"{names.get(block.name, block.name)}, {block.size} units"
        told += f", equally many in each unit of {letters[block.within]}" if block.within else ""
        bar((0, y), _BAR, _BAR, block.name)
        ax.text(_BAR + 0.1, y + _BAR / 2, told, va="center_baseline", fontsize=8)
        y -= _LINE
    ax.set(xlim=(-0.05, width), ylim=(y + 0.05, _BAR + 0.05), aspect="equal")
    ax.axis("off")


def _letters() -> Sequence[str]:
    return [*ascii_uppercase, *(a + b for a in ascii_uppercase for b in ascii_uppercase)]


def _owners(group: PermutationGroup, name: str, dim: int, length: int) -> list[str | None]:
    """Return for each entry along a dimension the block whose units lie there, the last of them."""
    owners: list[str | None] = [None] * length
    for block in group.blocks:
        for axis in block.axes:
            if (axis.parameter, axis.dim) == (name, dim):
                places = range(length) if axis.places is None else np.ravel(axis.places)
                for place in places:
                    owners[int(place)] = block.name
    return owners


def _runs(owners: Sequence[str | None]) -> list[tuple[int, int, str | None]]:
    """Return the runs of equal entries: first, behind the last, what they are."""
    starts = [0, *(i for i in range(1, len(owners)) if owners[i] != owners[i - 1])]
    return [(a, b, owners[a]) for a, b in zip(starts, [*starts[1:], len(owners)], strict=True)]


def _rectangle(at: tuple[float, float], width: float, height: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle(at, width, height, facecolor=colour, edgecolor="white", linewidth=0.5)
