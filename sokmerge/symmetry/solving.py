"""From what a graph says about units to the group: which units may trade places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sokmerge.symmetry.permutation import Axis, Block, Site
from sokmerge.symmetry.tracing import OUTPUT, Reader, Trace
from sokmerge.symmetry.units import Units

__all__ = ["Pinned", "mix64", "solve"]

Array = np.ndarray


@dataclass(frozen=True)
class Pinned:
    """Entries along an axis that stay where they are.

    Attributes:
        parameter: name of the parameter or buffer.
        dim: which of its dimensions.
        count: how many entries stay.
        reason: the operator that pins them and the submodule that it belongs to.
    """

    parameter: str
    dim: int
    count: int
    reason: str


@dataclass(frozen=True)
class _Line:
    """The entries along one dimension of one parameter: shape (n, columns)."""

    parameter: str
    dim: int
    entries: Array


def solve(traced: Trace) -> tuple[tuple[Block, ...], tuple[Pinned, ...], tuple[int, int]]:
    """Return the blocks of units that trade places, the axes whose entries stay, and two counts.

    The counts are of the hidden channels that the layers make, and of those among them that may
    trade places.
    """
    units = traced.units
    lines = [
        _Line(name, factor.dims[0], factor.units)
        for name, label in traced.tensors.items()
        for factor in label.factors
    ]
    while True:
        lines = [_Line(x.parameter, x.dim, units.resolve(x.entries)) for x in lines]
        facts = [units.resolve(fact.entries) for fact in units.facts]
        arrays = [x.entries for x in lines] + facts
        children, wholes = _above(units)
        print_ = _kinds(units.count, arrays, children, wholes)
        broken = _broken(print_, arrays, len(lines))
        if not broken:
            break
        for entries in broken:
            units.pin(entries, "entries that are not told apart by their units")
    classes = _Classes(units.count, print_, lines, children, wholes)
    blocks = classes.blocks(traced.readers, traced.buffers, units)
    pinned = _pinned(units, lines, classes)
    output = np.zeros(units.count, dtype=bool)
    for fact in units.facts:
        if fact.reason == OUTPUT:
            entries = units.resolve(fact.entries)
            output[entries[entries >= 0]] = True
    hidden = moved = 0
    for line in lines:
        if (line.parameter, line.dim) in traced.layers:
            free = classes.free(line.entries).any(1)
            told = (output[np.maximum(line.entries, 0)] & (line.entries >= 0)).any(1)
            hidden += int((free | ~told).sum())
            moved += int(free.sum())
    return blocks, pinned, (hidden, moved)


def _above(units: Units) -> tuple[Array, Array]:
    empty = np.zeros(0, dtype=np.int64)
    for children, wholes in units.parts():
        single = (wholes[:, 1:] < 0).all(1) if wholes.shape[1] > 1 else np.ones(len(wholes), bool)
        for ids in (children[~single], wholes[~single]):
            if len(ids):
                units.pin(ids.reshape(len(ids), -1), "units that lie in several at once")
        children, wholes = children[single], wholes[single, 0]
        # Whatever would lie in itself, over any number of steps, stays.
        up = np.full(units.count, -1, dtype=np.int64)
        up[children] = wholes
        top = wholes.copy()
        for _ in range(32):
            top = np.where(top >= 0, up[top], -1)
        if (top >= 0).any():
            units.pin(children[top >= 0][:, None], "units that lie in themselves")
            units.pin(wholes[top >= 0][:, None], "units that lie in themselves")
            return children[top < 0], wholes[top < 0]
        return children, wholes
    return empty, empty


# --- who resembles whom -----------------------------------------------------------------------


def mix64(x: Array) -> Array:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    x = np.asarray(x).astype(np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31)) + np.uint64(0x9E3779B97F4A7C15)


def _surroundings(entries: Array, seed: int) -> Array:
    """A number for each entry that tells its constants."""
    around = np.full(len(entries), seed * 2654435761 + 97, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i in range(entries.shape[1]):
            column = entries[:, i]
            said = np.where(column < 0, -column, 0).astype(np.uint64)
            around = mix64(around * np.uint64(31) + mix64(said + np.uint64(i)))
    return around


def _kinds(count: int, arrays: Sequence[Array], children: Array, wholes: Array):
    """Give every unit a fingerprint: units that may trade places have equal ones.

    Units start alike; they come to differ by the arrays they occur in, the constants they occur
    with, and what they lie in, until nothing further differs.
    """
    print_ = np.zeros(count, dtype=np.uint64)
    several = []
    with np.errstate(over="ignore"):
        for seed, entries in enumerate(arrays):
            around = _surroundings(entries, seed)
            movable = entries >= 0
            for i in range(entries.shape[1]):
                at = movable[:, i]
                if at.any():
                    np.add.at(print_, entries[at, i], mix64(around[at] + np.uint64(i)))
            if (movable.sum(1) > 1).any():
                several.append((seed, entries, around, movable))
        print_ = mix64(print_)
        number = len(np.unique(print_))
        while True:
            more = print_.copy()
            if len(children):
                more[children] += mix64(print_[wholes] + np.uint64(1))
                np.add.at(more, wholes, mix64(print_[children] + np.uint64(2)))
            for _, entries, around, movable in several:
                for i in range(entries.shape[1]):
                    for j in range(entries.shape[1]):
                        at = movable[:, i] & movable[:, j]
                        if i != j and at.any():
                            told = mix64(print_[entries[at, j]] + np.uint64(16 * i + j))
                            np.add.at(more, entries[at, i], mix64(told + around[at]))
            print_ = mix64(more)
            now = len(np.unique(print_))
            if now == number:
                return print_
            number = now


def _broken(print_: Array, arrays: Sequence[Array], lines: int) -> list[Array]:
    """Find arrays on which units of equal fingerprints may still not trade places freely.

    An array with two columns of units is safe if each unit of one column occurs with each unit of
    the other; and along a parameter, no two entries may be told by the same units.
    """
    found = []
    kind = np.unique(print_, return_inverse=True)[1]
    alone = np.bincount(kind)[kind] == 1
    for number, entries in enumerate(arrays):
        movable = entries >= 0
        if not movable.any():
            continue
        free = movable & ~np.where(movable, alone[np.maximum(entries, 0)], True)
        bad = np.zeros(len(entries), dtype=bool)
        if number < lines:
            index = np.unique(entries, axis=0, return_inverse=True)[1].ravel()
            bad |= (np.bincount(index)[index] > 1) & free.any(1)
        if (free.sum(1) > 1).any():
            at = free.sum(1) > 1
            around = _surroundings(np.where(free, 0, entries), 0)
            key = np.stack(
                [around] + [np.where(free[:, i], kind[np.where(free[:, i], entries[:, i], 0)], -1)
                            .astype(np.uint64) for i in range(entries.shape[1])], -1)  # fmt: skip
            group = np.unique(key, axis=0, return_inverse=True)[1].ravel()
            for g in np.unique(group[at]):
                inside = entries[group == g]
                full = 1
                for i in np.flatnonzero(free[group == g][0]):
                    full *= len(np.unique(inside[:, i]))
                if len(np.unique(inside, axis=0)) != full:
                    bad |= group == g
        if bad.any():
            found.append(np.where(free, entries, -1)[bad])
    return found


# --- blocks -----------------------------------------------------------------------------------


class _Classes:
    """Units sorted into classes of those that trade places."""

    def __init__(
        self, count: int, print_: Array, lines: Sequence[_Line], children: Array, wholes: Array
    ) -> None:
        self.lines = list(lines)
        self.up = np.full(count, -1, dtype=np.int64)
        self.up[children] = wholes
        used = np.zeros(count, dtype=bool)
        for line in lines:
            used[line.entries[line.entries >= 0]] = True
        present = np.flatnonzero(used)
        while len(present):  # and whatever they lie in
            above = self.up[present]
            present = np.unique(above[(above >= 0) & ~used[above]])
            used[present] = True
        self.used = used
        kind = np.full(count, -1, dtype=np.int64)
        kind[used] = np.unique(print_[used], return_inverse=True)[1]
        self.kind = kind
        self.size = np.bincount(kind[used]) if used.any() else np.zeros(0, dtype=np.int64)
        self._merge_only_children()

    def _merge_only_children(self) -> None:
        """A unit that is the only one of its class in its whole is the whole."""
        self.same = np.arange(len(self.kind))
        depths = self._depths()
        for c in sorted(np.flatnonzero(self.size > 1), key=lambda c: depths[c]):
            units = np.flatnonzero(self.kind == c)
            above = self.up[units]
            if (above >= 0).all():
                parent = self.kind[above[0]]
                if self.size[parent] == self.size[c]:
                    self.same[units] = self.same[above]

    def _depths(self) -> Array:
        """In how many others the units of each class lie, one in the other."""
        depths = np.zeros(len(self.size), dtype=np.int64)
        units = np.flatnonzero(self.used)
        above = units
        for depth in range(len(self.kind)):
            depths[self.kind[units]] = depth
            above = self.up[above]
            units, above = units[above >= 0], above[above >= 0]
            if not len(units):
                break
        return depths

    def free(self, ids: Array) -> Array:
        """Say of each id whether it may trade places with another."""
        free = np.zeros(ids.shape, dtype=bool)
        movable = ids >= 0
        free[movable] = self.size[self.kind[ids[movable]]] > 1
        return free

    def blocks(
        self, readers: Sequence[Reader], buffers: frozenset[str], units: Units
    ) -> tuple[Block, ...]:
        canonical = np.where(self.used, self.same[np.arange(len(self.same))], -1)
        kinds = [int(c) for c in np.argsort(self._depths(), kind="stable") if self.size[c] > 1]
        kinds = [c for c in kinds if (self.same[(m := np.flatnonzero(self.kind == c))] == m).all()]
        members = {c: np.flatnonzero(self.kind == c) for c in kinds}

        # Where units first occur along a parameter gives them their order and their name.
        place = np.full((len(self.kind), 2), np.iinfo(np.int64).max, dtype=np.int64)
        sorted_lines = sorted(
            range(len(self.lines)),
            key=lambda i: (self.lines[i].dim != 0, self.lines[i].parameter in buffers, i),
        )
        for rank, i in reversed(list(enumerate(sorted_lines))):
            entries = self.lines[i].entries
            for column in range(entries.shape[1]):
                at = np.flatnonzero(entries[:, column] >= 0)[::-1]
                ids = canonical[entries[at, column]]
                place[ids, 0], place[ids, 1] = rank, at
        for c in reversed(kinds):  # a whole without a parameter of its own: where its parts are
            ids = members[c]
            above = self.up[ids]
            if (above >= 0).all():
                order = np.lexsort((place[ids, 1], place[ids, 0]))[::-1]
                empty = place[above[order], 0] == np.iinfo(np.int64).max
                place[above[order][empty]] = place[ids[order][empty]]

        kinds.sort(key=lambda c: tuple(place[members[c]].min(0)))
        ordered: list[int] = []
        for c in kinds:  # wholes before what lies in them
            chain = []
            while c >= 0 and c not in ordered:
                chain.append(c)
                c = self._whole_kind(c, members)
            ordered += reversed(chain)

        position = np.full(len(self.kind), -1, dtype=np.int64)
        names: dict[int, str] = {}
        within: dict[int, str | None] = {}
        for c in ordered:
            ids = members[c]
            parent = self._whole_kind(c, members)
            first = position[self.up[ids]] if parent >= 0 else np.zeros(len(ids))
            ids = ids[np.lexsort((place[ids, 1], place[ids, 0], first))]
            position[ids] = np.arange(len(ids))
            members[c] = ids
            within[c] = names[parent] if parent >= 0 else None
            names[c] = self._name(c, ids, place, sorted_lines, set(names.values()))

        axes = self._axes(canonical, position, ordered, buffers)
        made = []
        read = [(r.module, r.dim, self._read(units.resolve(r.units))) for r in readers]
        for c in ordered:
            site = self._site(read, canonical, members[c])
            made.append(Block(names[c], len(members[c]), tuple(axes[c]), site, within[c]))
        return tuple(made)

    def _whole_kind(self, c: int, members: dict[int, Array]) -> int:
        above = self.up[members[c]]
        if (above < 0).any():
            return -1
        kind = int(self.kind[self.same[above[0]]])
        return kind if kind in members and self.size[kind] > 1 else -1

    def _name(self, c: int, ids: Array, place: Array, lines: Sequence[int], taken: set[str]) -> str:
        rank, first = place[ids[0]]
        parameter = self.lines[lines[rank]].parameter
        module, _, last = parameter.rpartition(".")
        name = module if last in ("weight", "bias") and module else parameter
        line = self.lines[lines[rank]].entries
        direct = np.isin(self.same[np.where(line >= 0, line, 0)], ids) & (line >= 0)
        if not direct.any():
            name += " (wholes)"
        elif not direct.any(1).all():
            name += f"[{first}:]"
        elif line.shape[1] > 1 and name in taken:
            name += " (inside)"
        number, base = 2, name
        while name in taken:
            name, number = f"{base} ({number})", number + 1
        return name

    def _axes(
        self, canonical: Array, position: Array, kinds: Sequence[int], buffers: frozenset[str]
    ) -> dict[int, list[Axis]]:
        axes: dict[int, list[Axis]] = {c: [] for c in kinds}
        for line in self.lines:
            entries = np.where(
                line.entries >= 0, canonical[np.maximum(line.entries, 0)], line.entries
            )
            for i in range(entries.shape[1]):
                column = entries[:, i]
                real = np.flatnonzero(column >= 0)
                here = self.kind[column[real]]
                for c in np.unique(here):
                    if int(c) not in axes:
                        continue
                    at = real[here == c]
                    others = np.delete(entries[at], i, axis=1)
                    keys = [at, *-others.T[::-1], position[column[at]]]  # constants descend
                    at = at[np.lexsort(keys)]
                    size = int(self.size[c])
                    places = at.reshape(size, -1)
                    repeat, length = places.shape[1], len(entries)
                    simple = size * repeat == length and (at == np.arange(length)).all()
                    simple = simple and not self.free(others).any()  # the others move there too
                    axes[int(c)].append(
                        Axis(
                            line.parameter,
                            line.dim,
                            repeat,
                            line.parameter in buffers,
                            None if simple else tuple(map(tuple, places.tolist())),
                            None if simple else length,
                        )
                    )
        return axes

    def _read(self, entries: Array) -> Array | None:
        """The one column of units that may trade places, if there is just one."""
        free = self.free(entries)
        columns = np.flatnonzero(free.any(0))
        if len(columns) != 1 or not (entries[:, columns[0]] >= 0).all():
            return None
        return entries[:, columns[0]]

    def _site(
        self, read: Sequence[tuple[str, int, Array | None]], canonical: Array, ids: Array
    ) -> Site | None:
        """The last module that reads these units, all of them and in their order."""
        for module, dim, column in reversed(read):
            if column is None or len(column) % len(ids) or canonical[column[0]] != ids[0]:
                continue
            repeat = len(column) // len(ids)
            if (canonical[column] == np.repeat(ids, repeat)).all():
                return Site(module, dim, repeat)
        return None


def _pinned(units: Units, lines: Sequence[_Line], classes: _Classes) -> tuple[Pinned, ...]:
    why = np.full(units.count, -1, dtype=np.int64)
    reasons: list[str] = []
    for fact in units.facts:
        entries = units.resolve(fact.entries)
        if (entries >= 0).all():  # a set alone pins nothing
            continue
        movable = entries[entries >= 0]
        new = movable[why[movable] < 0]
        if len(new):
            why[new] = len(reasons)
            reasons.append(fact.reason)
    told = []
    for line in lines:
        free = classes.free(line.entries).any(1)
        if free.all():
            continue
        entries = line.entries[~free]
        first = np.where(entries >= 0, why[np.where(entries >= 0, entries, 0)], -1).max(1)
        for reason in np.unique(first):
            text = reasons[reason] if reason >= 0 else "no other unit is like it"
            told.append(Pinned(line.parameter, line.dim, int((first == reason).sum()), text))
    return tuple(told)
