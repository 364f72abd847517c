r"""What the methods on task vectors share: the differences, their checks, and the step from base.

Sums over models are taken in double precision (single on devices that have no other), one tensor
at a time, and rounded once to the dtype of the base. So a sum that is zero is found to be zero,
and the order of the models does not show in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import model_weights, require_models
from sokmerge.params import Params, wide

__all__ = [
    "task_vectors",
    "prepare",
    "names",
    "differences",
    "weighted_sum",
    "step",
    "kth_smallest",
    "masked_vector",
    "require_between",
    "draws",
    "named_streams",
]


def task_vectors(models: Sequence[Params], base: Params) -> list[dict[str, Tensor]]:
    r"""Return the task vectors, the steps that lead from the base to each model.

    .. math:: \tau_i = \theta_i - \theta_0

    (Ilharco et al. 2022.) The methods that take models and a base make these themselves.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started.

    Returns:
        One mapping for each model, with the keys of the base. ``float16`` and ``bfloat16`` give
        differences in ``float32``. Entries that are not floating point are the base's.

    Raises:
        ArgumentError: no models, or models and base that do not match or are not finite.

    >>> [tau] = task_vectors([{"w": torch.tensor([1.0, 3.0])}], {"w": torch.tensor([1.0, 1.0])})
    >>> tau["w"]
    tensor([0., 2.])
    """
    prepare(models, base)

    def difference(model: Params, name: str) -> Tensor:
        if not base[name].is_floating_point():
            return base[name]
        dtype = torch.promote_types(base[name].dtype, torch.float32)
        return model[name].to(dtype) - base[name].to(dtype)

    return [{name: difference(model, name) for name in base} for model in models]


def prepare(
    models: Sequence[Params],
    base: Params,
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    negative: bool = True,
) -> list[float]:
    """Check what all methods take, and return one weight for each model, by default 1.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started.
        weights: one number for each model.
        scale: a finite number.
        negative: whether weights may be negative; if not, they must not all be zero either.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, a scale
            that is not finite, or weights that cannot be used.

    >>> prepare([{"w": torch.zeros(2)}] * 2, {"w": torch.zeros(2)})
    [1.0, 1.0]
    """
    require_models(models, reference={"base": base})
    if not math.isfinite(scale):
        raise ArgumentError("scale", found=f"{scale}", expected="a finite number")
    return model_weights(weights, models, negative=negative)


def require_between(name: str, value: float, low: float, high: float, *, bounds: str) -> None:
    """Raise unless a number lies in an interval; ``bounds`` is "[]", "[)", "(]" or "()".

    >>> require_between("drop", 1.0, 0, 1, bounds="[)")
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: drop: found 1.0; expected a number in [0, 1).
    """
    above = value >= low if bounds[0] == "[" else value > low
    below = value <= high if bounds[1] == "]" else value < high
    if not (above and below):
        raise ArgumentError(
            name,
            found=f"{value}",
            expected=f"a number in {bounds[0]}{low}, {high}{bounds[1]}",
        )


def names(base: Params) -> list[str]:
    """Return the names of the entries that belong to the vector space, in order.

    >>> names({"w": torch.zeros(2), "steps": torch.tensor(3)})
    ['w']
    """
    return [name for name, tensor in base.items() if tensor.is_floating_point()]


def differences(models: Sequence[Params], base: Params, name: str) -> list[Tensor]:
    r"""Return one tensor of each task vector, in double precision.

    >>> differences([{"w": torch.ones(2)}], {"w": torch.zeros(2)}, "w")
    [tensor([1., 1.], dtype=torch.float64)]
    """
    origin = wide(base[name])
    return [wide(model[name]) - origin for model in models]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Return :math:`\sum_i w_i\,x_i`.

    >>> weighted_sum([torch.ones(2), torch.ones(2)], [1.0, -0.5])
    tensor([0.5000, 0.5000])
    """
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor * weight)
    return total


def step(base: Params, direction: Callable[[str], Tensor], scale: float) -> dict[str, Tensor]:
    r"""Return :math:`\theta_0 + \lambda\,\tau`, rounded once to the dtype of the base.

    Args:
        base: where the step starts; entries that are not floating point are taken from it.
        direction: gives :math:`\tau`, one tensor at a time, for the name of a floating entry.
        scale: :math:`\lambda`.

    >>> step({"w": torch.zeros(2)}, lambda name: torch.ones(2), 0.5)["w"]
    tensor([0.5000, 0.5000])
    """
    return {
        name: (wide(tensor) + scale * wide(direction(name))).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in base.items()
    }


def kth_smallest(magnitudes: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of a tensor's entries, a scalar that stays on the device.

    It is found by selection, in linear time, not by sorting.

    Args:
        magnitudes: any shape, at least one entry.
        k: from 1 to the number of entries.

    >>> kth_smallest(torch.tensor([[3.0, 1.0], [2.0, 5.0]]), 2)
    tensor(2.)
    """
    return magnitudes.flatten().kthvalue(k).values


def masked_vector(vector: Params, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a vector with zeros where a mask is False; entries without a mask stay.

    >>> masked_vector({"w": torch.ones(2)}, {"w": torch.tensor([True, False])})["w"]
    tensor([1., 0.])
    """
    return {k: t.where(masks[k], 0.0) if k in masks else t for k, t in vector.items()}


def draws(tensor: Tensor, name: str, seed: int, stream: str) -> Tensor:
    """Return one number from [0, 1) for each entry of a tensor, on its device.

    The numbers are fixed by the seed, the stream and the tensor's name, and drawn on the CPU: they
    do not depend on the device, on other tensors, or on the order or the number of workers.

    >>> bool((draws(torch.ones(3), "w", 0, "0") == draws(torch.zeros(3), "w", 0, "0")).all())
    True
    """
    generator = params.stream(repr((int(seed), str(stream), name)))
    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
    return drawn.to(tensor.device)


def named_streams(streams: Sequence[str] | None, models: Sequence[Params]) -> list[str]:
    """Return the name of each model's stream, by default its position.

    Raises:
        ArgumentError: not a different name for each model.

    >>> named_streams(None, [{}, {}])
    ['0', '1']
    """
    streams = [str(i) for i in range(len(models))] if streams is None else list(streams)
    if len(streams) != len(models) or len(set(streams)) != len(streams):
        raise ArgumentError(
            "streams",
            found=f"{streams} for {len(models)} models",
            expected="a different name for each model",
            do="Models with one mask in common would not be dropped independently.",
        )
    return streams
