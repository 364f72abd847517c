r"""Align many networks at once, each to a common order of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.matching import assign
from sokmerge.merge.alignment.soft import (
    act_softly,
    completed,
    free_blocks,
    harden,
    matrices,
)
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, host, inner, wide
from sokmerge.symmetry import Permutation, PermutationGroup

__all__ = ["Universe", "cycle_consistent_matching"]

_STILL = 1e-9  # relative; a gain below it ends the search


@dataclass(frozen=True)
class Universe:
    r"""An alignment of several networks to a common order of units, the universe.

    ``group.act(universe.permutations[i], models[i])`` is network i in that order.

    Attributes:
        group: the symmetry of their architecture.
        permutations: for each network an element of the group.
        similarity: the sum over pairs of the inner products of the networks in the universe.
        passes: how many steps were made.
    """

    group: PermutationGroup
    permutations: tuple[Permutation, ...]
    similarity: float
    passes: int

    def between(self, i: int, j: int) -> dict[str, Tensor]:
        r"""Return the element that brings network j to the order of network i.

        It is :math:`\pi_i^{-1}\pi_j`, so going round a cycle of networks leads back exactly:
        ``compose(between(i, j), compose(between(j, k), between(k, i)))`` is the identity.
        """
        group = self.group
        return group.compose(group.invert(self.permutations[i]), self.permutations[j])


@method(
    branch="neuron alignment",
    paper="crisostomi2024cycle",
    needs=("symmetry",),
    returns="permutation",
    scope="model",
    equation=r"\max_{\pi_1,\dots,\pi_n\in G}\ \textstyle\sum_{i<j}"
    r"\langle\pi_i\cdot\theta_i,\ \pi_j\cdot\theta_j\rangle",
    ties="as SciPy's linear_sum_assignment breaks them",
)
def cycle_consistent_matching(
    models: Sequence[Params],
    group: PermutationGroup,
    *,
    start: Sequence[Permutation] | None = None,
    max_passes: int = 100,
) -> Universe:
    r"""Find for each of several networks a permutation into one common order of units.

    .. math:: \max_{\pi_1,\dots,\pi_n\in G}\ \sum_{i<j}
              \langle\pi_i\cdot\theta_i,\ \pi_j\cdot\theta_j\rangle

    Matching networks in pairs gives maps that disagree: from A to B to C and back to A does not
    lead home. Here the map from network j to network i is :math:`\pi_i^{-1}\pi_j`, through the
    universe, so every cycle closes (Crisostomi et al. 2024, who call the method C2M3). All layers
    of all networks move at once: permutations are relaxed to doubly stochastic matrices
    :math:`P_i`, and the objective climbs by the algorithm of Frank and Wolfe (1956). Each step
    solves one linear assignment for each block of each network, on the gradient, and goes the best
    part of the way there. Along the step the objective is a polynomial of known degree, so the
    best part is found exactly, from a few values. In the end each matrix is rounded to the nearest
    permutation. The merge is the average of the networks in the universe.

    It starts from the orders that the networks have, or from ``start``. The networks play equal
    parts: with another order of the networks the same permutations are found, and, re-indexing
    all networks by one element, they change by that element alone.

    Args:
        models: parameters of at least two networks of one architecture.
        group: its symmetry.
        start: for each network the permutation to begin with, by default the identity. Units
            that lie within others, as channels in heads, go with these, in the order they have.
        max_passes: bound on the number of steps.

    Returns:
        The permutations, with the similarity that they reach.

    Raises:
        ArgumentError: fewer than two models, or models that do not match, are not finite, or do
            not fit the group; or not one start for each.

    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> copies = [theta, *(group.act(group.sample(seed), theta) for seed in (1, 2))]
    >>> found = cycle_consistent_matching(copies, group)
    >>> round_trip = group.compose(
    ...     found.between(0, 1), group.compose(found.between(1, 2), found.between(2, 0)))
    >>> bool((round_trip["0"] == torch.arange(8)).all())
    True
    """
    require_models(models, least=2)
    group.require_fits(models[0], "models[0]")
    if start is not None and len(start) != len(models):
        raise ArgumentError(
            "start", found=f"{len(start)} permutations", expected=f"one for each of {len(models)}"
        )
    # A buffer is no weight, and what no unit belongs to is the same in every order.
    named = {x.parameter for block in group.blocks for x in block.axes if not x.buffer}
    points = [{name: wide(model[name]) for name in sorted(named)} for model in models]
    like = next(iter(points[0].values()))
    plain = PermutationGroup(
        tuple(replace(b, axes=tuple(x for x in b.axes if not x.buffer)) for b in group.blocks)
    )
    free = [block.name for block in free_blocks(group)]
    begin = start or [group.identity()] * len(models)
    soft = [matrices({name: p[name] for name in free}, like) for p in begin]
    passes, moving = 0, True
    while moving and passes < max_passes:
        passes += 1
        corners = [
            matrices(harden(gradient, assign), like) for gradient in _gradients(plain, soft, points)
        ]
        share, gain = _best_share(plain, soft, corners, points)
        soft = [_between(p, corner, share) for p, corner in zip(soft, corners, strict=True)]
        moving = gain > _STILL
    permutations = tuple(completed(group, harden(p, assign)) for p in soft)
    in_universe = [group.act(p, m) for p, m in zip(permutations, models, strict=True)]
    reached = sum(
        float(host(inner(first, second)))
        for i, first in enumerate(in_universe)
        for second in in_universe[i + 1 :]
    )
    return Universe(group, permutations, reached, passes)


Soft = Mapping[str, Tensor]


def _agreement(group: PermutationGroup, soft: Sequence[Soft], points: Sequence[Params]) -> Tensor:
    """Return the sum over pairs of inner products: half of what the square of the sum has over."""
    placed = [act_softly(group, p, point) for p, point in zip(soft, points, strict=True)]
    terms = []
    for name in placed[0]:
        stacked = torch.stack([point[name] for point in placed])
        terms.append((stacked.sum(0).square().sum() - stacked.square().sum()) / 2)
    return torch.stack(terms).sum()


def _gradients(
    group: PermutationGroup, soft: Sequence[Soft], points: Sequence[Params]
) -> list[dict[str, Tensor]]:
    free = [{n: m.detach().requires_grad_() for n, m in p.items()} for p in soft]
    flat = [matrix for p in free for matrix in p.values()]
    found = iter(torch.autograd.grad(_agreement(group, free, points), flat))
    return [{name: next(found) for name in p} for p in free]


def _between(first: Soft, second: Soft, share: float) -> dict[str, Tensor]:
    return {name: torch.lerp(matrix, second[name], share) for name, matrix in first.items()}


def _best_share(
    group: PermutationGroup,
    soft: Sequence[Soft],
    corners: Sequence[Soft],
    points: Sequence[Params],
) -> tuple[float, float]:
    """Return how far to go towards the corners, and the relative gain. It waits for the device.

    A parameter with k axes of units is a product of k matrices, and two of them are multiplied:
    along a straight step the agreement is a polynomial of degree 2 k.
    """
    counts: dict[str, int] = {}
    for block in group.blocks:
        for axis in block.axes:
            counts[axis.parameter] = counts.get(axis.parameter, 0) + 1
    degree = 2 * max(counts.values())
    nodes = (1 - np.cos(np.pi * np.arange(degree + 1) / degree)) / 2  # Chebyshev's, on [0, 1]
    steps = [
        [_between(p, corner, float(share)) for p, corner in zip(soft, corners, strict=True)]
        for share in nodes
    ]
    values = host(torch.stack([_agreement(group, step, points) for step in steps]))
    if not np.isfinite(values).all():
        return 1.0, 0.0
    scale = max(np.abs(values).max(), np.finfo(float).tiny)
    polynomial = np.polynomial.Polynomial.fit(nodes, values / scale, degree, domain=[0, 1])
    turns = polynomial.deriv().roots()
    inside = turns.real[(abs(turns.imag) < 1e-9) & (turns.real > 0) & (turns.real < 1)]
    candidates = np.concatenate([[0.0, 1.0], inside])
    heights = polynomial(candidates)
    # The end is preferred to a point beside it: a corner is a permutation already.
    best = 1 if heights[1] >= heights.max() - 1e-12 else int(heights.argmax())
    return float(candidates[best]), float(heights[best] - heights[0])
