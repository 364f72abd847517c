r"""Align two networks by what their units do on data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.activations import observe, require_some_sites, variance
from sokmerge.merge.alignment.matching import Matching, assign_nested, in_order, nested
from sokmerge.merge.alignment.weight_matching import climb
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, entrywise, host, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["activation_matching"]

Similarity = Literal["inner product", "correlation"]


@method(
    branch="neuron alignment",
    paper="ainsworth2022git",
    needs=("symmetry", "inputs"),
    returns="permutation",
    scope="layer",
    equation=r"\max_{\pi}\textstyle\sum_i\bigl(Z_A^\top Z_B\bigr)_{i,\pi(i)}",
    ties="in the order of the units",
)
def activation_matching(
    module: nn.Module,
    a: Params,
    b: Params,
    group: PermutationGroup,
    inputs: Tensor,
    *,
    similarity: Similarity = "inner product",
    chunk: int = 256,
) -> Matching:
    r"""Find the permutation of b's units that brings its activations closest to a's.

    Let :math:`Z_A, Z_B` hold the activations of one layer, a row for each input (and each place,
    after a convolution), a column for each unit. Each layer is matched on its own,

    .. math:: \min_\pi \sum_i \lVert Z_A[:,i]-Z_B[:,\pi(i)]\rVert^2
              = \text{const} - 2\max_\pi \sum_i S_{i,\pi(i)},\qquad S = Z_A^\top Z_B,

    a linear assignment that needs no iteration (Ainsworth et al. 2022, section 3.1, after Li et
    al. 2015). With ``similarity="correlation"``, S is the matrix of Pearson correlations, as in
    Li et al. (2015), which ignores how active a unit is; a unit that never varies has
    correlation 0 with all others.

    The activations are taken where they are read: at the input of the next layer, behind the
    nonlinearity, and in double precision where the device has it. BatchNorm statistics are those
    of each network on ``inputs``. Units that no input switches on look alike, and are matched with
    one another in the order that they are in.

    Units that lie within others, as channels in heads, are matched with these, as by
    :func:`weight_matching`. Units without a site, which no layer is seen to read, are matched by
    their weights once all others are settled: the queries and keys of an attention are such.

    Args:
        module: the network's architecture, in evaluation mode; its own parameters are not used,
            and it is not changed.
        a: parameters of the reference network.
        b: parameters of the network to re-index.
        group: the symmetry of the architecture; some of its blocks need a site.
        inputs: shape (n, ...). No labels are needed.
        similarity: "inner product" or "correlation".
        chunk: examples in one forward pass.

    Returns:
        The permutation and the sum of the similarities of activations that it reaches. ``passes``
        is 1.

    Raises:
        ArgumentError: an argument is not as described.
    """
    if similarity not in ("inner product", "correlation"):
        raise ArgumentError(
            "similarity", found=repr(similarity), expected="'inner product' or 'correlation'"
        )
    for name, number in (("inputs", len(inputs)), ("chunk", chunk)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one example")
    network = Network(module, inputs.device)
    network.require(a=a, b=b)
    group.require_fits(a, "a")
    observed = require_some_sites(network, group)

    sums = {block.name: _Moments() for block in group.blocks if block.name in observed}
    # In single precision the last digits depend on the processor, and near ties on them.
    state_a, state_b = (
        network.state(entrywise(wide, {**network.buffers, **point}), _wide(inputs))
        for point in (a, b)
    )
    seen, _ = observe(network, group)
    with torch.inference_mode():
        for x in map(_wide, inputs.split(chunk)):
            network(state_a, x)
            of_a = dict(seen)
            network(state_b, x)
            for name, moments in sums.items():
                moments.add(of_a[name], seen[name])

    scores = {
        name: moments.correlation() if similarity == "correlation" else moments.cross
        for name, moments in sums.items()
    }
    ordered = {name: in_order(score) for name, score in scores.items()}
    like = next(iter(scores.values()), None)
    permutation, reached = {}, 0.0
    for blocks in nested(group).values():
        if not any(block.name in scores for block in blocks):
            continue
        silent = {b.name: like.new_zeros(b.size, b.size) for b in blocks if b.name not in scores}
        found = assign_nested(blocks, {**ordered, **silent})
        told = set(scores)
        for block in reversed(blocks):  # units in which observed ones lie are settled with these
            if block.name in told:
                permutation[block.name] = found[block.name]
                told.add(block.within)
        for block in blocks:
            if block.name in scores:
                reached += _attained(scores[block.name], found[block.name])
    if len(permutation) < len(group.blocks):
        permutation = climb(a, b, group, 0, max_passes=100, settled=permutation).permutation
    return Matching(permutation, reached, passes=1)


def _wide(inputs: Tensor) -> Tensor:
    return wide(inputs) if inputs.is_floating_point() else inputs


class _Moments:
    """Sums over rows from which inner products and correlations follow."""

    def __init__(self) -> None:
        self.rows = 0
        self.cross: Tensor | int = 0
        self.sum_a = self.sum_b = self.square_a = self.square_b = 0

    def add(self, z_a: Tensor, z_b: Tensor) -> None:
        z_a, z_b = wide(z_a), wide(z_b)
        self.rows += len(z_a)
        self.cross = self.cross + z_a.T @ z_b
        self.sum_a, self.sum_b = self.sum_a + z_a.sum(0), self.sum_b + z_b.sum(0)
        self.square_a = self.square_a + z_a.square().sum(0)
        self.square_b = self.square_b + z_b.square().sum(0)

    def correlation(self) -> Tensor:
        mean_a, mean_b = self.sum_a / self.rows, self.sum_b / self.rows
        covariance = self.cross / self.rows - torch.outer(mean_a, mean_b)
        spread_a = variance(mean_a, self.square_a / self.rows)
        spread_b = variance(mean_b, self.square_b / self.rows)
        product = torch.outer(spread_a, spread_b).sqrt()
        return torch.where(product > 0, covariance / product, 0.0)


def _attained(scores: Tensor, permutation: Tensor) -> float:
    """Return the sum of the chosen similarities. This waits for the device."""
    chosen = scores.gather(1, permutation.to(scores.device)[:, None])
    return float(host(chosen.sum()))
