r"""Align two networks by their weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.matching import Matching, assign, assign_nested, nested
from sokmerge.merge.alignment.similarities import Similarities
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, host, inner, require_finite, require_matching
from sokmerge.symmetry import Block, Permutation, PermutationGroup

__all__ = ["climb", "weight_matching"]

_IMPROVEMENT = 1e-12  # relative; smaller gains are rounding


@method(
    branch="neuron alignment",
    paper="ainsworth2022git",
    needs=("symmetry",),
    returns="permutation",
    scope="model",
    equation=r"\max_{\pi\in G}\langle\theta_A,\pi\cdot\theta_B\rangle",
    ties="as SciPy's linear_sum_assignment breaks them",
)
def weight_matching(
    a: Params,
    b: Params,
    group: PermutationGroup,
    *,
    seed: int = 0,
    max_passes: int = 100,
    orders: int = 1,
    jobs: int = 1,
) -> Matching:
    r"""Find the permutation of b's units that brings its weights closest to a's.

    .. math:: \max_{\pi\in G}\ \langle \theta_A,\ \pi\cdot\theta_B\rangle

    over all layers at once is NP-hard, so the layers take turns (Ainsworth et al. 2022, section
    3.2 and algorithm 1). With the others fixed, the objective is linear in one layer's
    permutation,

    .. math:: \sum_i S_{i,\pi(i)},\qquad
              S_{ij} = \sum_{\text{axes}} \langle \theta_A[i],\ \theta_B[j]\rangle,

    where the sum runs over the incoming weights, the biases and the outgoing weights of units i
    and j. Each such step is a linear assignment. The passes go on, in a random order of the
    layers, until none improves: a local optimum that depends on the order.

    Units that lie within others, as channels in heads, are matched with these: for each pair of
    heads the best assignment of their channels, and the heads by what these reach. This is exact
    too. Only where units meet themselves, as in a layer that reads what it makes, the objective is
    quadratic in one permutation; there a step is taken along its derivative if it improves.

    Args:
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of their architecture.
        seed: fixes the order in which the layers take turns.
        max_passes: bound on the number of passes; Ainsworth et al. report that a few suffice.
        orders: how many random orders to try, with the seeds ``seed``, ``seed + 1``, ...
        jobs: how many of them run at a time, in threads. The result does not depend on it.

    Returns:
        The permutation, the inner product that it reaches, and the number of passes; of several
        orders those of the one that reaches most, and of equal ones the first.

    Raises:
        ArgumentError: a and b do not match, are not finite, or do not fit the group; or there is
            no order to try.

    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> found = weight_matching(theta, shuffled, group)
    >>> all(torch.equal(theta[k], t) for k, t in group.act(found.permutation, shuffled).items())
    True
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    group.require_fits(a, "a")
    for name, number in (("orders", orders), ("jobs", jobs)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one")

    def one(seed: int) -> Matching:
        return climb(a, b, group, seed, max_passes)

    seeds = range(seed, seed + orders)
    if min(jobs, orders) == 1:
        found = [one(s) for s in seeds]
    else:
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(one, seeds))
    return max(found, key=lambda matching: matching.similarity)


def climb(
    a: Params,
    b: Params,
    group: PermutationGroup,
    seed: int,
    max_passes: int,
    settled: Permutation | None = None,
) -> Matching:
    """Let the blocks take turns, in a random order in each pass, until none improves.

    Blocks of which ``settled`` tells the order keep it.
    """
    generator = np.random.default_rng(seed)
    settled = settled or {}
    permutation: dict[str, Tensor] = {**group.identity(), **settled}
    similarities = Similarities(a, b, group)
    turns = [
        _Turn(blocks, similarities, settled)
        for blocks in nested(group).values()
        if any(block.name not in settled for block in blocks)
    ]
    moves = dict.fromkeys(permutation, 0)
    passes, improved = 0, True
    while improved and passes < max_passes:
        passes, improved = passes + 1, False
        for k in generator.permutation(len(turns)):
            turn = turns[k]
            around = tuple(moves[name] for name in turn.neighbours)
            if turn.seen == around:  # the same question has the same answer
                continue
            turn.seen = around
            candidate = turn.best(permutation)
            if candidate is not None:
                permutation = {**permutation, **candidate}
                moves.update({name: moves[name] + 1 for name in candidate})
                improved = True
    reached = float(host(inner(a, group.act(permutation, b))))
    return Matching(permutation, reached, passes)


class _Turn:
    """A block, with all that lies within it: heads and their channels move together."""

    def __init__(
        self, blocks: Sequence[Block], similarities: Similarities, settled: Permutation
    ) -> None:
        self.blocks, self.similarities, self.settled = blocks, similarities, settled
        names = frozenset(block.name for block in blocks)
        around = [n for block in blocks for n in similarities.neighbours(block.name)]
        self.neighbours = tuple(dict.fromkeys(around))
        self.coupled = similarities.coupled(names)
        self.seen: tuple[int, ...] | None = None

    def best(self, permutation: Permutation) -> dict[str, Tensor] | None:
        """Return the orders that reach most while all else stays; None if they are the present."""
        found = {b.name: self.similarities.of(b, permutation) for b in self.blocks}
        if any(name in self.settled for name in found):
            found = _held(found, self.settled)
        if len(found) == 1:
            (name, similarity), = found.items()
            candidate = {name: assign(similarity)}
        else:
            candidate = assign_nested(self.blocks, found)
        present = {name: permutation[name] for name in found}
        if not _improves(found, candidate, present):
            return None
        if self.coupled and not self._reaches_more(permutation, candidate, found):
            return None
        return candidate

    def _reaches_more(
        self, permutation: Permutation, candidate: Permutation, found: Mapping[str, Tensor]
    ) -> bool:
        """Units that meet one another, as in a layer that reads what it makes, are no sum."""
        touched = tuple(dict.fromkeys(
            axis.parameter for block in self.blocks for axis in block.axes if not axis.buffer
        ))  # fmt: skip
        more = self.similarities.product({**permutation, **candidate}, touched)
        less = self.similarities.product(permutation, touched)
        largest = torch.stack([s.abs().max() for s in found.values()]).max()
        return _exceeds(more, less, largest, sum(map(len, candidate.values())))


def _held(found: Mapping[str, Tensor], settled: Permutation) -> dict[str, Tensor]:
    """Let the settled orders outweigh everything else."""
    all_ = torch.stack([s.abs().max() * len(s) for s in found.values()]).sum()
    most = torch.where(all_ > 0, 4 * all_, 1.0)
    held = dict(found)
    for name in found.keys() & settled.keys():
        order = settled[name].to(found[name].device)
        held[name] = most * torch.zeros_like(found[name]).scatter(1, order[:, None], 1.0)
    return held


def _improves(
    similarities: Mapping[str, Tensor], candidate: Permutation, present: Permutation
) -> bool:
    """Say whether a candidate reaches more than the present order. This waits for the device."""
    sums = []
    for orders in (candidate, present):
        each = [
            similarity.gather(1, orders[name].to(similarity.device)[:, None]).sum()
            for name, similarity in similarities.items()
        ]
        sums.append(torch.stack(each).sum())
    largest = torch.stack([s.abs().max() for s in similarities.values()]).max()
    return _exceeds(*sums, largest, sum(map(len, present.values())))


def _exceeds(more: Tensor, less: Tensor, largest: Tensor, units: int) -> bool:
    more, less, largest = host(torch.stack([more, less, largest]))
    return bool(more - less > _IMPROVEMENT * largest * units)
