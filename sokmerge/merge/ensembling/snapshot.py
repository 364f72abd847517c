r"""Snapshots: the networks at the ends of the cycles of one run."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.ensembling.deep_ensemble import probability_ensemble
from sokmerge.merge.ensembling.predictor import Predictor
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["cosine_cycle", "every", "require_period", "snapshot_ensemble"]


def cosine_cycle(step: int, *, period: int, high: float) -> float:
    r"""Return the learning rate of a step, falling by a cosine in each cycle anew.

    .. math:: \alpha(t) = \frac{\alpha_0}{2}\Bigl(\cos\frac{\pi\,(t\bmod c)}{c}+1\Bigr),
              \qquad t = 0, 1, 2, \ldots

    (Huang et al. 2017; there steps are counted from 1.)

    Args:
        step: t, from 0.
        period: c, the steps of a cycle.
        high: :math:`\alpha_0`, the rate at the beginning of each cycle.

    Raises:
        ArgumentError: a step below 0 or a period below 1.

    >>> [round(cosine_cycle(t, period=2, high=1.0), 3) for t in range(4)]
    [1.0, 0.5, 1.0, 0.5]
    """
    require_period(period)
    if step < 0:
        raise ArgumentError("step", found=f"{step}", expected="0 or more")
    return high / 2 * (math.cos(math.pi * (step % period) / period) + 1)


@method(
    branch="ensembling",
    paper="huang2017snapshot",
    needs=("trajectory",),
    returns="predictor",
    scope="output",
    equation=r"p(c\mid x)=\tfrac1m\textstyle\sum_{i=M-m+1}^{M}"
    r"\operatorname{softmax}(f_{\theta_{ic}}(x))_c",
)
def snapshot_ensemble(
    points: Iterable[Params],
    *,
    module: nn.Module,
    period: int = 1,
    last: int | None = None,
    calibration: Tensor | None = None,
) -> Predictor:
    r"""Return the ensemble of the networks that one run passes at the ends of its cycles.

    .. math:: p(c\mid x) = \frac1m\sum_{i=M-m+1}^{M}
              \operatorname{softmax}\bigl(f_{\theta(i\,c)}(x)\bigr)_c

    A run at a cyclic rate (:func:`~sokmerge.merge.ensembling.cosine_cycle`) settles M times, and
    is shaken up in between. The last m of the networks in which it settles make an ensemble for
    the training cost of one network (Huang et al. 2017). Whether they differ enough is
    a question about the rate: it must leave the basin.

    Scope: the output. There is neither a tie rule nor a sign rule.

    Args:
        points: parameters after each step (or epoch) of the run, in order; all but the ends of
            cycles are dropped at once, so that they may come from a generator.
        module: their architecture, a classifier, in evaluation mode.
        period: the points of a cycle; 1 if the points are the snapshots.
        last: m, the snapshots that are kept; by default all of them.
        calibration: as for :func:`~sokmerge.merge.probability_ensemble`.

    Raises:
        ArgumentError: no whole cycle among the points, a period or number below 1, or what
            :func:`~sokmerge.merge.probability_ensemble` raises.

    >>> import torch
    >>> net = nn.Linear(1, 2, bias=False).eval()
    >>> run = ({"weight": torch.full((2, 1), float(t))} for t in range(1, 7))
    >>> snapshot_ensemble(run, module=net, period=2, last=2).passes
    2
    """
    if last is not None and last < 1:
        raise ArgumentError("last", found=f"{last}", expected="at least one snapshot")
    kept = deque(every(points, period, period), maxlen=last)
    return probability_ensemble(list(kept), module=module, calibration=calibration)


def every(points: Iterable[Params], period: int, place: int) -> Iterator[Params]:
    """Return of each whole or begun cycle the point at one place, counted from 1.

    >>> list(every("abcdefg", period=3, place=2))
    ['b', 'e']
    """
    require_period(period)
    return itertools.islice(points, place - 1, None, period)


def require_period(period: int) -> None:
    """Raise unless a period is at least one step.

    >>> require_period(0)
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: period: found 0; expected at least one step.
    """
    if period < 1:
        raise ArgumentError("period", found=f"{period}", expected="at least one step")
