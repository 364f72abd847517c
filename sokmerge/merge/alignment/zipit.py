r"""ZipIt!: merge features across networks and within one, whole or up to some layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.activations import require_examples, require_sites
from sokmerge.merge.alignment.mapping import carry, membership, moments, reads
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, has_values, host, wide
from sokmerge.symmetry import Block, PermutationGroup

__all__ = ["partial_zipit", "zip_units", "zipit"]


@method(
    branch="neuron alignment",
    paper="stoica2023zipit",
    needs=("symmetry", "inputs"),
    scope="layer",
    equation=r"W^*=\textstyle\sum_jM_j^{(\ell)}\,W_j\,U_j^{(\ell-1)}",
    ties="the pair of the lowest numbers",
)
def zipit(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.125,
    chunk: int = 256,
) -> Params:
    r"""Zip networks into one: merge the features that correlate most, whosever they are.

    A permutation pairs each feature of one network with one of the other, even where the other
    has nothing like it, as is to be expected of different tasks. Stoica et al. (2023)
    put the n features of a layer of all J networks side by side and merge the two that correlate
    most, within a network or across, until n are left. The merge matrix M averages the features
    that became one, the unmerge matrix U gives each of them what they became, and a layer turns
    into

    .. math:: W^* = \sum_j M_j^{(\ell)}\,W_j\,U_j^{(\ell-1)} .

    Two numbers hold the greed in check. A feature that came of a merge has with others
    :math:`\alpha` times the smaller one of the correlations of its parts; and merges within a
    network are limited to a share :math:`\beta` of its part of all merges. A merged feature counts
    as the network's whose feature it held first. Which pairs are taken is decided on the host.

    Outputs are not zipped but averaged. A feature that never varies correlates 0 with all others.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of at least two networks.
        group: what the units are; each block needs a site.
        inputs: shape (n, ...), at least two, of all tasks. No labels are needed.
        alpha: from 0 to 1; the default is that of the authors' code.
        beta: from 0, merges across networks only, to 1; the default is the one in the authors'
            code.
        chunk: examples in one forward pass.

    Raises:
        ArgumentError: an argument is not as described.

    >>> import torch
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = net[0].bias.fill_(1.0)
    >>> theta, x = params.of(net), torch.randn(50, 2)
    >>> merged = zipit(net, [theta, theta], symmetry.chain(net, ["0", "2"]), x)
    >>> float(params.distance(merged, theta)) < 1e-6
    True
    """
    zipped, made = _zipped(module, models, group, group.blocks, inputs, alpha, beta, chunk)
    merged = {}
    for name, tensor in models[0].items():
        parts = [each[name] for each in zipped]
        if not tensor.is_floating_point():
            merged[name] = tensor
        else:
            share = 1 if name in made else 1 / len(parts)
            merged[name] = (share * sum(parts)).to(tensor.dtype)
    return merged


def partial_zipit(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    *,
    layers: int,
    alpha: float = 0.3,
    beta: float = 0.125,
    chunk: int = 256,
) -> list[Params]:
    """Zip the first layers, and leave to each network what comes behind: one trunk, many heads.

    The arguments are those of :func:`zipit`, and

    Args:
        layers: how many blocks are zipped, in the order of the group. With 0 each network stays
            as it is; with all of them, only the outputs are each network's own.

    Returns:
        For each network its parameters. Those of the zipped layers are the same tensors in all,
        and what follows them reads the zipped features.

    >>> import torch
    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> a, b = params.of(net), params.normal_like(params.of(net), seed=0)
    >>> group, x = symmetry.chain(net, ["0", "2"]), torch.randn(50, 2)
    >>> for_a, for_b = partial_zipit(net, [a, b], group, x, layers=1)
    >>> for_a["0.weight"] is for_b["0.weight"], for_a["2.bias"] is for_b["2.bias"]
    (True, False)
    """
    if not 0 <= layers <= len(group.blocks):
        raise ArgumentError("layers", found=f"{layers}", expected=f"0 ... {len(group.blocks)}")
    blocks = group.blocks[:layers]
    zipped, made = _zipped(module, models, group, blocks, inputs, alpha, beta, chunk)
    open_axes = {
        x.parameter for block in group.blocks[layers:] for x in block.axes if reads(module, x)
    }
    if made & open_axes:
        raise ArgumentError(
            "group",
            found=f"{sorted(made & open_axes)}, which make zipped units out of others",
            expected="blocks in the order of the layers",
            do="Zip such a network whole.",
        )
    shared = {n: sum(each[n] for each in zipped).to(models[0][n].dtype) for n in made}
    return [
        {
            name: shared[name]
            if name in shared
            else each[name].to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in model.items()
        }
        for each, model in zip(zipped, models, strict=True)
    ]


def zip_units(correlation: np.ndarray, count: int, alpha: float, beta: float) -> list[int]:
    r"""Say of each feature of all networks which of the zipped ones it becomes.

    Args:
        correlation: shape (count * n, count * n), for the features of all networks side by side.
        count: how many networks there are.
        alpha, beta: see :func:`zipit`.

    Returns:
        For each of the count * n features a number in 0 ... n - 1, in the order of the first
        feature of each merge.

    >>> pairs = np.array([[1, 0, 0, 0.9], [0, 1, 0.8, 0], [0, 0.8, 1, 0], [0.9, 0, 0, 1]])
    >>> zip_units(pairs, 2, alpha=0.3, beta=0.125)
    [0, 1, 1, 0]
    """
    total = len(correlation)
    size = total // count
    scores = np.array(correlation, dtype=np.float64)
    owner = np.arange(total) // size
    parts = [[k] for k in range(total)]
    may_meet = ~np.eye(total, dtype=bool)
    alive = np.ones(total, dtype=bool)
    left = np.full(count, int((total - size) // count * beta + 1e-4))
    for network in np.flatnonzero(left == 0):
        may_meet &= (owner != network)[:, None] | (owner != network)
    for _ in range(total - size):
        best = np.where(may_meet, scores, -np.inf).argmax()
        i, j = sorted(divmod(int(best), total))
        parts[i] += parts[j]
        scores[i] = scores[:, i] = alpha * np.minimum(scores[i], scores[j])
        may_meet[j] = may_meet[:, j] = alive[j] = False
        if owner[i] == owner[j]:
            left[owner[i]] -= 1
            if left[owner[i]] == 0:
                may_meet &= (owner != owner[i])[:, None] | (owner != owner[i])
    labels = np.empty(total, dtype=int)
    for new, first in enumerate(np.flatnonzero(alive)):
        labels[parts[first]] = new
    return [int(label) for label in labels]


def _zipped(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    blocks: Sequence[Block],
    inputs: Tensor,
    alpha: float,
    beta: float,
    chunk: int,
) -> tuple[list[dict[str, Tensor]], set[str]]:
    """Return each network's share in the zipped one, and the parameters that make zipped units."""
    require_models(models, least=2)
    require_examples(inputs, chunk)
    for name, number in (("alpha", alpha), ("beta", beta)):
        if not 0 <= number <= 1:
            raise ArgumentError(name, found=f"{number}", expected="a number from 0 to 1")
    network = Network(module, inputs.device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    group.require_fits(models[0], "models[0]")
    chosen = PermutationGroup(tuple(blocks))
    require_sites(network, chosen)
    shares = [{n: wide(t) if t.is_floating_point() else t for n, t in m.items()} for m in models]
    found = moments([network] * len(models), models, chosen, inputs, chunk) if blocks else {}
    for block in blocks:
        merge, unmerge = zip_matrices(found[block.name].correlation(), len(models), alpha, beta)
        shares = [
            carry(network.skeleton, block, share, m, u)
            for share, m, u in zip(shares, merge, unmerge, strict=True)
        ]
    made = {
        x.parameter
        for block in blocks
        for x in block.axes
        if x.parameter in models[0] and not reads(network.skeleton, x)
    }
    return shares, made


def zip_matrices(
    correlation: Tensor, count: int, alpha: float, beta: float
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Return for each network its merge matrix :math:`M_j` and :math:`U_j^\top`, (n, n) both."""
    size = len(correlation) // count
    known = has_values(correlation)
    labels = (
        zip_units(host(correlation), count, alpha, beta) if known else list(range(size)) * count
    )
    became = membership(labels, size, correlation)
    average = became / became.sum(1, keepdim=True)
    return list(average.split(size, 1)), list(became.split(size, 1))
