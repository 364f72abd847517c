r"""Coefficients, one for each model or one for each model and layer, and the networks they make.

A layer is what the names of entries say it is: ``layer1.weight`` and ``layer1.bias`` belong to
the layer ``layer1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sokmerge.params import Params, wide

__all__ = ["blended", "places"]


def places(params: Params, layerwise: bool) -> dict[str, int]:
    """Return for each floating entry the number of its layer, or 0 for all.

    >>> import torch
    >>> one = torch.zeros(1)
    >>> places({"a.weight": one, "a.bias": one, "b.weight": one}, layerwise=True)
    {'a.weight': 0, 'a.bias': 0, 'b.weight': 1}
    """
    numbers: dict[str, int] = {}
    found = {}
    for key, tensor in params.items():
        if tensor.is_floating_point():
            layer = key.rpartition(".")[0] if layerwise else ""
            found[key] = numbers.setdefault(layer, len(numbers))
    return found


def blended(
    coefficients: Tensor,
    where: Mapping[str, int],
    models: Sequence[Params],
    base: Params | None = None,
) -> dict[str, Tensor]:
    r"""Return :math:`\theta_0 + \sum_i c_{i,l}(\theta_i - \theta_0)`, differentiable in the c.

    Without a base, :math:`\theta_0 = 0`.

    Args:
        coefficients: shape (models, layers).
        where: for each entry the number of its layer, from :func:`places`.
        models: the models.
        base: the base.

    >>> import torch
    >>> models = [{"w": torch.ones(1)}, {"w": 3 * torch.ones(1)}]
    >>> blended(torch.tensor([[0.5], [1.0]]), {"w": 0}, models)["w"]
    tensor([3.5000])
    """
    first = models[0] if base is None else base
    out = dict(first)
    for key, layer in where.items():
        origin = 0.0 if base is None else wide(base[key])
        total = origin
        for coefficient, model in zip(coefficients[:, layer], models, strict=True):
            total = total + wide(coefficient) * (wide(model[key]) - origin)
        out[key] = total.to(first[key].dtype)
    return out
