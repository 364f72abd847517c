r"""OT-Fusion: average networks whose units were brought to the first one's by optimal transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.alignment.activations import require_examples, require_sites
from sokmerge.merge.alignment.mapping import (
    carry,
    layer_order,
    moments,
    rounded,
    rows,
    sizes,
)
from sokmerge.merge.operands import proportions
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, has_values, host, require_finite, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["ot_fusion", "transport", "transport_plans"]


@method(
    branch="neuron alignment",
    paper="singh2019model",
    needs=("symmetry",),
    scope="layer",
    equation=r"T=\arg\min_{T\ge0}\langle T,C\rangle,\ T\mathbf 1=\tfrac1n\mathbf 1,\ "
    r"T^\top\mathbf 1=\tfrac1m\mathbf 1",
    ties="as POT's network simplex breaks them",
)
def ot_fusion(
    module: nn.Module | Sequence[nn.Module],
    models: Sequence[Params],
    group: PermutationGroup,
    *,
    inputs: Tensor | None = None,
    weights: Sequence[float] | None = None,
    regularisation: float = 0.0,
    chunk: int = 256,
) -> Params:
    r"""Return the average of networks, each brought to the first one's units by optimal transport.

    Layer by layer, the units of a network are a cloud of points of equal mass, and so are the
    first one's. The transport plan T moves the one to the other at the least cost, where
    :math:`C_{ij}` is the distance of the first network's unit i to the other's unit j (Singh and
    Jaggi 2019):

    .. math:: \min_{T\ge 0}\ \langle T, C\rangle\quad\text{with}\quad
              T\mathbf 1=\tfrac1n\mathbf 1,\ T^\top\mathbf 1=\tfrac1m\mathbf 1 .

    With :math:`n=m` units the optimum is a permutation. With :math:`n\ne m` it shares units out,
    and so networks of different widths can be fused; the result has the first one's width. What
    makes the units becomes :math:`n\,T\,W`, a mean over the units that came. What reads them
    becomes :math:`W(m\,T)^\top`: a unit's outgoing weight is divided among the places to which it
    went, so that copying a unit does not change the function. (The paper divides by the same
    marginals on both sides, which is the same where the widths are.)

    Units are compared by what makes them, after the layers before were brought to the first
    network's units (a weight between two layers that are both open is left out), or, where
    ``inputs`` are given, by their activations. The distance is Euclidean.

    Args:
        module: the architecture of the first network, in evaluation mode; with ``inputs`` and
            different widths, one module for each network.
        models: parameters of at least two networks; only the numbers of units may differ.
        group: what the units of the first network are.
        inputs: shape (n, ...), at least two, to compare units by activations. No labels are
            needed.
        weights: one non-negative number for each model, by default all equal.
        regularisation: 0 for exact transport; otherwise the weight of the entropy, in units of the
            mean cost (Sinkhorn), which makes the plan smooth.
        chunk: examples in one forward pass.

    Raises:
        ArgumentError: an argument is not as described.

    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> group, theta = symmetry.chain(net, ["0", "2"]), params.of(net)
    >>> shuffled = group.act(group.sample(seed=1), theta)
    >>> fused = ot_fusion(net, [theta, shuffled], group)
    >>> float(params.distance(fused, theta)) < 1e-6
    True
    """
    if len(models) < 2:
        raise ArgumentError("models", found=f"{len(models)} models", expected="at least 2")
    proportions(weights, models)
    modules = _modules(module, models)
    brought = [models[0]]
    for k in range(1, len(models)):
        pair, nets = [models[0], models[k]], [modules[0], modules[k]]
        plans = transport_plans(
            nets, *pair, group, inputs=inputs, regularisation=regularisation, chunk=chunk
        )
        moved = _wide(models[k])
        for block in group.blocks:
            moved = carry(nets[0], block, moved, *_maps(plans[block.name]))
        brought.append(rounded(moved, models[k]))
    return average(brought, weights=weights)


def transport_plans(
    module: nn.Module | Sequence[nn.Module],
    a: Params,
    b: Params,
    group: PermutationGroup,
    *,
    inputs: Tensor | None = None,
    regularisation: float = 0.0,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Return for each block the transport plan from b's units to a's, shape (a's, b's).

    The arguments are those of :func:`ot_fusion`. The rows sum to one over the number of a's
    units, the columns to one over that of b's.
    """
    modules = _modules(module, [a, b])
    require_finite(a=a, b=b)
    group.require_fits(a, "a")
    sizes(group, b, "b")
    if inputs is not None:
        require_examples(inputs, chunk)
        networks = [Network(each, inputs.device) for each in modules]
        for network, name, params in zip(networks, ("a", "b"), (a, b), strict=True):
            network.require(**{name: params})
            require_sites(network, group)
        found = moments(networks, [a, b], group, inputs, chunk)
        return {n: transport(each.distance(0, 1), regularisation) for n, each in found.items()}
    plans, moved, settled = {}, _wide(b), frozenset()
    for block in layer_order(modules[0], group, a):
        of_a, of_b = (rows(modules[0], group, block, each, settled) for each in (_wide(a), moved))
        cost = torch.cdist(of_a, of_b, compute_mode="donot_use_mm_for_euclid_dist")
        plans[block.name] = transport(cost, regularisation)
        moved = carry(modules[0], block, moved, *_maps(plans[block.name]))
        settled |= {block.name}
    return {block.name: plans[block.name] for block in group.blocks}


def transport(cost: Tensor, regularisation: float = 0.0) -> Tensor:
    r"""Return the optimal transport plan between two uniform distributions.

    Solved on the host, by POT's network simplex, or by its Sinkhorn iterations in the logarithmic
    domain for the cost plus :math:`\varepsilon\sum_{ij}T_{ij}\log T_{ij}`.

    Args:
        cost: shape (n, m).
        regularisation: :math:`\varepsilon` over the mean cost; 0 for exact transport.

    Returns:
        Shape (n, m), on the device of the cost. Without values, the plan that is uniform.

    >>> transport(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    if not regularisation >= 0:
        raise ArgumentError("regularisation", found=f"{regularisation}", expected="0 or more")
    n, m = cost.shape
    if not has_values(cost):
        return torch.full_like(cost, 1 / (n * m))
    import ot  # here, for it takes seconds to load

    numbers = host(cost)
    level = regularisation * numbers.mean()
    if level > 0:
        found = ot.sinkhorn(
            [1 / n] * n, [1 / m] * m, numbers, level, method="sinkhorn_log", numItermax=5000,
            stopThr=1e-10, warn=False,
        )  # fmt: skip
    else:
        found = ot.emd([1 / n] * n, [1 / m] * m, numbers, numItermax=1_000_000)
    return torch.from_numpy(found).to(cost)


def _maps(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Return what multiplies the makers, rows of sum one, and the readers, columns of sum one."""
    return plan / plan.sum(1, keepdim=True), plan / plan.sum(0, keepdim=True)


def _wide(params: Params) -> Mapping[str, Tensor]:
    return {n: wide(t) if t.is_floating_point() else t for n, t in params.items()}


def _modules(
    module: nn.Module | Sequence[nn.Module], models: Sequence[Params]
) -> Sequence[nn.Module]:
    # A Sequential is a sequence as well, of layers.
    modules = [module] * len(models) if isinstance(module, nn.Module) else list(module)
    if len(modules) != len(models):
        raise ArgumentError(
            "module",
            found=f"{len(modules)} modules for {len(models)} models",
            expected="one module, or one for each model",
        )
    return modules
