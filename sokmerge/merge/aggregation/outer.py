r"""The outer step: what several workers reached from one point, taken for a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.params import Params, combine, require_finite, require_matching

__all__ = ["outer_step"]


def outer_step(
    point: Params,
    reached: Sequence[Params],
    velocity: Params | None = None,
    *,
    rate: float = 0.7,
    momentum: float = 0.9,
    weights: Sequence[float] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""Return the next common point, and the velocity that the step after it needs.

    .. math:: \Delta_r = \theta_r - \frac{\sum_k n_k\,T_k(\theta_r)}{\sum_k n_k},\qquad
              v_{r+1} = \mu\,v_r + \Delta_r,\qquad
              \theta_{r+1} = \theta_r - \eta\,(\Delta_r + \mu\,v_{r+1})

    Workers train from :math:`\theta_r` to :math:`T_k(\theta_r)`. How far their mean is from the
    start is treated like a gradient, by an optimiser of its own, with Nesterov momentum: the
    outer optimiser of DiLoCo (Douillard et al. 2023, arXiv:2311.08105). Momentum of the server
    was proposed before by Hsu et al. (2019, arXiv:1909.06335) for clients of different data. With
    :math:`\eta=1` and :math:`\mu=0` it is a round of :func:`sokmerge.merge.fedavg`. The rule is
    that of ``torch.optim.SGD(nesterov=True)``.

    Args:
        point: :math:`\theta_r`, where the round began.
        reached: where each worker's training led.
        velocity: :math:`v_r`, from the step before; nothing in the first round.
        rate: :math:`\eta`, positive.
        momentum: :math:`\mu`, from 0 to below 1.
        weights: for each worker a non-negative number, by default all equal.

    Raises:
        ArgumentError: points that do not match or are not finite, or numbers that cannot be used.

    >>> import torch
    >>> point, reached = {"w": torch.tensor([0.0])}, [{"w": torch.tensor([1.0])}]
    >>> ahead, velocity = outer_step(point, reached, rate=1.0, momentum=0.5)
    >>> ahead["w"], velocity["w"]
    (tensor([1.5000]), tensor([-1.]))
    """
    if not 0 < rate < math.inf:
        raise ArgumentError("rate", found=f"{rate}", expected="a positive number")
    if not 0 <= momentum < 1:
        raise ArgumentError("momentum", found=f"{momentum}", expected="from 0 to below 1")
    mean = average(reached, weights=weights)
    before = {} if velocity is None else {"velocity": velocity}
    require_matching(point=point, **{"reached[0]": mean}, **before)
    require_finite(point=point, **before)
    gradient = combine([1, -1], [point, mean])
    speed = gradient if velocity is None else combine([momentum, 1], [velocity, gradient])
    return combine([1, -rate, -rate * momentum], [point, gradient, speed]), speed
