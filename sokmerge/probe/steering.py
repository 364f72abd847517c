r"""Directions in what a layer computes, and what it does to add one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, wide
from sokmerge.probe.ablation import changed, layer_of
from sokmerge.probe.connectivity.layerwise import units_last
from sokmerge.probe.risk import EmpiricalRisk, RiskValue, mean_and_stderr, require_finite_loss

__all__ = ["Direction", "absorbed", "difference_of_means", "steered"]


@dataclass(frozen=True)
class Direction:
    """The direction from one group of activations to another.

    Attributes:
        vector: the difference of the means, shape (features,), in double precision.
        stderr: the standard error of each of its entries.
        n: how many activations each group has.
    """

    vector: Tensor
    stderr: Tensor
    n: tuple[int, int]

    @property
    def reliability(self) -> Tensor:
        r"""The share of the squared length that is not expected from chance.

        :math:`1-\sum_j s_j^2/\lVert v\rVert^2`; near 1 for a direction that is known well, zero
        or less for one that random groups would give as well.
        """
        return 1 - self.stderr.square().sum() / self.vector.square().sum()


def difference_of_means(of: Tensor, over: Tensor) -> Direction:
    r"""Return the mean of one group of activations less that of another.

    .. math:: v = \frac1{n}\sum_{i} h(x_i) - \frac1{m}\sum_{j} h(x'_j)

    One of the reading vectors of representation engineering (Zou et al. 2023).

    Args:
        of: activations of the group that has the property, shape (n, features).
        over: those of the group that has it not, shape (m, features).

    Raises:
        ArgumentError: no matrices of one width, or a group with fewer than two rows.

    >>> import torch
    >>> found = difference_of_means(torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.zeros(2, 2))
    >>> found.vector, found.stderr
    (tensor([3., 1.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))
    """
    if of.dim() != 2 or over.dim() != 2 or of.shape[1] != over.shape[1]:
        raise ArgumentError(
            "over",
            found=f"shape {tuple(over.shape)} with of of shape {tuple(of.shape)}",
            expected="two matrices with the same number of columns",
        )
    if min(len(of), len(over)) < 2:
        raise ArgumentError(
            "of", found=f"{len(of)} and {len(over)} rows", expected="at least two in each group"
        )
    first, second = wide(of), wide(over)
    variance = first.var(0) / len(of) + second.var(0) / len(over)
    return Direction(first.mean(0) - second.mean(0), variance.sqrt(), (len(of), len(over)))


def steered(
    risk: EmpiricalRisk,
    params: Params,
    layer: str,
    vector: Tensor,
    *,
    scale: float = 1.0,
    at: Literal["output", "input"] = "output",
) -> RiskValue:
    r"""Return the risk of the network in which a vector is added at a layer, for every input.

    .. math:: h_\ell(x)\ \leftarrow\ h_\ell(x)+\lambda\,v

    (Activation addition, Turner et al. 2023.) Of a feature map each place is given the vector.

    Args:
        risk: the risk to evaluate.
        params: the network.
        layer: name of the submodule.
        vector: v, an entry for each unit.
        scale: :math:`\lambda`.
        at: whether it is added to what the layer gives out or to what it is given.

    Raises:
        ArgumentError: params that do not belong to the risk's network, a layer that it does not
            have, a vector of another size than the layer's units, or a loss that overflows.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.ones(4, 1), torch.ones(4, dtype=torch.int64))
    >>> own = {"weight": torch.tensor([[1.0], [0.0]])}
    >>> risk(own).error, steered(risk, own, "", torch.tensor([0.0, 2.0])).error
    (1.0, 0.0)
    """
    risk.require_valid(params=params)
    module = layer_of(risk, layer)
    if vector.dim() != 1:
        raise ArgumentError("vector", found=f"shape {tuple(vector.shape)}", expected="one axis")

    def moved(features: Tensor) -> Tensor:
        axis = -1 if units_last(module) else 1
        if features.shape[axis] != len(vector):
            raise ArgumentError(
                "vector",
                found=f"{len(vector)} entries",
                expected=f"{features.shape[axis]}, one for each unit",
            )
        shape = [1] * features.dim()
        shape[axis] = len(vector)
        return features + scale * vector.to(features).view(shape)

    with changed(module, moved, at):
        losses, errors = risk.per_example(params)
    require_finite_loss(losses, "the steered network")
    found = [float(host(each)) for s in (losses, errors) for each in mean_and_stderr(s)]
    return RiskValue(*found, n=risk.n)


def absorbed(params: Params, layer: str, vector: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    r"""Return the parameters that do what adding a vector to a linear layer's input does.

    .. math:: W(h+\lambda v)+b = Wh+(b+\lambda Wv)

    So a steering vector is a task vector that has entries in one bias alone.

    Args:
        params: the network.
        layer: name of a linear layer with a bias.
        vector: v, shape (inputs,).
        scale: :math:`\lambda`.

    Raises:
        ArgumentError: there is no such weight and bias, or the vector does not fit.

    >>> import torch
    >>> own = {"head.weight": torch.tensor([[1.0, 2.0]]), "head.bias": torch.zeros(1)}
    >>> absorbed(own, "head", torch.tensor([1.0, 1.0]))["head.bias"]
    tensor([3.])
    """
    names = [f"{layer}.{part}" if layer else part for part in ("weight", "bias")]
    if any(name not in params for name in names) or params[names[0]].dim() != 2:
        raise ArgumentError(
            "layer", found=repr(layer), expected="a linear layer, with a weight and a bias"
        )
    weight, bias = (params[name] for name in names)
    if vector.shape != weight.shape[1:]:
        raise ArgumentError(
            "vector",
            found=f"shape {tuple(vector.shape)}",
            expected=f"shape {tuple(weight.shape[1:])}, an entry for each input of the layer",
        )
    moved = wide(bias) + scale * (wide(weight) @ wide(vector))
    return {**params, names[1]: moved.to(bias.dtype)}
