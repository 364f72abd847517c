r"""Align two networks by swapping units at random while a temperature falls."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.matching import Matching
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, lerp, require_finite, require_matching
from sokmerge.symmetry import Block, Permutation, PermutationGroup

__all__ = ["annealed_matching"]


@method(
    branch="neuron alignment",
    paper="entezari2021role",
    needs=("symmetry", "data"),
    returns="permutation",
    scope="model",
    equation=r"\Pr(\pi\to\pi')=\min\bigl(1,\ e^{(s(\pi')-s(\pi))/T}\bigr),\qquad "
    r"s(\pi)=s\bigl(\tfrac12(\theta_A+\pi\cdot\theta_B)\bigr)",
    ties="of equal scores the first; a swap that changes nothing is accepted",
)
def annealed_matching(
    a: Params,
    b: Params,
    group: PermutationGroup,
    *,
    score: Callable[[Params], float],
    steps: int = 1000,
    hot: float = 0.1,
    cold: float = 1e-4,
    seed: int = 0,
    start: Permutation | None = None,
) -> Matching:
    r"""Find a permutation of b's units at which the network half way to a has a high score.

    A step swaps two random units of a random layer. A swap that does not lower the score is
    accepted, one that lowers it by :math:`\Delta` with probability :math:`e^{-\Delta/T}`, while
    the temperature T falls from ``hot`` to ``cold`` by a constant factor (Entezari et al. 2021,
    who look for evidence of their conjecture this way). Nothing but the score is asked, so any
    score will do; the price is one evaluation for each of very many steps. With k blocks of n
    units there are :math:`k\,n(n-1)/2` swaps to choose from at each step.

    Args:
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of their architecture.
        score: from parameters to a number, the higher the better, such as minus a loss.
        steps: swaps tried; each evaluates the score once.
        hot, cold: the first and the last temperature, in the unit of the score.
        seed: of the swaps and of their acceptance.
        start: the permutation to begin with, by default the identity.

    Returns:
        The best permutation that was visited, its score, and the number of steps.

    Raises:
        ArgumentError: a and b do not match, are not finite, or do not fit the group; no steps; or
            temperatures that are not positive and falling.

    >>> import torch
    >>> from torch import nn
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> def near(point):
    ...     return -float(params.distance(point, theta))
    >>> shuffled = group.act({"0": torch.tensor([1, 2, 0])}, theta)
    >>> annealed_matching(theta, shuffled, group, score=near, steps=50).permutation["0"]
    tensor([2, 0, 1])
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    group.require_fits(a, "a")
    if steps < 1:
        raise ArgumentError("steps", found=f"{steps}", expected="at least one")
    if not 0 < cold <= hot < math.inf:
        raise ArgumentError(
            "hot, cold", found=f"{hot}, {cold}", expected="two positive temperatures, falling"
        )
    # Units that lie within others trade places inside one whole.
    wholes = {b.name: 1 if b.within is None else group.by_name[b.within].size for b in group.blocks}
    blocks = [block for block in group.blocks if block.size > wholes[block.name]]
    if not blocks:
        raise ArgumentError("group", found="no block of two units", expected="units to swap")
    generator = np.random.default_rng(seed)
    # A swap is likelier in a larger block, so that each unit takes part as often as any other.
    shares = np.array([block.size for block in blocks]) / sum(block.size for block in blocks)

    def reached(permutation: Permutation) -> float:
        return float(score(lerp(a, group.act(permutation, b), 0.5)))

    present = {n: p.clone() for n, p in (group.identity() if start is None else start).items()}
    value = reached(present)
    best, highest = present, value
    for step in range(steps):
        temperature = hot * (cold / hot) ** (step / max(steps - 1, 1))
        block = blocks[generator.choice(len(blocks), p=shares)]
        each = block.size // wholes[block.name]
        i, j = generator.choice(each, 2, replace=False) + each * generator.integers(
            wholes[block.name]
        )
        candidate = _swapped(group, present, block, int(i), int(j))
        there, chance = reached(candidate), generator.random()
        if there >= value or chance < math.exp((there - value) / temperature):
            present, value = candidate, there
        if value > highest:
            best, highest = present, value
    return Matching(best, highest, steps)


def _swapped(
    group: PermutationGroup, present: Permutation, block: Block, i: int, j: int
) -> dict[str, Tensor]:
    """Return a permutation in which two units of a block, with all within them, trade places."""
    candidate, names = dict(present), {block.name}
    for other in group.blocks:
        if other.name in names or other.within in names:
            names.add(other.name)
            rows = present[other.name].view(block.size, -1).clone()
            rows[[i, j]] = rows[[j, i]]
            candidate[other.name] = rows.flatten()
    return candidate
