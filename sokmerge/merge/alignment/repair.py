r"""REPAIR: give the units of a merged network the spread that they had in its endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.alignment.activations import mixed, require_examples, spread
from sokmerge.merge.operands import proportions, require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, wide
from sokmerge.symmetry import PermutationGroup

__all__ = ["repair"]

Spread = Mapping[str, tuple[Tensor, Tensor]]


@method(
    branch="neuron alignment",
    paper="jordan2022repair",
    needs=("symmetry", "inputs"),
    scope="layer",
    equation=r"z_i\mapsto\frac{\bar\sigma_i}{\sigma_i}(z_i-\mu_i)+\bar\mu_i,\qquad "
    r"\bar\mu_i=\textstyle\sum_kw_k\mu_i^{(k)},\ \bar\sigma_i=\sum_kw_k\sigma_i^{(k)}",
)
def repair(
    module: nn.Module,
    models: Sequence[Params],
    group: PermutationGroup,
    inputs: Tensor,
    *,
    weights: Sequence[float] | None = None,
    merged: Params | None = None,
    layers: Sequence[str] | None = None,
    chunk: int = 256,
) -> Params:
    r"""Return an average of aligned networks whose units are as spread out as the networks' own.

    Where two units are averaged that agree only in part, what remains varies less: with
    correlation :math:`\rho` and equal variances, by the factor :math:`(1+\rho)/2`. Layer after
    layer the signal fades. REPAIR (Jordan et al. 2022) rescales and shifts each unit's
    preactivation :math:`z_i`,

    .. math:: z_i\mapsto\frac{\bar\sigma_i}{\sigma_i}\,(z_i-\mu_i)+\bar\mu_i,\qquad
              \bar\mu_i=\sum_k w_k\,\mu_i^{(k)},\quad\bar\sigma_i=\sum_k w_k\,\sigma_i^{(k)},

    where :math:`\mu_i,\sigma_i` are its mean and standard deviation in the merged network and the
    targets are the interpolation of those in the networks. Both are folded into the weight and
    the bias of the layer. The layers are corrected first to last, each on what the corrected
    layers before it make.

    Corrected is each layer that is called, whose weight and bias both run along the units of one
    block: linear layers, convolutions, normalisations with an affine map. A unit that never
    varies in the merged network is only shifted. Where BatchNorm follows, its statistics at the
    merged point, estimated anew, do the same; a convolution without bias before it is left alone.

    Args:
        module: the architecture, in evaluation mode; its own parameters are not used.
        models: parameters of the networks, aligned: unit i of one belongs to unit i of the others.
        group: the symmetry of the architecture, which says what the units are.
        inputs: shape (n, ...), at least two. No labels are needed.
        weights: one non-negative number for each model, by default all equal.
        merged: the network to correct, by default the average of the models.
        layers: correct only these; by default all that can be.
        chunk: examples in one forward pass.

    Returns:
        The corrected parameters. With all weight on one model they are that model's.

    Raises:
        ArgumentError: an argument is not as described.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    >>> from sokmerge import symmetry
    >>> def point(slope):
    ...     ones = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    ...     return {**ones, "0.weight": torch.tensor([[slope]])}
    >>> x = torch.linspace(-1, 1, 9)[:, None]
    >>> found = repair(net, [point(1.0), point(-0.5)], symmetry.chain(net, ["0", "2"]), x)
    >>> found["0.weight"]  # the mean of the sizes, 0.75, where the average has 0.25
    tensor([[0.7500]])
    """
    require_models(models)
    shares = proportions(weights, models)
    require_examples(inputs, chunk)
    merged = average(models, weights=weights) if merged is None else merged
    network = Network(module, inputs.device)
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)}, merged=merged)
    group.require_fits(merged, "merged")
    able = correctable(network, group)
    layers = able if layers is None else list(layers)
    if unable := [name for name in layers if name not in able]:
        raise ArgumentError(
            "layers",
            found=f"{unable[0]!r}",
            expected="layers whose weight and bias both run along the units of one block",
        )
    # A network without weight has no say, and need not be run.
    heard = [(share, model) for share, model in zip(shares, models, strict=True) if share > 0]
    found = [spread(network, model, inputs, layers, chunk) for _, model in heard]
    return corrected(network, merged, mixed([s for s, _ in heard], found), inputs, chunk)


def correctable(network: Network, group: PermutationGroup) -> list[str]:
    """Return the modules whose weight and bias both run along the units of one block."""
    found = []
    for block in group.blocks:
        along = {axis.parameter for axis in block.axes if axis.dim == 0 and not axis.buffer}
        for name, _ in network.skeleton.named_modules():
            if {f"{name}.weight", f"{name}.bias"} <= along:
                found.append(name)
    return found


def corrected(
    network: Network, merged: Params, targets: Spread, inputs: Tensor, chunk: int
) -> dict[str, Tensor]:
    """Return the parameters with each layer's spread brought to its target, first layer first.

    The layers of ``targets`` come in the order in which they were called.
    """
    point = dict(merged)
    for name, (mean_target, deviation_target) in targets.items():
        mean, deviation = spread(network, point, inputs, [name], chunk)[name]
        scale = (deviation_target / deviation).where(deviation > 0, 1.0)
        weight, bias = wide(point[f"{name}.weight"]), wide(point[f"{name}.bias"])
        rows = scale.view(-1, *[1] * (weight.dim() - 1))
        shifted = scale * (bias - mean) + mean_target
        point[f"{name}.weight"] = (rows * weight).to(merged[f"{name}.weight"].dtype)
        point[f"{name}.bias"] = shifted.to(merged[f"{name}.bias"].dtype)
    return point
