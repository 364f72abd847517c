"""What a merge did: how long, how aligned, how contradictory its operands were, what it moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import require_models
from sokmerge.merge.reconcile import Note, any_unequal
from sokmerge.params import Params, host, wide

__all__ = ["Conflict", "Move", "Report", "report"]


@dataclass(frozen=True)
class Conflict:
    """How often the signs of several vectors disagree.

    Attributes:
        conflicting: entries at which one vector is positive and another negative.
        shared: entries at which two or more vectors are not zero: only there can signs disagree.
        entries: all entries.
    """

    conflicting: float
    shared: float
    entries: int

    @property
    def rate(self) -> float:
        """The conflicting share of the shared entries; NaN if nothing is shared."""
        return self.conflicting / self.shared if self.shared else float("nan")


@dataclass(frozen=True)
class Move:
    """How far a merge moved one tensor.

    Attributes:
        name: of the tensor.
        entries: how many it has.
        distance: Euclidean, from where the report measures.
        relative: the distance over the norm of the tensor there; infinite or, if nothing moved,
            NaN where that is zero.
    """

    name: str
    entries: int
    distance: float
    relative: float


@dataclass(frozen=True)
class Report:
    """What :func:`report` found.

    Attributes:
        origin: from where moves are measured, "base" or "mean".
        norms: shape (k,), the norm of each vector.
        cosines: shape (k, k), between the vectors; NaN for a vector of zero.
        signs: the conflict among all entries.
        top: the share of the largest entries that ``largest`` looks at.
        largest: the conflict among the largest entries of each vector, the others set to zero.
        moves: for each tensor that is floating point, how far it was moved.
        moved: for all of them together.
        notes: what was not averaged, and by which rule.
    """

    origin: str
    norms: np.ndarray
    cosines: np.ndarray
    signs: Conflict
    top: float
    largest: Conflict
    moves: tuple[Move, ...]
    moved: Move
    notes: tuple[Note, ...]

    def as_rows(self) -> list[dict[str, object]]:
        """Return a row for each tensor and each note, such as ``pandas.DataFrame`` takes.

        What was not averaged has no distance (NaN).
        """
        rules = {name: note.rule for note in self.notes for name in note.names}
        rows = [
            {
                "tensor": move.name,
                "entries": move.entries,
                "distance": move.distance,
                "relative": move.relative,
                "rule": rules.pop(move.name, "merged"),
            }
            for move in self.moves
        ]
        unknown = {"entries": 0, "distance": float("nan"), "relative": float("nan")}
        return rows + [{"tensor": name, **unknown, "rule": rule} for name, rule in rules.items()]

    def __str__(self) -> str:
        what = "task vectors" if self.origin == "base" else "models"
        lines = [
            f"models: {len(self.norms)}, entries: {self.moved.entries}, tensors: {len(self.moves)}",
            f"norms of the {what}: {', '.join(f'{norm:.4g}' for norm in self.norms)}",
        ]
        between = self.cosines[np.triu_indices(len(self.norms), 1)]
        if len(between):
            low, high = f"{between.min():.2f}", f"{between.max():.2f}"
            lines.append(f"cosines: {low}" + (f" to {high}" if high != low else ""))
            lines.append(f"signs: {_told(self.signs)}")
            lines.append(f"signs of the largest {self.top:.0%}: {_told(self.largest)}")
        lines.append(f"moved: {_how_far(self.moved)} from the {self.origin}")
        if len(self.moves) > 1:
            most = max(self.moves, key=lambda move: np.nan_to_num(move.relative, nan=-1.0))
            lines.append(f"moved most: {most.name}, {_how_far(most)}")
        return "\n".join([*lines, *_noted(self.notes)])


def _noted(notes: Sequence[Note]) -> list[str]:
    """Return a line for each note; those that say one thing of many entries share a line."""
    alike: dict[tuple[object, ...], list[Note]] = {}
    for note in notes:
        alike.setdefault((note.kind, note.models, note.rule), []).append(note)
    lines = []
    for first, *others in alike.values():
        also = f" (and {len(others)} more)" if others else ""
        names = " = ".join(first.names)
        lines.append(str(first).replace(names, names + also, 1))
    return lines


def _told(conflict: Conflict) -> str:
    of = f"{conflict.shared:.0f} of {conflict.entries} entries are shared"
    return of + (f", {conflict.rate:.1%} of these conflict" if conflict.shared else "")


def _how_far(move: Move) -> str:
    share = f" ({move.relative:.1%} of its norm)" if np.isfinite(move.relative) else ""
    return f"{move.distance:.4g}{share}"


def report(
    models: Sequence[Params],
    merged: Params,
    *,
    base: Params | None = None,
    notes: Sequence[Note] = (),
    top: float = 0.2,
) -> Report:
    r"""Say how a merge's operands lay to one another, and what the merge did to each tensor.

    The vectors that are compared are the task vectors :math:`v_i=\theta_i-\theta_0`, or without
    a base the models themselves, :math:`v_i=\theta_i`:

    .. math:: \lVert v_i\rVert,\qquad
              \frac{\langle v_i,v_j\rangle}{\lVert v_i\rVert\,\lVert v_j\rVert},\qquad
              \frac{\#\{e:\ v_{ie}>0,\ v_{je}<0\text{ for some } i, j\}}
                   {\#\{e:\ v_{ie}\ne0\text{ for two or more } i\}}

    The last is the **sign conflict**: of the entries that two or more vectors share, how many
    they pull both ways. Zero has no sign. It is given twice: for all entries, and for the share
    ``top`` of largest magnitude of each vector, ranked over the whole vector, the others set to
    zero, as TIES-Merging does before it elects signs (Yadav et al. 2023).
    **Tie rule**: entries as large as the smallest one to keep are all kept.

    How far the merge moved a tensor is measured from the base, or without a base from the mean of
    the models, and relative to the norm of the tensor there.

    What was not averaged is noted: entries that are not floating point, with whose values the
    result has; entries that are equal in all operands; and the notes of
    :func:`~sokmerge.merge.reconcile`.

    Sums are taken in double precision (single on devices that have no other). Exchanging two
    models exchanges their norms and cosines and leaves all else, but for the rounding of the mean.

    Args:
        models: parameters of the networks that were merged.
        merged: parameters of the result.
        base: parameters of the network from which they were trained.
        notes: what was done before the merge.
        top: the share of the largest entries, in (0, 1].

    Raises:
        ArgumentError: no models, operands that do not match or are not finite, or a ``top`` out
            of its range.

    >>> base = {"w": torch.ones(4)}
    >>> a = {"w": torch.tensor([4.0, 5.0, 1.0, 1.0])}
    >>> b = {"w": torch.tensor([-3.0, 4.0, 1.0, 13.0])}
    >>> merged = {"w": torch.tensor([1.0, 4.5, 1.0, 1.0])}
    >>> print(report([a, b], merged, base=base))
    models: 2, entries: 4, tensors: 1
    norms of the task vectors: 5, 13
    cosines: 0.00
    signs: 2 of 4 entries are shared, 50.0% of these conflict
    signs of the largest 20%: 0 of 4 entries are shared
    moved: 3.5 (175.0% of its norm) from the base
    """
    if not 0 < top <= 1:
        raise ArgumentError("top", found=f"{top}", expected="a number in (0, 1]")
    others = {"merged": merged} | ({} if base is None else {"base": base})
    require_models(models, **others)
    names = [name for name, tensor in merged.items() if tensor.is_floating_point()]
    sizes = [merged[name].numel() for name in names]
    if not sum(sizes):
        raise ArgumentError("merged", found="no floating-point entry", expected="at least one")

    def vector(model: Params, name: str) -> Tensor:
        tensor = wide(model[name]).flatten()
        return tensor if base is None else tensor - wide(base[name]).flatten()

    thresholds = torch.stack(
        [_least_of_top([vector(model, name) for name in names], top) for model in models]
    )
    products, counts, lengths = [], [], []
    for name in names:
        rows = torch.stack([vector(model, name) for model in models])
        products.append(torch.stack([torch.stack([(u * v).sum() for v in rows]) for u in rows]))
        kept = rows.where(rows.abs() >= thresholds[:, None], 0.0)
        counts.append(torch.stack([*_conflict(rows), *_conflict(kept)]))
        origin = rows.mean(0) if base is None else wide(base[name]).flatten()
        step = wide(merged[name]).flatten() - origin
        lengths.append(torch.stack([step.square().sum(), origin.square().sum()]))

    gram = host(torch.stack(products).sum(0))
    found = host(torch.stack(counts).sum(0))
    squares = host(torch.stack(lengths))
    lengths_squared = np.diagonal(gram)
    norms = np.sqrt(lengths_squared)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The root of the product is exact on the diagonal; a product of roots is not.
        cosines = gram / np.sqrt(np.outer(lengths_squared, lengths_squared))
    told = [*notes, *_constants(models, merged, base)]
    return Report(
        origin="mean" if base is None else "base",
        norms=norms,
        cosines=cosines,
        signs=Conflict(float(found[0]), float(found[1]), sum(sizes)),
        top=top,
        largest=Conflict(float(found[2]), float(found[3]), sum(sizes)),
        moves=tuple(_move(*of) for of in zip(names, sizes, squares, strict=True)),
        moved=_move("all", sum(sizes), squares.sum(0)),
        notes=tuple(dict.fromkeys(told)),
    )


def _move(name: str, entries: int, squares: np.ndarray) -> Move:
    distance, length = np.sqrt(squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Move(name, entries, float(distance), float(np.divide(distance, length)))


def _conflict(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many columns hold both signs, and how many hold two or more that are not zero."""
    both = (rows > 0).any(0) & (rows < 0).any(0)
    return both.sum(), ((rows != 0).sum(0) > 1).sum()


def _least_of_top(tensors: Sequence[Tensor], top: float) -> Tensor:
    """Return the smallest magnitude among the largest entries of a vector, a scalar."""
    magnitudes = torch.cat(list(tensors)).abs()
    largest = max(1, round(top * magnitudes.numel()))
    return magnitudes.kthvalue(magnitudes.numel() - largest + 1).values


def _constants(models: Sequence[Params], merged: Params, base: Params | None) -> list[Note]:
    """Return a note for each entry that is no coordinate or that all operands have in common."""
    operands = {f"models[{i}]": model for i, model in enumerate(models)}
    operands |= {} if base is None else {"base": base}
    first = models[0]
    unequal = any_unequal(
        [[(first[name], operand[name]) for operand in operands.values()] for name in merged]
    )
    common = [name for name, differs in zip(merged, unequal, strict=True) if not differs]
    left = [
        name
        for name, tensor in merged.items()
        if not tensor.is_floating_point() or (name in common and len(operands) > 1)
    ]
    holders = any_unequal([[(merged[n], o[n])] for n in left for o in operands.values()])
    notes = []
    for i, name in enumerate(left):
        holds = holders[i * len(operands) : (i + 1) * len(operands)]
        same = [who for who, differs in zip(operands, holds, strict=True) if not differs]
        if name in common:
            rule = "equal in all, " + ("left as it is" if same else "changed by the merge")
        else:
            rule = f"differs, as in {', '.join(same)}" if same else "differs, as in none"
        kind = "constant" if merged[name].is_floating_point() else "not floating point"
        notes.append(Note(kind, (name,), tuple(operands), rule))
    return notes
