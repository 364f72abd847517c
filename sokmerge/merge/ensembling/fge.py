r"""Fast geometric ensembling: short cycles around a network that is almost trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling.deep_ensemble import probability_ensemble
from sokmerge.merge.ensembling.predictor import Predictor
from sokmerge.merge.ensembling.snapshot import require_period
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["fge", "triangular_cycle"]


def triangular_cycle(step: int, *, period: int, high: float, low: float) -> float:
    r"""Return the learning rate of a step, falling and rising along straight lines.

    .. math:: \alpha(i) = \begin{cases}(1-2t)\,\alpha_1+2t\,\alpha_2 & 0<t\le\frac12\\
              (2-2t)\,\alpha_2+(2t-1)\,\alpha_1 & \frac12<t\le1\end{cases}
              \qquad t = \frac{(i-1)\bmod c+1}{c}

    (Garipov et al. 2018, section 5.)

    Args:
        step: i, from 1.
        period: c, the steps of a cycle, an even number.
        high: :math:`\alpha_1`, the rate at the end of each cycle.
        low: :math:`\alpha_2`, the rate in the middle of each cycle.

    Raises:
        ArgumentError: a step below 1 or a period that is odd or below 2.

    >>> [triangular_cycle(i, period=4, high=1.0, low=0.0) for i in range(1, 6)]
    [0.5, 0.0, 0.5, 1.0, 0.5]
    """
    _require_even(period)
    if step < 1:
        raise ArgumentError("step", found=f"{step}", expected="1 or more")
    t = ((step - 1) % period + 1) / period
    if t <= 0.5:
        return (1 - 2 * t) * high + 2 * t * low
    return (2 - 2 * t) * low + (2 * t - 1) * high


@method(
    branch="ensembling",
    paper="garipov2018loss",
    needs=("training", "trajectory"),
    returns="predictor",
    scope="output",
    equation=r"p(c\mid x)=\tfrac1m\textstyle\sum_{k=1}^{m}"
    r"\operatorname{softmax}(f_{\theta((k-1/2)c)}(x))_c,\ \alpha(\cdot)\text{ triangular}",
)
def fge(
    models: Sequence[Params],
    *,
    module: nn.Module,
    train: Callable[[Params, float], Params],
    high: float,
    low: float,
    period: int = 4,
    cycles: int = 4,
    calibration: Tensor | None = None,
) -> Predictor:
    r"""Return the ensemble of networks at the minima of a triangular rate.

    From a network that is almost trained a run goes on at the rate
    :math:`\alpha` of :func:`~sokmerge.merge.ensembling.triangular_cycle`. In the middle of each
    cycle, where the rate is low, a network is taken; the rest of the cycle leads away from it,
    along a path of low loss (Garipov et al. 2018, section 5). The cycles are far shorter than
    those of :func:`~sokmerge.merge.snapshot_ensemble`, for paths of low loss are near.

    Scope: the output. There is neither a tie rule nor a sign rule.

    Args:
        models: the parameters from which the run goes on; where there are several, each has a
            run of its own, and all go into one ensemble.
        module: their architecture, a classifier, in evaluation mode.
        train: makes one step (or epoch) from given parameters at a given rate, and returns where
            it leads.
        high: :math:`\alpha_1`, the rate at the end of each cycle.
        low: :math:`\alpha_2`, the rate in its middle.
        period: the calls of ``train`` in a cycle, an even number.
        cycles: how many networks are taken of each run. A run ends in the middle of its last
            cycle.
        calibration: as for :func:`~sokmerge.merge.probability_ensemble`.

    Raises:
        ArgumentError: no models, rates that are not ``0 < low <= high``, a period that is odd or
            below 2, no cycle, or what :func:`~sokmerge.merge.probability_ensemble` raises.

    >>> import torch
    >>> net, rates = nn.Linear(1, 2, bias=False).eval(), []
    >>> def train(point, rate):
    ...     rates.append(rate)
    ...     return {"weight": point["weight"] + rate}
    >>> start = {"weight": torch.zeros(2, 1)}
    >>> fge([start], module=net, train=train, high=0.5, low=0.25, period=2, cycles=2).passes
    2
    >>> rates
    [0.25, 0.5, 0.25]
    """
    _require_even(period)
    if not 0 < low <= high:
        raise ArgumentError("low", found=f"{low} below {high}", expected="0 < low <= high")
    if cycles < 1:
        raise ArgumentError("cycles", found=f"{cycles}", expected="at least one")
    taken = []
    for point in models:
        for step in range(1, cycles * period - period // 2 + 1):
            point = train(point, triangular_cycle(step, period=period, high=high, low=low))
            if step % period == period // 2:
                taken.append(point)
    return probability_ensemble(taken, module=module, calibration=calibration)


def _require_even(period: int) -> None:
    require_period(period)
    if period % 2:
        raise ArgumentError(
            "period", found=f"{period}", expected="an even number: the minimum is in the middle"
        )
