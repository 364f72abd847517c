r"""How much the units of an average vary, layer by layer, against what theory says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.alignment.activations import require_examples, units_last, variance, watched
from sokmerge.network import Network
from sokmerge.params import Params, host, lerp, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["VarianceRatio", "variance_ratio"]


@dataclass(frozen=True)
class VarianceRatio:
    r"""The variance of one layer's preactivations half way, relative to its two ends.

    All are over inputs (and places), summed over units before they are divided.

    Attributes:
        layer: the name of the layer.
        rho: the mean correlation of corresponding units,
            :math:`\sum_i\operatorname{cov}(a_i,b_i)\big/\sum_i\tfrac12(\sigma_{a_i}^2+
            \sigma_{b_i}^2)`; for units of equal variance it is the mean of their correlations.
        predicted: :math:`(1+\rho)/2`, the variance ratio of the averaged preactivations
            :math:`\tfrac12(a_i+b_i)`, an identity.
        measured: the variance ratio of the preactivations of the averaged network. In the first
            layer the two agree, since averaging weights averages what they make of one input.
    """

    layer: str
    rho: float
    predicted: float
    measured: float


def variance_ratio(
    module: nn.Module,
    a: Params,
    b: Params,
    group: PermutationGroup,
    inputs: Tensor,
    *,
    chunk: int = 256,
) -> tuple[VarianceRatio, ...]:
    r"""Return how much the preactivations of the network half way vary, layer by layer.

    Two units of variance :math:`\sigma^2` and correlation :math:`\rho` have an average of variance

    .. math:: \operatorname{var}\bigl(\tfrac12(z_a+z_b)\bigr)=\tfrac{1+\rho}{2}\,\sigma^2

    (Jordan et al. 2022). The averaged network computes this average in its first
    layer. In later layers its inputs have lost variance already and have passed a nonlinearity,
    so there the measured ratio may differ, either way.

    Args:
        module: the architecture, in evaluation mode.
        a: parameters of one end.
        b: parameters of the other, aligned to a.
        group: the symmetry of the architecture; each block bears the name of the layer that makes
            its units.
        inputs: shape (n, ...), at least two.
        chunk: examples in one forward pass.

    Returns:
        One result for each block, in the group's order.

    Raises:
        ArgumentError: an argument is not as described.

    >>> from sokmerge import params, symmetry
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    >>> theta, group, x = params.of(net), symmetry.chain(net, ["0", "2"]), torch.randn(50, 3)
    >>> (same,) = variance_ratio(net, theta, theta, group, x)
    >>> round(same.predicted, 6), round(same.measured, 6)
    (1.0, 1.0)
    """
    require_examples(inputs, chunk)
    network = Network(module, inputs.device)
    network.require(a=a, b=b)
    group.require_fits(a, "a")
    modules = dict(network.skeleton.named_modules())
    layers = [block.name for block in group.blocks]
    for name in layers:
        if name not in modules:
            raise ArgumentError(
                "group",
                found=f"block {name!r}",
                expected="blocks that bear the name of the layer that makes their units",
            )
    seen: dict[str, Tensor] = {}
    watched(network, layers, lambda n, m, _, out: seen.__setitem__(n, wide(units_last(m, out))))
    states = [network.state(point, inputs) for point in (a, b, lerp(a, b, 0.5))]
    # For a, b and the network half way: sums and sums of squares; and the sum of products a b.
    sums: dict[str, list[Tensor | int]] = {name: [0] * 7 for name in layers}
    rows = dict.fromkeys(layers, 0)
    with torch.inference_mode():
        for x in inputs.split(chunk):
            given = []
            for state in states:
                network(state, x)
                given.append(dict(seen))
            for name in layers:
                outs = [each[name] for each in given]
                rows[name] += len(outs[0])
                moments = [out.sum(0) for out in outs] + [out.square().sum(0) for out in outs]
                moments.append((outs[0] * outs[1]).sum(0))
                sums[name] = [old + new for old, new in zip(sums[name], moments, strict=True)]
    return tuple(_ratio(name, [total / rows[name] for total in sums[name]]) for name in layers)


def _ratio(name: str, moments: list[Tensor]) -> VarianceRatio:
    """Make the result of one layer. This waits for the device."""
    mean_a, mean_b, mean_middle, square_a, square_b, square_middle, product = moments
    of_ends = (variance(mean_a, square_a) + variance(mean_b, square_b)).sum() / 2
    shared = (product - mean_a * mean_b).sum()
    of_middle = variance(mean_middle, square_middle).sum()
    rho, measured = host(torch.stack([shared / of_ends, of_middle / of_ends]))
    return VarianceRatio(name, float(rho), float((1 + rho) / 2), float(measured))
