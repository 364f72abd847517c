r"""Units, and what is known of how they may trade places.

A unit is one index of one axis of one parameter: one of the things that a permutation moves. The
registry below collects what the network's operators say about units, as facts of three kinds.

* **Equal**: entries that meet in an elementwise operation, or in a contraction, are the same unit.
* **Part**: a unit lies inside another one, as a channel lies in a head. Where it goes, the whole
  goes with it.
* **Mark**: a unit carries a mark that stays where it is, such as a place in the input. Units with
  different marks may not trade places; a unit whose mark is its own is pinned.

An array of units is an int64 array of shape ``(entries, k)``: each entry is a tuple of ids. An id
of zero or more is a unit. A negative id is a constant, a place that never moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Units", "PAD", "constants"]

Array = np.ndarray

PAD = -1
"""The constant that fills a column where there is nothing to say."""


def constants(count: int) -> Array:
    """Return ``count`` different constants."""
    return -2 - np.arange(count, dtype=np.int64)


@dataclass(frozen=True)
class Fact:
    """Entries, shape (n, k), that every permutation takes to entries of the same set."""

    entries: Array
    reason: str


class Units:
    """A registry of units. It changes as operators are read; roots are what remains at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._link = np.zeros(1024, dtype=np.int64)  # towards the root of equal units
        self._part = np.full(1024, -1, dtype=np.int64)  # at a root: the unit it lies in
        self._whole = np.zeros(1024, dtype=bool)  # at a root: whether some unit lies in it
        self._batch = np.full(1024, -1, dtype=np.int64)  # at a root: where its tuple is kept
        self._row = np.zeros(1024, dtype=np.int64)
        self._axis = np.zeros(1024, dtype=np.int64)  # the axis that a unit was made for
        self._tuples: list[Array] = []
        self._axes: list[Array] = []  # the units along each axis
        self._kin: list[int] = []  # of each axis: one that represents all that share units
        self._fillers = 0
        self.facts: list[Fact] = []
        self.reason = ""

    # --- making and finding -----------------------------------------------------------------

    def fresh(self, count: int) -> Array:
        """Return the ids of new units."""
        first, self.count = self.count, self.count + count
        while self.count > len(self._link):
            size = len(self._link)
            self._link = np.concatenate([self._link, np.zeros(size, np.int64)])
            self._part = np.concatenate([self._part, np.full(size, -1, np.int64)])
            self._whole = np.concatenate([self._whole, np.zeros(size, bool)])
            self._batch = np.concatenate([self._batch, np.full(size, -1, np.int64)])
            self._row = np.concatenate([self._row, np.zeros(size, np.int64)])
            self._axis = np.concatenate([self._axis, np.zeros(size, np.int64)])
        ids = np.arange(first, self.count, dtype=np.int64)
        self._link[ids] = ids
        self._axis[ids] = len(self._axes)
        self._kin.append(len(self._axes))
        self._axes.append(ids[:, None])
        return ids

    def join(self, array: Array) -> None:
        """Note that units lie on one axis, shape (..., k): they may not become equal either."""
        kin = self._of_kin(array)
        if len(kin) > 1:
            self._kin.append(len(self._axes))
            self._axes.append(array.reshape(-1, array.shape[-1]))
            self._become_kin(kin | {len(self._axes) - 1})

    def _of_kin(self, ids: Array) -> set[int]:
        """The representatives of the axes that units were made for, or share."""
        found = set()
        for axis in np.unique(self._axis[ids[ids >= 0]]).tolist():
            while self._kin[axis] != axis:
                axis = self._kin[axis] = self._kin[self._kin[axis]]
            found.add(axis)
        return found

    def _become_kin(self, kin: set[int]) -> None:
        if kin:
            least = min(kin)
            for axis in kin:
                self._kin[axis] = least

    def _side_by_side(self, a: Array, b: Array) -> bool:
        """Say whether units of a and b, one by one, lie on one axis: they may not become equal.

        Two gates of a recurrent cell are such units, or the query and the key of one projection:
        they move together, and still are two places on one axis.
        """
        kin = self._of_kin(a) & self._of_kin(b)
        if not kin:
            return False
        for axis, units in enumerate(self._axes):
            representative = axis
            while self._kin[representative] != representative:
                representative = self._kin[representative]
            if representative not in kin:
                continue
            ids = self.resolve(units)
            there = np.zeros(self.count, dtype=bool)
            there[ids[ids >= 0]] = True
            if (there[a] & there[b]).any():
                return True
        return False

    def _filler(self) -> int:
        """Return a constant that occurs nowhere else."""
        self._fillers += 1
        return -(1 << 40) - self._fillers

    def find(self, ids: Array) -> Array:
        """Return the roots of ids; constants are their own."""
        real = ids >= 0
        if not real.all():
            found = ids.copy()
            found[real] = self.find(ids[real])
            return found
        found = self._link[ids]
        while True:
            further = self._link[found]
            if np.array_equal(further, found):
                break
            found = further
        self._link[ids] = found
        return found

    def resolve(self, array: Array) -> Array:
        """Return an array, shape (..., k), in terms of the present roots: shape (..., k')."""
        columns: list[Array] = []
        pending = [array[..., i] for i in range(array.shape[-1])]
        while pending:
            column = self.find(pending.pop(0))
            held = np.where(column >= 0, self._batch[np.maximum(column, 0)], -1)
            if (held < 0).all():
                columns.append(column)
                continue
            batches = np.unique(held[held >= 0])
            wide = max(self._tuples[b].shape[1] for b in batches)
            out = np.full((*column.shape, wide), PAD, dtype=np.int64)
            out[..., 0] = column
            for b in batches:
                at = held == b
                rows = self._tuples[b][self._row[column[at]]]
                out[at] = PAD
                out[at, : rows.shape[1]] = rows
            pending = [out[..., i] for i in range(wide)] + pending
        return np.stack(columns, -1)

    def wholes(self, ids: Array) -> Array:
        """Return for each unit the one it lies in, or -1."""
        roots = self.find(ids)
        return self.find(np.where(roots >= 0, self._part[np.maximum(roots, 0)], -1))

    # --- facts ------------------------------------------------------------------------------

    def mark(self, array: Array, keys: Array, reason: str | None = None) -> None:
        """Say that every entry of ``array``, shape (..., k), carries the mark ``keys``, (...).

        Marks are numbers of any kind; what matters is which of them are equal.
        """
        entries = array.reshape(-1, array.shape[-1])
        if (entries >= 0).any():
            marks = constants(1)[0] - np.unique(keys.ravel(), return_inverse=True)[1]
            self.keep(np.concatenate([entries, marks[:, None]], -1), reason)

    def pin(self, array: Array, reason: str | None = None) -> None:
        """Say that every unit of ``array`` stays."""
        array = self.resolve(array)
        for i in range(array.shape[-1]):
            units = np.unique(array[..., i])
            self.mark(units[:, None], units, reason)

    def keep(self, array: Array, reason: str | None = None) -> None:
        """Say that an array's entries are one set, which every permutation keeps together."""
        if (array >= 0).any():
            entries = array.reshape(-1, array.shape[-1])
            self.facts.append(Fact(entries, reason or self.reason))

    def relate(self, a: Array, b: Array, whole: bool = False) -> None:
        """Say that two arrays of entries, shapes (n, k) and (n, l), belong together one by one.

        If a's entries determine b's, then a unit of a lies in one of b; if each determines the
        other, they are equal. Where neither does, all of them are pinned. So they are if the
        entries should be all different (``whole``), and are not.
        """
        a, b = _tidy(self.resolve(a)), _tidy(self.resolve(b))
        if not whole and a.shape == b.shape and np.array_equal(a, b):
            return
        index_a, index_b = _index(a), _index(b)
        many_a, many_b = index_a.max() + 1, index_b.max() + 1
        both = len(np.unique(index_a * many_b + index_b))
        if whole and min(many_a, many_b) < len(a):
            self.pin(a)
            self.pin(b)
        elif both == many_a == many_b:
            self._equal(*_first(index_a, a, b))
        elif both == many_a:
            self._inside(*_first(index_a, a, b))
        elif both == many_b:
            self._inside(*_first(index_b, b, a))
        else:
            self.pin(a)
            self.pin(b)

    def rows(self, array: Array) -> Array | None:
        """Return what is left of an array, shape (r, n, k), where each row is taken as one.

        This is what a sum over the second dimension needs: its result has an entry for each
        row. The units of a row go together, so a row becomes a unit itself, in which they lie.

        Returns:
            An array of shape (r, k'), or None if the rows are all alike.
        """
        array = self.resolve(array)
        out = []
        for i in range(array.shape[-1]):
            column = array[..., i]
            if (column == column[:, :1]).all():
                out.append(column[:, 0])
                continue
            ordered = np.sort(column, axis=1)
            if (ordered == ordered[:1]).all():
                continue  # the same in every row: the row says nothing
            owner = np.repeat(np.arange(len(column)), column.shape[1])
            flat = column.ravel()
            real = flat >= 0
            if not real.all() or not _tells(flat, owner):
                self.pin(column[..., None])
                out.append(constants(len(column)))
                continue
            above = self.wholes(column)
            alike = (above >= 0).all() and (above == above[:, :1]).all()
            if alike and len(np.unique(above[:, 0])) == len(above):
                out.append(above[:, 0])
                continue
            made = self.fresh(len(column))
            self.relate(flat[:, None], np.repeat(made, column.shape[1])[:, None])
            out += list(np.moveaxis(self.resolve(made[:, None]), -1, 0))
        return _tidy(np.stack(out, -1)) if out else None

    def _equal(self, a: Array, b: Array) -> None:
        """Entries of a and b, each at most once, are the same."""
        if a.shape[1] == b.shape[1] == 1:
            self._union(a[:, 0], b[:, 0])
        elif a.shape[1] == 1 and self._may_become(a, b):
            self._become(a[:, 0], b)
        elif b.shape[1] == 1 and self._may_become(b, a):
            self._become(b[:, 0], a)
        elif a.shape[1] == b.shape[1] and all(
            _one_to_one(a[:, i], b[:, i]) for i in range(a.shape[1])
        ):
            for i in range(a.shape[1]):
                self._union(a[:, i], b[:, i])
        else:
            self.pin(a)
            self.pin(b)

    def _union(self, a: Array, b: Array) -> None:
        constant = (a < 0) | (b < 0)
        if constant.any():
            for x, y in ((a, b), (b, a)):
                at = constant & (x >= 0)
                self.mark(x[at][:, None], y[at])
            a, b = a[~constant], b[~constant]
        differ = a != b
        a, b = a[differ], b[differ]
        if not len(a):
            return
        if self._side_by_side(a, b):
            self._parallel(a, b)
            return
        self._become_kin(self._of_kin(a) | self._of_kin(b))
        above_a, above_b = self.wholes(a), self.wholes(b)
        touched = np.concatenate([a[self._whole[a]], b[self._whole[b]]])
        while True:
            root_a, root_b = self.find(a), self.find(b)
            differ = root_a != root_b
            if not differ.any():
                break
            high = np.maximum(root_a, root_b)[differ]
            self._link[high] = np.minimum(root_a, root_b)[differ]
        self._whole[self.find(touched)] = True
        roots = self.find(a)
        self._part[roots] = -1
        above_a, above_b = self.find(above_a), self.find(above_b)
        for above in (above_a, above_b):
            has = (above >= 0) & (above != roots)
            self._part[roots[has]] = above[has]
        for above in (above_a, above_b):
            has = (above >= 0) & (above != roots)
            if has.any():
                self._same_wholes(roots[has], above[has])

    def _parallel(self, a: Array, b: Array) -> None:
        """Units that move together, and lie side by side: tuples of a common one and a side."""
        pairs = np.unique(np.sort(np.stack([a, b], -1), 1), axis=0)
        if 2 * len(pairs) == len(a):  # each with its partner, as where halves are exchanged
            a, b = pairs[:, 0], pairs[:, 1]
        together = np.concatenate([a, b])
        if len(np.unique(together)) < len(together) or self._whole[together].any():
            self.pin(a[:, None])
            self.pin(b[:, None])
            return
        common = self.fresh(len(a))
        self._become_kin(self._of_kin(together) | self._of_kin(common))
        for side in (a, b):
            self._become(side, common[:, None])

    def _same_wholes(self, units: Array, above: Array) -> None:
        present = self.wholes(units)
        known, given = present[:, None], above[:, None]
        if np.array_equal(present, self.find(above)):
            return
        index, other = _index(self.resolve(known)), _index(self.resolve(given))
        if _one_to_one(index, other):
            self.relate(known, given)
            return
        self.pin(units[:, None])
        self.pin(known)
        self.pin(given)

    def _may_become(self, a: Array, b: Array) -> bool:
        column = a[:, 0]
        real = column[column >= 0]
        if self._whole[real].any() or len(np.unique(column)) < len(column):
            return False
        return not np.isin(real, b).any()

    def _become(self, a: Array, b: Array) -> None:
        """Each unit of a is a tuple of others: from now on it is written so."""
        real = a >= 0
        self.mark(b[~real], a[~real])
        a, b = a[real], b[real]
        kin = self._of_kin(a)
        if kin & self._of_kin(b):  # perhaps on one axis with what it becomes: keep it apart
            b = np.concatenate([b, np.full((len(b), 1), self._filler())], -1)
        self._become_kin(kin | self._of_kin(b))
        above = self.wholes(a)
        self._batch[a], self._row[a] = len(self._tuples), np.arange(len(a))
        self._tuples.append(b)
        has = above >= 0
        if has.any():
            self.relate(b[has], above[has][:, None])

    def _inside(self, a: Array, b: Array) -> None:
        """Each entry of a, at most once, lies in an entry of b."""
        if a.shape[1] > 1:  # b is told by some of a's columns, if it is to be told at all
            for i in range(a.shape[1]):
                if b.shape[1] == 1 and _one_to_one(a[:, i], b[:, 0]):
                    self._equal(*_first(_index(b), a[:, i : i + 1], b))
                    return
            for i in range(a.shape[1]):
                column = a[:, i : i + 1]
                if b.shape[1] == 1 and (column >= 0).all() and _tells(column[:, 0], b[:, 0]):
                    self._inside(*_first(_index(column), column, b))
                    return
            self.pin(a)
            self.pin(b)
            return
        for i in range(b.shape[1]):
            self._lie(self.find(a[:, 0]), self.find(b[:, i]))
            a = self.resolve(a)
            if a.shape[1] > 1:  # it has just become a tuple: tell the rest to that
                if i + 1 < b.shape[1]:
                    self.relate(a, b[:, i + 1 :])
                return

    def _lie(self, child: Array, whole: Array) -> None:
        fixed = (child < 0) | (whole < 0)
        if fixed.any():
            at = fixed & (child >= 0)
            self.mark(child[at][:, None], whole[at])
            at = fixed & (whole >= 0)
            self.pin(whole[at][:, None])
            child, whole = child[~fixed], whole[~fixed]
        if not len(child):
            return
        if np.isin(child, whole).any():
            self.pin(child[:, None])
            self.pin(whole[:, None])
            return
        above = self.wholes(child)
        new = above < 0
        self._part[child[new]] = whole[new]
        self._whole[whole[new]] = True
        child, whole, above = child[~new], whole[~new], above[~new]
        if not len(child) or np.array_equal(above, whole):
            return
        pairs = _pairs(above, whole)
        if pairs in (many := (len(np.unique(above)), len(np.unique(whole)))):
            if pairs == many[0]:  # what is above determines the new whole
                self.relate(above[:, None], whole[:, None])
            else:  # the new whole lies between
                self._part[child] = whole
                self._whole[whole] = True
                self.relate(whole[:, None], above[:, None])
        elif pairs == len(child) == many[0] * many[1] and not self._whole[child].any():
            self._part[child] = -1
            self._become(child, np.stack([above, whole], -1))
        else:
            self.pin(child[:, None])
            self.pin(whole[:, None])
            self.pin(above[:, None])

    # --- reading ----------------------------------------------------------------------------

    def parts(self) -> Iterator[tuple[Array, Array]]:
        """Yield the present roots that lie in others, and what they lie in."""
        ids = np.arange(self.count, dtype=np.int64)
        roots = ids[(self._link[ids] == ids) & (self._batch[ids] < 0) & (self._part[ids] >= 0)]
        if len(roots):
            yield roots, self.resolve(self._part[roots][:, None])


def _tidy(array: Array) -> Array:
    """Drop the columns that say nothing: constants that are the same in every entry."""
    columns = [array[..., i] for i in range(array.shape[-1])]
    said = [i for i, c in enumerate(columns) if c.flat[0] >= 0 or (c != c.flat[0]).any()]
    if not said:
        return array[..., :1]
    return array[..., said]


def _index(array: Array) -> Array:
    """Number the different entries of an array, shape (n, k)."""
    index = np.unique(array[:, 0], return_inverse=True)[1]
    for i in range(1, array.shape[1]):
        column = np.unique(array[:, i], return_inverse=True)[1]
        index = np.unique(index * (column.max() + 1) + column, return_inverse=True)[1]
    return index


def _first(index: Array, *arrays: Array) -> tuple[Array, ...]:
    """Keep one entry for each number."""
    at = np.unique(index, return_index=True)[1]
    return tuple(array[at] for array in arrays)


def _pairs(a: Array, b: Array) -> int:
    """Count the different pairs."""
    return int(_index(np.stack([a, b], -1)).max()) + 1 if len(a) else 0


def _one_to_one(a: Array, b: Array) -> bool:
    return _pairs(a, b) == len(np.unique(a)) == len(np.unique(b))


def _tells(a: Array, b: Array) -> bool:
    return _pairs(a, b) == len(np.unique(a))
