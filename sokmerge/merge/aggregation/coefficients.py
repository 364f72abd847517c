r"""Coefficients, one for each model or one for each model and layer, and the networks they make.

A layer is what the names of entries say it is: ``layer1.weight`` and ``layer1.bias`` belong to
the layer ``layer1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sokmerge.params import Params, wide

__all__ = ["Blend", "places"]


def places(params: Params, layerwise: bool) -> dict[str, int]:
    """Return for each floating entry the number of its layer, or 0 for all.

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


class Blend:
    r"""The map from coefficients to :math:`\theta_0^l + \sum_i c_i^l(\theta_i^l - \theta_0^l)`.

    It is differentiable in the coefficients. The differences are taken once, in wide precision,
    so that many coefficients can be tried; without a base, :math:`\theta_0 = 0`.

    Args:
        models: the models.
        base: the base. Entries that are not floating point are taken from it, or from the first
            model.
        layerwise: whether each layer has coefficients of its own.

    Attributes:
        shape: of the coefficients, (models, layers).
        device: of the models.

    >>> models = [{"w": torch.ones(1)}, {"w": 3 * torch.ones(1)}]
    >>> Blend(models)(torch.tensor([[0.5], [1.0]]))["w"]
    tensor([3.5000])
    """

    def __init__(
        self, models: Sequence[Params], *, base: Params | None = None, layerwise: bool = False
    ) -> None:
        self._first = models[0] if base is None else base
        self._places = places(self._first, layerwise)
        self._origins = {} if base is None else {key: wide(base[key]) for key in self._places}
        self._steps = {
            key: torch.stack([wide(model[key]) - self._origins.get(key, 0.0) for model in models])
            for key in self._places
        }
        self.shape = (len(models), len(set(self._places.values())))
        self.device = next(iter(self._first.values())).device

    def __call__(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the network, in the dtype of the models."""
        weights, out = wide(coefficients), dict(self._first)
        for key, layer in self._places.items():
            total = torch.tensordot(weights[:, layer], self._steps[key], dims=1)
            out[key] = (self._origins.get(key, 0.0) + total).to(self._first[key].dtype)
        return out
