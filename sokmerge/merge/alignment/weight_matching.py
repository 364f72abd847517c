r"""Align two networks by their weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sokmerge.merge.alignment.matching import Matching, assign
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, host, inner, require_finite, require_matching, wide
from sokmerge.symmetry import Axis, Block, Permutation, PermutationGroup

__all__ = ["weight_matching"]

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
    a: Params, b: Params, group: PermutationGroup, *, seed: int = 0, max_passes: int = 100
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

    Args:
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of their architecture.
        seed: fixes the order in which the layers take turns.
        max_passes: bound on the number of passes; Ainsworth et al. report that a few suffice.

    Returns:
        The permutation, the inner product that it reaches, and the number of passes.

    Raises:
        ArgumentError: a and b do not match, are not finite, or do not fit the group.

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
    generator = np.random.default_rng(seed)
    permutation: dict[str, Tensor] = group.identity()
    passes, improved = 0, True
    while improved and passes < max_passes:
        passes, improved = passes + 1, False
        for k in generator.permutation(len(group.blocks)):
            block = group.blocks[k]
            similarity = _similarity(a, b, block, _others(permutation, block, group))
            candidate = assign(similarity)
            if _improves(similarity, candidate, permutation[block.name]):
                permutation = {**permutation, block.name: candidate}
                improved = True
    reached = float(host(inner(a, group.act(permutation, b))))
    return Matching(permutation, reached, passes)


def _similarity(
    a: Params, b: Params, block: Block, others: Mapping[str, list[tuple[Axis, Tensor]]]
) -> Tensor:
    r"""Return :math:`S_{ij}`, shape (size, size), in double precision where there is any."""
    total = None
    for axis in block.axes:
        if axis.buffer:  # running statistics are not weights
            continue
        re_indexed = b[axis.parameter]
        for other, order in others.get(axis.parameter, []):
            re_indexed = re_indexed.index_select(other.dim, order.to(re_indexed.device))
        term = _units_first(a[axis.parameter], axis) @ _units_first(re_indexed, axis).T
        total = term if total is None else total + term
    return total


def _units_first(tensor: Tensor, axis: Axis) -> Tensor:
    """View a parameter as a matrix with one row for each unit of an axis."""
    rows = wide(tensor).movedim(axis.dim, 0)
    return rows.reshape(rows.shape[0] // axis.repeat, -1)


def _others(
    permutation: Permutation, block: Block, group: PermutationGroup
) -> dict[str, list[tuple[Axis, Tensor]]]:
    """For each parameter of a block: its other axes, with the entries' present order."""
    touched = {axis.parameter for axis in block.axes}
    found: dict[str, list[tuple[Axis, Tensor]]] = {}
    for other in group.blocks:
        if other.name == block.name:
            continue
        for axis in other.axes:
            if axis.parameter in touched:
                order = axis.entries(permutation[other.name])
                found.setdefault(axis.parameter, []).append((axis, order))
    return found


def _improves(similarity: Tensor, candidate: Tensor, present: Tensor) -> bool:
    """Say whether a candidate reaches more than the present order. This waits for the device."""
    reached = [similarity.gather(1, order.to(similarity.device)[:, None]).sum()
               for order in (candidate, present)]  # fmt: skip
    more, less, largest = host(torch.stack([*reached, similarity.abs().max()]))
    return bool(more - less > _IMPROVEMENT * largest * len(present))
