r"""Labels: which units lie along the axes of a tensor.

A :class:`Label` says for each entry of a tensor to which units it belongs. Most axes carry one
factor of their own: a feature map of shape (batch, channels, height, width) has a single factor,
on dimension 1. Several axes may share a factor, as the heads and the channels of a head do once
an attention layer has split them; and one axis may carry several columns of units, as a
flattened outer product does. A dimension without a factor is fixed: its entries stay where they
are. A dimension is uniform if the values do not vary along it.

The functions of this module are what operators do with labels. They never look at values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from sokmerge.symmetry.units import PAD, Units, constants

__all__ = [
    "Factor",
    "Label",
    "combine",
    "concatenate",
    "expand",
    "fixed",
    "fresh",
    "groups",
    "keep_rows",
    "only",
    "permute",
    "pin",
    "pin_all",
    "renumber",
    "reshape",
    "take",
    "total",
    "uniform",
]

Array = np.ndarray

LARGEST = 1 << 22
"""Entries of the largest grid that is written out; beyond it, axes are pinned instead."""


@dataclass(frozen=True)
class Factor:
    """Units on some dimensions, in ascending order: an array of shape (their sizes, columns)."""

    dims: tuple[int, ...]
    units: Array


@dataclass(frozen=True)
class Label:
    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    uniform: frozenset[int] = frozenset()

    def covered(self) -> set[int]:
        return {d for factor in self.factors for d in factor.dims}

    def on(self, dim: int) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if dim in factor.dims)

    def fixed_dims(self) -> list[int]:
        """Dimensions along which the entries differ, and stay."""
        covered = self.covered() | self.uniform
        return [d for d, size in enumerate(self.shape) if size != 1 and d not in covered]


def fresh(units: Units, shape: Sequence[int]) -> Label:
    """Label a parameter: every index of every axis is a unit of its own."""
    factors = [Factor((d,), units.fresh(n)[:, None]) for d, n in enumerate(shape) if n > 1]
    return Label(tuple(shape), tuple(factors))


def fixed(shape: Sequence[int]) -> Label:
    """Label a tensor whose entries stay where they are."""
    return Label(tuple(shape))


def uniform(shape: Sequence[int]) -> Label:
    """Label a tensor whose entries are all alike."""
    return Label(tuple(shape), (), frozenset(range(len(shape))))


def total(units: Units, label: Label, dims: Sequence[int], keepdim: bool = False) -> Label:
    """Label what treats the entries along ``dims`` alike and leaves one: a sum, a mean."""
    label = keep_rows(units, label, dims)
    gone = {d % len(label.shape) for d in dims}
    out: list[tuple[tuple[int, ...], Array]] = []
    for factor in label.factors:
        rest = tuple(d for d in factor.dims if d not in gone)
        if rest == factor.dims:
            out.append((factor.dims, factor.units))
        elif rest:
            rows = _rows(units, label.shape, factor, rest)
            if rows is not None:
                out.append((rest, rows))
    shape = tuple(1 if d in gone else n for d, n in enumerate(label.shape))
    made = _normal(units, shape, out, label.uniform - gone)
    if keepdim:
        return made
    left = [d for d in range(len(shape)) if d not in gone]
    return renumber(made, {d: i for i, d in enumerate(left)}, [shape[d] for d in left])


def keep_rows(units: Units, label: Label, dims: Sequence[int]) -> Label:
    """Note that an operator treats the entries along ``dims`` alike: a softmax, a norm."""
    gone = {d % len(label.shape) for d in dims}
    for factor in label.factors:
        rest = tuple(d for d in factor.dims if d not in gone)
        if rest == factor.dims:
            continue
        units.keep(factor.units)
        if rest:
            _rows(units, label.shape, factor, rest)
    return label


def pin(units: Units, label: Label, dim: int, reason: str | None = None) -> Label:
    """Note that an operator does not treat the entries along ``dim`` alike: they stay."""
    dim %= len(label.shape)
    for factor in label.on(dim):
        units.mark(factor.units, _positions(label.shape, factor.dims, (dim,)), reason)
    return label


def only(units: Units, label: Label, dims: Sequence[int]) -> Label:
    """Keep the label of some dimensions; the others are fixed by the operator at hand.

    A factor that spans both is pinned, for what would be left of it is not a factor.
    """
    factors = []
    for factor in label.factors:
        inside = [d in dims for d in factor.dims]
        if all(inside):
            factors.append(factor)
        elif any(inside):
            units.pin(factor.units)
        else:
            units.mark(factor.units, _positions(label.shape, factor.dims, factor.dims))
    return Label(label.shape, tuple(factors), frozenset(d for d in label.uniform if d in dims))


def pin_all(units: Units, label: Label, reason: str | None = None) -> None:
    """Note that nothing is known about an operator: every axis of its operand stays."""
    for factor in label.factors:
        units.pin(factor.units, reason)


def combine(units: Units, *labels: Label) -> Label:
    """Label the elementwise combination of tensors that broadcast against one another.

    Units that meet are the same.
    """
    out = labels[0]
    for label in labels[1:]:
        out = _combine(units, out, label)
    return out


def expand(label: Label, shape: Sequence[int]) -> Label:
    """Label a tensor broadcast to a larger shape."""
    offset = len(shape) - len(label.shape)
    moved = renumber(label, {d: d + offset for d in range(len(label.shape))}, shape)
    new = {d for d in range(len(shape)) if d < offset or label.shape[d - offset] != shape[d]}
    return Label(tuple(shape), moved.factors, moved.uniform | new)


def permute(label: Label, order: Sequence[int]) -> Label:
    """Label a tensor with its dimensions in another order."""
    order = [d % len(label.shape) for d in order]
    return renumber(label, {d: i for i, d in enumerate(order)}, [label.shape[d] for d in order])


def reshape(units: Units, label: Label, shape: Sequence[int]) -> Label:
    """Label a tensor under another shape, with its entries in the same order."""
    out: list[tuple[tuple[int, ...], Array]] = []
    even: set[int] = set()
    for ours, theirs in _joined(groups(label.shape, shape), label):
        sizes = [label.shape[d] for d in ours]
        inside = [f for f in label.factors if set(f.dims) & set(ours)]
        inner = [d for d in ours if label.shape[d] != 1]
        if not inside:
            if all(d in label.uniform for d in inner):
                even |= set(theirs)
            continue
        outer = [d for d in theirs if shape[d] != 1]
        if len(inner) == len(outer) and all(
            label.shape[a] == shape[b] for a, b in zip(inner, outer, strict=True)
        ):
            name = dict(zip(inner, outer, strict=True))
            out += [(tuple(name[d] for d in f.dims), f.units) for f in inside]
            even |= {name[d] for d in inner if d in label.uniform}
            continue
        if prod(sizes) > LARGEST:
            for factor in inside:
                units.pin(factor.units)
            continue
        columns = [_spread(f, ours, sizes) for f in inside]
        covered = {d for f in inside for d in f.dims}
        rest = [d for d in ours if d not in covered and label.shape[d] != 1]
        if rest:
            place = _positions(label.shape, tuple(ours), tuple(rest))
            columns.append((constants(1)[0] - place)[..., None])
        grid = np.concatenate([np.broadcast_to(c, (*sizes, c.shape[-1])) for c in columns], -1)
        units.join(grid)
        new = [shape[d] for d in theirs]
        out.append((tuple(theirs), grid.reshape(*new, grid.shape[-1])))
    return _normal(units, tuple(shape), out, frozenset(even))


def take(units: Units, label: Label, dim: int, index: Array, squeeze: bool = False) -> Label:
    """Label a part of a tensor: the entries at ``index`` along ``dim``."""
    dim %= len(label.shape)
    size = label.shape[dim]
    shape = tuple(len(index) if d == dim else n for d, n in enumerate(label.shape))
    whole = len(index) == size and np.array_equal(index, np.arange(size))
    out = []
    for factor in label.factors:
        if dim not in factor.dims or whole:
            out.append((factor.dims, factor.units))
            continue
        part = np.take(factor.units, index, axis=factor.dims.index(dim))
        units.keep(part)
        out.append((factor.dims, part))
    made = _normal(units, shape, out, label.uniform)
    if not squeeze:
        return made
    left = [d for d in range(len(shape)) if d != dim]
    return renumber(made, {d: i for i, d in enumerate(left)}, [shape[d] for d in left])


def concatenate(units: Units, labels: Sequence[Label], dim: int) -> Label:
    """Label tensors side by side along ``dim``."""
    dim %= len(labels[0].shape)
    shape = list(labels[0].shape)
    shape[dim] = sum(label.shape[dim] for label in labels)
    across = [_without(units, label, dim) for label in labels]
    others = combine(units, *across)
    along = [label.on(dim) for label in labels]
    if not any(along):
        even = frozenset(d for d in others.uniform if d != dim)
        return Label(tuple(shape), others.factors, even)
    dims = next(f.dims for factors in along for f in factors)
    if any(f.dims != dims for factors in along for f in factors):
        for factors in along:
            for factor in factors:
                units.pin(factor.units)
        return Label(tuple(shape), others.factors, frozenset(d for d in others.uniform if d != dim))
    pieces = []
    for label, factors in zip(labels, along, strict=True):
        sizes = [label.shape[d] for d in dims]
        if factors:
            pieces.append(np.concatenate([f.units for f in factors], -1))
        else:
            pieces.append((constants(1)[0] - np.arange(prod(sizes))).reshape(*sizes, 1))
    wide = max(piece.shape[-1] for piece in pieces)
    at = dims.index(dim)
    several = len(pieces) > 1 and _repeated(units, pieces)
    padded = []
    for i, piece in enumerate(pieces):
        pad = [(0, 0)] * (piece.ndim - 1) + [(0, wide - piece.shape[-1])]
        piece = np.pad(piece, pad, constant_values=PAD)
        if several:
            which = np.full((*piece.shape[:-1], 1), constants(1)[0] - i)
            piece = np.concatenate([piece, which], -1)
        padded.append(piece)
    joined = np.concatenate(padded, axis=at)
    units.join(joined)
    factors = [(f.dims, f.units) for f in others.factors] + [(dims, joined)]
    return _normal(units, tuple(shape), factors, frozenset(d for d in others.uniform if d != dim))


# --- inside -----------------------------------------------------------------------------------


def _without(units: Units, label: Label, dim: int) -> Label:
    """The label of a slice of length one, without the units that lie along ``dim``."""
    shape = tuple(1 if d == dim else n for d, n in enumerate(label.shape))
    factors = tuple(f for f in label.factors if dim not in f.dims)
    beside = {d for f in label.on(dim) for d in f.dims} - {d for f in factors for d in f.dims}
    return Label(shape, factors, (label.uniform | beside) - {dim})


def _repeated(units: Units, pieces: Sequence[Array]) -> bool:
    """Say whether some unit occurs in two pieces."""
    seen: Array | None = None
    for piece in pieces:
        resolved = units.resolve(piece)
        ids = np.unique(resolved[resolved >= 0])
        if seen is not None and np.isin(ids, seen).any():
            return True
        seen = ids if seen is None else np.concatenate([seen, ids])
    return False


def _combine(units: Units, a: Label, b: Label) -> Label:
    rank = max(len(a.shape), len(b.shape))
    shape = tuple(
        max(x, y) if 0 not in (x, y) else 0
        for x, y in zip(
            (1,) * (rank - len(a.shape)) + a.shape,
            (1,) * (rank - len(b.shape)) + b.shape,
            strict=True,
        )
    )
    a, b = expand(a, shape), expand(b, shape)
    for one, other in ((a, b), (b, a)):
        still = other.fixed_dims()
        for factor in one.factors:
            dims = tuple(d for d in factor.dims if d in still)
            if dims:
                places = _positions(shape, factor.dims, dims)
                units.mark(factor.units, places, f"meets axes that stay, in {units.reason}")
    for f in a.factors:
        for g in b.factors:
            both = tuple(d for d in f.dims if d in g.dims)
            if both:
                _meet(units, shape, f, g, both)
    factors = list(a.factors)
    for g in b.factors:
        if not any(set(g.dims) <= set(f.dims) for f in a.factors):
            factors = [f for f in factors if not set(f.dims) < set(g.dims)]
            factors.append(g)
    even = (a.uniform & b.uniform) - {d for f in factors for d in f.dims}
    return _normal(units, shape, [(f.dims, f.units) for f in factors], frozenset(even))


def _meet(units: Units, shape: tuple[int, ...], f: Factor, g: Factor, both: tuple[int, ...]):
    if f.dims == g.dims:
        units.relate(_flat(f.units), _flat(g.units), whole=True)
    elif both in (f.dims, g.dims):
        fine, coarse = (f, g) if both == g.dims else (g, f)
        sizes = [shape[d] for d in fine.dims]
        spread = _spread(coarse, fine.dims, sizes)
        spread = np.broadcast_to(spread, (*sizes, spread.shape[-1]))
        units.relate(_flat(fine.units), _flat(spread))
    else:
        rows = [_rows(units, shape, x, both) for x in (f, g)]
        if rows[0] is not None and rows[1] is not None:
            units.relate(_flat(rows[0]), _flat(rows[1]))


def _rows(units: Units, shape: tuple[int, ...], factor: Factor, rest: tuple[int, ...]):
    """What is left of a factor if its other dimensions are summed over; shape (rest, k)."""
    order = [factor.dims.index(d) for d in rest]
    order += [i for i, d in enumerate(factor.dims) if d not in rest]
    array = factor.units.transpose(*order, len(factor.dims))
    sizes = [shape[d] for d in rest]
    rows = units.rows(array.reshape(prod(sizes), -1, array.shape[-1]))
    return None if rows is None else rows.reshape(*sizes, rows.shape[-1])


def _flat(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _positions(shape: tuple[int, ...], dims: tuple[int, ...], along: tuple[int, ...]) -> Array:
    """Number the places along some of a factor's dimensions; shape: the sizes of ``dims``."""
    place = np.zeros((1,) * len(dims), dtype=np.int64)
    for i, d in enumerate(dims):
        if d in along:
            index = np.arange(shape[d]).reshape([-1 if j == i else 1 for j in range(len(dims))])
            place = place * shape[d] + index
    return np.broadcast_to(place, [shape[d] for d in dims])


def _spread(factor: Factor, dims: Sequence[int], sizes: Sequence[int]) -> Array:
    """A factor's units over more dimensions: shape (size or 1 for each, k)."""
    shape = [n if d in factor.dims else 1 for d, n in zip(dims, sizes, strict=True)]
    return factor.units.reshape(*shape, factor.units.shape[-1])


def renumber(label: Label, name: dict[int, int], shape: Sequence[int]) -> Label:
    factors = []
    for factor in label.factors:
        dims = [name[d] for d in factor.dims]
        order = np.argsort(dims)
        array = factor.units
        if list(order) != list(range(len(dims))):
            array = array.transpose(*order, len(dims))
        factors.append(Factor(tuple(sorted(dims)), array))
    even = frozenset(name[d] for d in label.uniform if d in name)
    return Label(tuple(shape), tuple(factors), even)


def _normal(
    units: Units,
    shape: tuple[int, ...],
    factors: Sequence[tuple[tuple[int, ...], Array]],
    even: frozenset[int],
) -> Label:
    """Write factors in terms of the present roots, each column on the dimensions it varies in."""
    columns: dict[tuple[int, ...], list[Array]] = {}
    for dims, array in factors:
        resolved = units.resolve(array)
        for i in range(resolved.shape[-1]):
            column, left = resolved[..., i], []
            for axis, d in reversed(list(enumerate(dims))):
                first = column.take([0], axis=axis)
                if (column == first).all():
                    column = first.squeeze(axis)
                else:
                    left.append(d)
            if left:
                held = columns.setdefault(tuple(reversed(left)), [])
                if not any(np.array_equal(column, other) for other in held):
                    held.append(column)
    if sum(map(len, columns.values())) > 1:
        columns = _without_wholes(units, columns)
    _tell_apart(columns)
    movable = {
        d for dims, held in columns.items() for d in dims if any((c >= 0).any() for c in held)
    }
    made = []
    for dims, held in columns.items():
        if any((c >= 0).any() for c in held) or set(dims) & movable:
            made.append(Factor(dims, np.stack(held, -1)))
    covered = {d for f in made for d in f.dims}
    return Label(shape, tuple(made), frozenset(even - covered))


def _tell_apart(columns: dict[tuple[int, ...], list[Array]]) -> None:
    """Put places that stay to the units whose entries they tell apart, if only they do."""
    still = [dims for dims, held in columns.items() if not any((c >= 0).any() for c in held)]
    for dims, held in columns.items():
        inside = [d for d in still if set(d) < set(dims)]
        if dims in still or not inside:
            continue
        flat = np.stack([c.ravel() for c in held], -1)
        if len(np.unique(flat, axis=0)) == len(flat):
            continue
        shape = held[0].shape
        for other in inside:
            sizes = [n if d in other else 1 for d, n in zip(dims, shape, strict=True)]
            held += [np.broadcast_to(c.reshape(sizes), shape) for c in columns[other]]


def _without_wholes(units: Units, columns: dict[tuple[int, ...], list[Array]]):
    """Drop columns that another one tells: units in which that one's units lie."""
    told: set[tuple[tuple[int, ...], int]] = set()
    for dims, held in columns.items():
        for column in held:
            above = column
            while True:
                above = units.wholes(above)
                if (above < 0).any():
                    break
                for other, those in columns.items():
                    if set(other) <= set(dims):
                        shape = [n if d in other else 1 for d, n in zip(dims, column.shape,
                                                                        strict=True)]  # fmt: skip
                        for i, that in enumerate(those):
                            if (that.reshape(shape) == above).all():
                                told.add((other, i))
    left = {
        dims: [c for i, c in enumerate(held) if (dims, i) not in told]
        for dims, held in columns.items()
    }
    return {dims: held for dims, held in left.items() if held}


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of one size into the shortest runs of dimensions with equal products."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ours, theirs = [], []
        if i < len(old):
            ours.append(i)
            i += 1
        if j < len(new):
            theirs.append(j)
            j += 1
        a, b = prod(old[d] for d in ours), prod(new[d] for d in theirs)
        while a != b or not ours or not theirs:
            if (a < b or not ours) and i < len(old):
                ours.append(i)
                a, i = a * old[i], i + 1
            elif j < len(new):
                theirs.append(j)
                b, j = b * new[j], j + 1
            elif i < len(old):
                ours.append(i)
                a, i = a * old[i], i + 1
            else:
                break
        groups.append((ours, theirs))
    return groups


def _joined(groups: list[tuple[list[int], list[int]]], label: Label):
    """Join groups of dimensions that a factor spans."""
    joined: list[tuple[list[int], list[int]]] = []
    for ours, theirs in groups:
        ours, theirs = list(ours), list(theirs)
        while joined and any(
            set(f.dims) & set(ours) and min(f.dims) < min(ours) for f in label.factors if ours
        ):
            before = joined.pop()
            ours, theirs = before[0] + ours, before[1] + theirs
        joined.append((ours, theirs))
    return joined
