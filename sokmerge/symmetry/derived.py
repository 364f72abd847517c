r"""The symmetry of any network, derived from its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from sokmerge.symmetry.factors import flips, mixing, rescaling
from sokmerge.symmetry.linear import Flips, Mixing, Rescaling
from sokmerge.symmetry.permutation import PermutationGroup
from sokmerge.symmetry.solving import Pinned, solve
from sokmerge.symmetry.tracing import Graph, trace

__all__ = ["Symmetry", "of"]


@dataclass(frozen=True)
class Symmetry(PermutationGroup):
    """A permutation group that was derived, with what it leaves in place and why.

    Printed, it is a table of its blocks and a list of the reasons.

    Attributes:
        blocks: as in :class:`PermutationGroup`.
        pinned: the axes of parameters with entries that stay.
        unknown: operators that no rule is known for, and the lines that call them. What they
            touch is pinned.
        hidden: how many channels the network's layers make, without its outputs.
        free: how many of them the group moves.
        graph: the network's operators, from which is read when it is first asked for what else
            leaves the function as it is: :attr:`rescaling`, :attr:`flips`, :attr:`mixing`, each a
            group of its own that acts on parameters as this one does.
    """

    pinned: tuple[Pinned, ...] = ()
    unknown: tuple[str, ...] = ()
    hidden: int = 0
    free: int = 0
    graph: Graph | None = field(default=None, repr=False, compare=False)

    @cached_property
    def rescaling(self) -> Rescaling:
        """The units that may be multiplied by positive numbers."""
        return Rescaling() if self.graph is None else rescaling(self.graph)

    @cached_property
    def flips(self) -> Flips:
        """The units that may change sign."""
        return Flips() if self.graph is None else flips(self.graph)

    @cached_property
    def mixing(self) -> Mixing:
        """The sets of units that may be mixed by invertible matrices."""
        return Mixing() if self.graph is None else mixing(self.graph)

    def __str__(self) -> str:
        rows = [("block", "units", "axes", "along")]
        for block in self.blocks:
            along = ", ".join(f"{axis.parameter}:{axis.dim}" for axis in block.axes[:3])
            along += f" and {more} more" if (more := len(block.axes) - 3) > 0 else ""
            along += f" (within {block.within})" if block.within else ""
            rows.append((block.name, str(block.size), str(len(block.axes)), along))
        a, b, c = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:3])
        told = [f"{w:<{a}}  {x:>{b}}  {y:>{c}}  {z}".rstrip() for w, x, y, z in rows]
        told += ["", f"{self.free} of {self.hidden} hidden channels may trade places"]
        for group, what in (
            (self.rescaling, "multiplied by positive numbers"),
            (self.flips, "multiplied by -1"),
            (self.mixing, "mixed by invertible matrices"),
        ):
            if group.units:
                told.append(f"{group.units} units may be {what}")
        reasons: Counter[str] = Counter()
        for pinned in self.pinned:
            reasons[pinned.reason] += pinned.count
        told += [f"stay: {count} entries, {reason}" for reason, count in reasons.most_common()]
        return "\n".join(told)


def of(
    module: nn.Module, example_inputs: Tensor | Sequence[Any], *, opaque: Sequence[str] = ()
) -> Symmetry:
    r"""Derive the permutation symmetry of a network from its graph.

    A permutation of hidden units leaves a network's function as it is, if every operator either
    does not see it, or passes it on to the next one, or undoes it (Hecht-Nielsen 1990). So the
    network is traced once, in evaluation mode, and each operator says what it does to the units
    along the axes of its operands: which become the same (where a sum adds two maps, where a
    matrix reads a vector), which lie inside others (the channels of an attention head, of a group
    of a normalisation or of a convolution), and which stay (inputs, outputs, whatever is looked
    up by number). What is the same moves together; what nothing holds is free.

    The group is a subgroup of all the permutations that preserve the function: whatever an
    operator does not let pass for certain is pinned, and so is all that an operator touches for
    which there is no rule. No values are computed and no memory is taken, so the module may be on
    ``meta``.

    Beyond permutations the result tells which units may be multiplied by positive numbers, as
    those of a ReLU network (``rescaling``), by -1, as those behind a tanh (``flips``), and mixed by
    invertible matrices, as the channels of queries and keys (``mixing``).

    Heads may be permuted as wholes, and channels inside each head by a permutation of its own: see
    ``within`` of :class:`Block`. In a grouped convolution the permutation inside the groups is
    the same in every group where the layer reads, and any in each where it writes.

    Args:
        module: the network. It is not changed, and read as it is in evaluation mode.
        example_inputs: a tensor, or a sequence with its positional arguments. Their shapes
            count, their values do not.
        opaque: names of submodules not to look into, such as one that ``torch.export`` cannot
            follow. Their parameters stay, and so do the units that they read and make. The
            module is then run once on the example inputs, to learn the shapes.

    Returns:
        The group. It acts on all parameters, and on the running statistics of normalisations
        where the Params hold them; all other buffers stay.

    Raises:
        ArgumentError: ``torch.export`` cannot follow the module; it says why and where.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> import torch
    >>> print(of(net, torch.zeros(1, 4)))
    block  units  axes  along
    0          3     3  0.weight:0, 0.bias:0, 2.weight:1
    <BLANKLINE>
    3 of 3 hidden channels may trade places
    3 units may be multiplied by positive numbers
    stay: 4 entries, meets axes that stay, in linear (0)
    stay: 4 entries, an output of the network
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    traced = trace(module, inputs, opaque)
    blocks, pinned, (hidden, free) = solve(traced)
    return Symmetry(blocks, pinned, traced.unknown, hidden, free, traced.graph)
