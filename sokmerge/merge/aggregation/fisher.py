"""Fisher merging: an average in which every parameter counts by what its network knows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import proportions, require_models, require_statistics
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, host, wide

__all__ = ["fisher", "fisher_diagonal"]


def fisher_diagonal(
    module: nn.Module, params: Params, inputs: Tensor, *, chunk: int = 32
) -> dict[str, Tensor]:
    r"""Return the diagonal of a classifier's Fisher information, one number for each parameter.

    .. math:: F = \frac1n\sum_{x}\ \sum_{c=1}^{C} p_\theta(c\mid x)\,
              \bigl(\nabla_\theta \log p_\theta(c\mid x)\bigr)^2,\qquad
              p_\theta(\cdot\mid x) = \operatorname{softmax} f_\theta(x)

    The expectation is over the classes that the network itself predicts, so no labels enter: this
    is the Fisher information, not the "empirical" one, which takes the squared gradient at the
    label. The sum over the classes is exact. The squares are those of single examples: a
    gradient of a mean would lose what cancels in it.

    BatchNorm statistics are estimated on ``inputs`` and then held fixed.

    Args:
        module: the network's architecture, in evaluation mode; its own parameters are not used,
            and it is not changed.
        params: the point :math:`\theta`.
        inputs: shape (n, ...). No labels are needed.
        chunk: examples whose gradients are held at a time; each takes as much memory as the
            parameters.

    Returns:
        For each parameter of the network a tensor of its shape, in single precision or better.
        The time is that of C passes, forward and backward, over the inputs.

    Raises:
        ArgumentError: no inputs, params that do not belong to the module or are not finite, or
            outputs that are not class scores, shape (n, C).

    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> fisher_diagonal(net, {"weight": torch.zeros(2, 1)}, torch.tensor([[2.0]]))["weight"]
    tensor([[1.],
            [1.]])
    """
    for name, number in (("inputs", len(inputs)), ("chunk", chunk)):
        if number < 1:
            raise ArgumentError(name, found=f"{number}", expected="at least one example")
    network = Network(module, inputs.device)
    network.require(params=params)
    state = {key: t.detach() for key, t in network.state(params, inputs).items()}
    theta = {key: state[key] for key in network.parameters if state[key].is_floating_point()}
    with torch.no_grad():
        shape = network(state, inputs[:1]).shape
    if len(shape) != 2:
        raise ArgumentError(
            "module",
            found=f"outputs of shape {tuple(shape)} for one input",
            expected="class scores, shape (1, C)",
        )

    def log_probability(theta: Params, x: Tensor, c: int) -> Tensor:
        return network({**state, **theta}, x[None]).log_softmax(1)[0, c]

    of_examples = vmap(grad_and_value(log_probability), in_dims=(None, 0, None))
    total = {key: torch.zeros_like(wide(t)) for key, t in theta.items()}
    for x in inputs.split(chunk):
        for c in range(shape[1]):
            gradients, values = of_examples(theta, x, c)
            shares = wide(values).exp()
            for key, gradient in gradients.items():
                squares = wide(gradient).square_()
                total[key] += torch.tensordot(shares, squares, dims=1)
    return {
        key: (t / len(inputs)).to(torch.promote_types(theta[key].dtype, torch.float32))
        for key, t in total.items()
    }


@method(
    branch="weight aggregation",
    paper="matena2021merging",
    needs=("statistics",),
    scope="entry",
    equation=r"\theta=\textstyle\sum_i w_iF_i\theta_i\,/\,\sum_i w_iF_i",
)
def fisher(
    models: Sequence[Params],
    *,
    fishers: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    floor: float = 1e-6,
) -> Params:
    r"""Return the average of networks, each parameter weighted by its Fisher information.

    .. math:: \theta = \frac{\sum_i w_i\,F_i\,\theta_i}{\sum_i w_i\,F_i}
              \qquad\text{(entry by entry)}

    Approximate the posterior of each network by a Gaussian around :math:`\theta_i` with precision
    :math:`F_i`, the diagonal of the Fisher information. Then this point maximises the joint
    likelihood of the posteriors (Matena and Raffel 2021). If all precisions are equal it is the
    :func:`average`.

    Scope: per entry. An information below ``floor`` counts as ``floor``: where no network knows
    anything of an entry, its plain average is taken. Floating entries that the Fishers do not
    have, such as the buffers of BatchNorm, are averaged with the weights alone.

    Args:
        models: parameters of networks of one architecture. Entries that are not floating point
            are taken from the first.
        fishers: for each model, the non-negative precision of its entries, as from
            :func:`fisher_diagonal`.
        weights: one non-negative number for each model, by default all equal; they need not sum
            to one.
        floor: the least information, above zero.

    Raises:
        ArgumentError: models, Fishers or weights that are not as described.

    >>> a, b = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}
    >>> fishers = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> fisher([a, b], fishers=fishers)["w"]
    tensor([0.5000, 0.2500])
    """
    require_models(models)
    shares = proportions(weights, models)
    if not (floor > 0 and math.isfinite(floor)):
        raise ArgumentError("floor", found=f"{floor}", expected="a finite number above zero")
    require_statistics("fishers", fishers, models)
    _require_precisions(fishers, models)

    def merged(key: str, first: Tensor) -> Tensor:
        above, below = 0.0, 0.0
        for share, model, information in zip(shares, models, fishers, strict=True):
            precision = share
            if key in information:
                precision = share * wide(information[key]).clamp(min=floor)
            above = above + precision * wide(model[key])
            below = below + precision
        return (above / below).to(first.dtype)

    return {
        key: merged(key, tensor) if tensor.is_floating_point() else tensor
        for key, tensor in models[0].items()
    }


def _require_precisions(fishers: Sequence[Mapping[str, Tensor]], models: Sequence[Params]) -> None:
    """Raise unless shapes are those of the models and nothing is negative. This waits, once each.

    Raises:
        ArgumentError: names the entry.
    """
    for i, information in enumerate(fishers):
        for key, tensor in information.items():
            if tensor.shape != models[0][key].shape:
                raise ArgumentError(
                    f"fishers[{i}][{key!r}]",
                    found=f"shape {tuple(tensor.shape)}",
                    expected=f"shape {tuple(models[0][key].shape)}, as in the models",
                )
        filled = {key: wide(t).amin() for key, t in information.items() if t.numel()}
        lowest = host(torch.stack(list(filled.values()))) if filled else ()
        for key, value in zip(filled, lowest, strict=True):
            if value < 0:
                raise ArgumentError(
                    f"fishers[{i}][{key!r}]",
                    found=f"an entry of {value:.3g}",
                    expected="precisions, which are not negative",
                )
