"""What cannot be averaged: rules for entries that are no points of a vector space, said aloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, require_finite, require_matching

__all__ = ["Note", "Reconciled", "reconcile"]

Absent = Literal["error", "base", "skip"]
Kind = Literal["not floating point", "constant", "tied", "absent"]


@dataclass(frozen=True)
class Note:
    """One thing that a merge did not average, and the rule by which it was treated.

    Attributes:
        kind: "not floating point", "constant", "tied" or "absent".
        names: the entries concerned; of tied ones, the first is the one that is merged.
        models: the operands in which it was found so, as "models[0]" or "base".
        rule: what was done, in words.

    >>> print(Note("absent", ("head.bias",), ("models[1]",), "taken from the base"))
    head.bias: absent in models[1]; taken from the base
    """

    kind: Kind
    names: tuple[str, ...]
    models: tuple[str, ...]
    rule: str

    def __str__(self) -> str:
        return f"{' = '.join(self.names)}: {self.kind} in {', '.join(self.models)}; {self.rule}"


@dataclass(frozen=True)
class Reconciled:
    """Models that match, and what was done to make them match.

    Attributes:
        models: Params with the same names, shapes and dtypes, to be given to a merge. Of tied
            entries only the first is among them.
        base: the base, likewise, or None.
        notes: what was done, in the order of the names; nothing is done without a note.
        aliases: for each name that a tie removed, the name under which its tensor is kept.
    """

    models: tuple[dict[str, Tensor], ...]
    base: dict[str, Tensor] | None
    notes: tuple[Note, ...]
    aliases: Mapping[str, str]

    def complete(self, merged: Params) -> dict[str, Tensor]:
        """Return the merged parameters with the tied entries under all their names.

        The names of a tie hold one and the same tensor, as they did in the models.

        Raises:
            ArgumentError: a merged entry that is tied is missing.
        """
        for first in self.aliases.values():
            if first not in merged:
                raise ArgumentError(
                    "merged",
                    found=f"no entry {first!r}",
                    expected="what a merge of these models gives",
                )
        return {**merged, **{other: merged[first] for other, first in self.aliases.items()}}


def reconcile(
    models: Sequence[Params], *, base: Params | None = None, absent: Absent = "error"
) -> Reconciled:
    r"""Make models comparable that differ in more than the values of their weights.

    A merge is arithmetic on points :math:`\theta\in\mathbb R^d`. Some entries of a state dict are
    no coordinates: counters, index buffers, one tensor under two names, a head that only some
    models have. These are the rules for them; whatever is done is in the notes.

    * **Not floating point** (integers, booleans, complex numbers). Not merged. If an entry is
      equal in all operands it stays as it is; otherwise all models get the base's, or without a
      base the first model's.
    * **Tied.** Names of one model that share one memory in one layout are tied. They are tied in
      the result if in each operand they are tied or hold equal values; then only the first name,
      in the order of the operands, is kept, so that the tensor is merged, and counted, once;
      :meth:`Reconciled.complete` puts the other names back. If an operand holds different values
      under these names the tie is given up: they are merged as different tensors. Equal values
      alone make no tie. Ties are seen by memory: a copy of each tensor hides them.
    * **Absent.** A name that an operand lacks, and that is tied, wherever it exists, to a name
      that the operand has, counts as tied there too. (Files often hold a tied tensor once.) Any
      other name that an operand lacks is an error; with ``absent="base"`` a model that lacks it
      gets the base's entry, a task vector of zero; with ``absent="skip"`` the entry is left out
      of all operands, and of the result.
    * What the operands have in common must match: shapes and dtypes, on one device.

    Nothing is copied and no operand is changed. The order of the models decides only from whom
    an entry is taken that differs and that no base settles.

    Args:
        models: parameters, with or without buffers, of networks of nearly one architecture.
        base: parameters of the network from which they were trained.
        absent: ``"error"``, ``"base"`` or ``"skip"``.

    Raises:
        ArgumentError: no models, operands that cannot be made to match by these rules or are not
            finite, or two names that share a part of their memory or the same memory in another
            layout: no average keeps such a relation.

    >>> one, two = torch.ones(2), torch.zeros(2)
    >>> a = {"embed": one, "head": one, "steps": torch.tensor(3)}
    >>> b = {"embed": two, "steps": torch.tensor(5)}
    >>> found = reconcile([a, b])
    >>> for note in found.notes:
    ...     print(note)
    embed = head: tied in models[0]; absent in models[1] and taken for tied, merged once
    steps: not floating point in models[0], models[1]; differs, taken from models[0]
    >>> from sokmerge.merge import average
    >>> merged = found.complete(average(found.models))
    >>> merged["head"] is merged["embed"], merged["steps"]
    (True, tensor(3))
    """
    if absent not in ("error", "base", "skip"):
        raise ArgumentError("absent", found=repr(absent), expected="'error', 'base' or 'skip'")
    if not models:
        raise ArgumentError("models", found="no models", expected="at least one")
    if absent == "base" and base is None:
        raise ArgumentError(
            "base", found="none", expected="a base from which absent entries can be taken"
        )
    operands = {} if base is None else {"base": dict(base)}
    operands |= {f"models[{i}]": dict(model) for i, model in enumerate(models)}
    order = list(dict.fromkeys(name for operand in operands.values() for name in operand))
    tied = {who: _ties(who, operand) for who, operand in operands.items()}

    filled = _fill_tied(operands, tied, order)
    notes = _settle_absent(operands, order, absent)
    require_matching(**operands)
    require_finite(**operands)
    notes += _settle_constants(operands)
    told, aliases = _settle_ties(operands, tied, filled, order)
    notes += told

    place = {name: i for i, name in enumerate(order)}
    notes.sort(key=lambda note: place[note.names[0]])
    kept = [name for name in order if name in operands["models[0]"] and name not in aliases]
    arranged = {who: {name: operand[name] for name in kept} for who, operand in operands.items()}
    return Reconciled(
        tuple(arranged[f"models[{i}]"] for i in range(len(models))),
        arranged.get("base"),
        tuple(notes),
        aliases,
    )


Operands = Mapping[str, dict[str, Tensor]]
Pairs = set[tuple[str, str]]


def _fill_tied(operands: Operands, tied: Mapping[str, Pairs], order: list[str]) -> dict[str, list]:
    """Give an operand the names that are tied everywhere else to one it has.

    Returns:
        for each name that was filled in, the operands that lacked it.
    """
    filled: dict[str, list[str]] = {}
    for name in order:
        lacking = [who for who, operand in operands.items() if name not in operand]
        having = [who for who in operands if who not in lacking]
        if not lacking:
            continue
        partners = [
            other
            for other in order
            if other != name and all(_pair(name, other) in tied[who] for who in having)
        ]
        for who in lacking:
            known = [other for other in partners if other in operands[who]]
            if known:
                operands[who][name] = operands[who][known[0]]
                tied[who].update(_pair(name, other) for other in known)
                filled.setdefault(name, []).append(who)
    return filled


def _settle_absent(operands: Operands, order: Sequence[str], absent: Absent) -> list[Note]:
    notes = []
    for name in order:
        lacking = [who for who, operand in operands.items() if name not in operand]
        if not lacking:
            continue
        if absent == "error" or (absent == "base" and "base" in lacking):
            having = [who for who in operands if who not in lacking]
            raise ArgumentError(
                lacking[0],
                found=f"no entry {name!r}, which {', '.join(having)} has",
                expected="an entry in each operand" if absent == "error" else "it in the base",
                do="absent='base' takes it from a base that has it, absent='skip' leaves it out.",
            )
        if absent == "base":
            for who in lacking:
                operands[who][name] = operands["base"][name]
            rule = "taken from the base"
        else:
            for operand in operands.values():
                operand.pop(name, None)
            rule = "left out"
        notes.append(Note("absent", (name,), tuple(lacking), rule))
    if not all(operands.values()):
        raise ArgumentError("models", found="no entry in common", expected="at least one")
    return notes


def _settle_constants(operands: Operands) -> list[Note]:
    """Give all operands the first one's entries that are not floating point."""
    (source, first), *others = operands.items()
    names = [name for name, tensor in first.items() if not tensor.is_floating_point()]
    pairs = [[(first[name], operand[name]) for _, operand in others] for name in names]
    notes = []
    for name, differs in zip(names, any_unequal(pairs), strict=True):
        for _, operand in others:
            operand[name] = first[name]
        rule = f"differs, taken from {source}" if differs else "equal in all, left as it is"
        notes.append(Note("not floating point", (name,), tuple(operands), rule))
    return notes


def any_unequal(groups: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> list[bool]:
    """Say of each group of pairs whether any pair differs. This waits for the device, once.

    What has no values counts as equal, and so does a group without pairs.

    >>> any_unequal([[(torch.tensor(1), torch.tensor(2))], []])
    [True, False]
    """
    counts = [torch.stack([(a != b).sum() for a, b in group]).sum() for group in groups if group]
    found = iter(host(torch.stack(counts)) if counts else ())
    return [bool(next(found) > 0) if group else False for group in groups]


def _settle_ties(
    operands: Operands, tied: Mapping[str, Pairs], filled: Mapping[str, list], order: list[str]
) -> tuple[list[Note], dict[str, str]]:
    """Return a note on each tie, and the names that are not kept, where all operands agree."""
    present = operands["models[0]"]
    groups = [
        names
        for connected in _groups(set().union(*tied.values()), order)
        if len(names := [name for name in connected if name in present]) > 1
    ]

    def among(who: str, names: Sequence[str]) -> list[bool]:
        return [_pair(*pair) in tied[who] for pair in combinations(names, 2)]

    by_value = [[who for who in operands if not all(among(who, names))] for names in groups]
    pairs = [
        [(operands[who][names[0]], operands[who][name]) for who in whose for name in names[1:]]
        for names, whose in zip(groups, by_value, strict=True)
    ]
    notes, aliases = [], {}
    for names, whose, differs in zip(groups, by_value, any_unequal(pairs), strict=True):
        added = dict.fromkeys(who for name in names for who in filled.get(name, []))
        here = tuple(who for who in operands if any(among(who, names)) and who not in added)
        if differs:
            rule = f"different values in {' or '.join(whose)}, merged as different tensors"
        else:
            rule = f"absent in {', '.join(added)} and taken for tied, " if added else ""
            rule += f"equal in {', '.join(whose)}, " if whose else ""
            rule += "merged once"
            aliases |= dict.fromkeys(names[1:], names[0])
        notes.append(Note("tied", tuple(names), here, rule))
    return notes, aliases


def _groups(pairs: Pairs, order: list[str]) -> list[list[str]]:
    """Return the sets of names that pairs connect, each in the order of the names."""
    group = {name: {name} for pair in pairs for name in pair}
    for a, b in pairs:
        joined = group[a] | group[b]
        for name in joined:
            group[name] = joined
    place = {name: i for i, name in enumerate(order)}
    distinct = {id(names): sorted(names, key=place.__getitem__) for names in group.values()}
    return sorted(distinct.values(), key=lambda names: place[names[0]])


def _ties(who: str, operand: Params) -> Pairs:
    """Return the pairs of names that hold one memory in one layout.

    Raises:
        ArgumentError: two names share memory for certain, but not all of it in one layout.
    """
    by_storage: dict[int, list[str]] = {}
    for name, tensor in operand.items():
        if tensor.numel() and tensor.is_floating_point():
            by_storage.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    pairs = set()
    for names in by_storage.values():
        for one, other in combinations(names, 2):
            a, b = operand[one], operand[other]
            if _layout(a) == _layout(b):
                pairs.add(_pair(one, other))
            elif _overlap(a, b):
                raise ArgumentError(
                    f"{who}[{other!r}]",
                    found=f"memory shared with {one!r}, but not all of it in the same layout",
                    expected="tensors that share all of their memory, or none",
                    do="Clone one of them; their relation does not survive a merge.",
                )
    return pairs


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Say whether two views of one storage share memory for certain.

    It is certain where the stretches that they span overlap and neither leaves a gap in its own.
    """
    spans = []
    for tensor in (a, b):
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        length = 1 + sum((size - 1) * stride for size, stride in steps)
        if length != tensor.numel():
            return False
        start = tensor.storage_offset() * tensor.element_size()
        spans.append((start, start + length * tensor.element_size()))
    (a0, a1), (b0, b1) = spans
    return a0 < b1 and b0 < a1
