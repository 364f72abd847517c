"""BatchNorm away from the trained point: statistics that belong to the place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sokmerge.params import Params

__all__ = ["has_running_statistics", "in_estimation_mode", "estimate_statistics"]

_BatchNorm = nn.modules.batchnorm._BatchNorm  # the common base of BatchNorm1d, 2d and 3d


def has_running_statistics(module: nn.Module) -> bool:
    """Say whether a module holds a BatchNorm layer that keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())


def in_estimation_mode(module: nn.Module) -> nn.Module:
    """Set the BatchNorm layers of a module, and nothing else, to take one batch's statistics.

    The module is changed in place and returned. With a momentum of one, the running statistics
    after a pass are those of that pass alone, whatever they were before.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.train()
            layer.momentum = 1.0
    return module


def estimate_statistics(
    estimator: nn.Module, params: Params, buffers: Params, inputs: Tensor
) -> dict[str, Tensor]:
    r"""Return the buffers with the BatchNorm statistics of ``params`` on ``inputs``.

    A mean and a variance of activations belong to the parameters that made the activations. At
    any other point they are wrong, and a barrier measured with them is an artefact (Jordan et
    al. 2022, section 3). One pass over all the inputs at once gives, layer after layer, the mean
    :math:`\mu` and the unbiased variance :math:`\sigma^2` of each channel over the inputs and
    over space.

    Args:
        estimator: the module, prepared by :func:`in_estimation_mode`.
        params: the point.
        buffers: the module's buffers; they are not changed.
        inputs: shape (n, ...), taken as one batch.
    """
    fresh = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.inference_mode():
        functional_call(estimator, {**fresh, **params}, (inputs,))
    return fresh
