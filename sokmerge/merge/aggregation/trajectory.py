r"""Averages along one run: an online mean of points that come one after the other.

All three are running means, :math:`m_n = m_{n-1} + r_n(\theta_n - m_{n-1})`, and differ in their
rates :math:`r_n`. The sum is kept in wide precision and rounded once, at the end. Only the mean
is held, so that the points may come from a generator, one at a time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, entrywise, require_finite, require_matching, wide

__all__ = ["ema", "lawa", "swa"]


@method(
    branch="weight aggregation",
    paper="izmailov2018averaging",
    needs=("trajectory",),
    scope="entry",
    equation=r"\bar\theta_n=\bar\theta_{n-1}+\tfrac1n(\theta_n-\bar\theta_{n-1})",
)
def swa(points: Iterable[Params], *, mean: Params | None = None, count: int = 0) -> Params:
    r"""Return the average of the points of one run, as they come: stochastic weight averaging.

    .. math:: \bar\theta_n = \bar\theta_{n-1} + \frac1n\,(\theta_n - \bar\theta_{n-1})

    The points are those that a run passes at a constant rate, or at the end of each cycle of a
    cyclic one (Izmailov et al. 2018, algorithm 1). Of points that are all at hand it is the
    :func:`~sokmerge.merge.average`; here they need not be. With ``mean`` and ``count`` an average
    that was begun is gone on with.

    Args:
        points: parameters along the run. Entries that are not floating point are taken from the
            first point, or from ``mean``.
        mean: the average of ``count`` earlier points.
        count: how many points that average holds.

    Raises:
        ArgumentError: no points and no mean, points that do not match or are not finite, or a
            mean without its count.

    >>> import torch
    >>> points = [{"w": torch.tensor([w])} for w in (1.0, 2.0, 6.0)]
    >>> swa(iter(points))["w"], swa(points[2:], mean=swa(points[:2]), count=2)["w"]
    (tensor([3.]), tensor([3.]))
    """
    if (mean is None) != (count == 0) or count < 0:
        raise ArgumentError(
            "count",
            found=f"{count} with {'no mean' if mean is None else 'a mean'}",
            expected="the number of points in the mean, and 0 without one",
        )
    begun = [] if mean is None else [mean]
    skipped = max(count - 1, 0)  # the mean itself comes as the first point
    return _running(itertools.chain(begun, points), lambda n: 1 / (n + skipped))


@method(
    branch="weight aggregation",
    paper="tarvainen2017mean",
    needs=("trajectory",),
    scope="entry",
    equation=r"m_n=\beta\,m_{n-1}+(1-\beta)\,\theta_n",
)
def ema(points: Iterable[Params], *, decay: float = 0.9, debias: bool = False) -> Params:
    r"""Return the exponential moving average of the points of one run.

    .. math:: m_n = \beta\,m_{n-1} + (1-\beta)\,\theta_n, \qquad m_1 = \theta_1, \qquad
              m_n = \beta^{n-1}\theta_1 + (1-\beta)\sum_{t=2}^{n}\beta^{\,n-t}\,\theta_t

    Old points are forgotten at the rate :math:`\beta`: the mean reaches back about
    :math:`1/(1-\beta)` points. Tarvainen and Valpola (2017) call it the mean teacher. The first
    point counts more than its age would have it; with ``debias`` the weights are
    :math:`\beta^{\,n-t}` throughout, over their sum.

    Args:
        points: parameters along the run. Entries that are not floating point are taken from the
            first.
        decay: :math:`\beta`, from 0, the last point, to below 1.
        debias: whether the first point counts by its age alone.

    Raises:
        ArgumentError: no points, points that do not match or are not finite, or another decay.

    >>> import torch
    >>> points = [{"w": torch.tensor([w])} for w in (0.0, 0.0, 1.0)]
    >>> ema(points, decay=0.5)["w"], ema(points, decay=0.5, debias=True)["w"]
    (tensor([0.5000]), tensor([0.5714]))
    """
    if not 0 <= decay < 1:
        raise ArgumentError("decay", found=f"{decay}", expected="a number from 0 to below 1")
    if debias:
        return _running(points, lambda n: (1 - decay) / (1 - decay**n))
    return _running(points, lambda n: 1 - decay if n > 1 else 1.0)


@method(
    branch="weight aggregation",
    paper="kaddour2022stop",
    needs=("trajectory",),
    scope="entry",
    equation=r"\theta=\tfrac1k\textstyle\sum_{t=n-k+1}^{n}\theta_t",
)
def lawa(points: Iterable[Params], *, window: int = 5) -> Params:
    r"""Return the average of the latest points of one run: latest weight averaging.

    .. math:: \theta = \frac1k\sum_{t=n-k+1}^{n}\theta_t

    Kaddour (2022) averages the networks at the ends of the last k epochs, at every epoch anew, and
    goes on training from the network itself, not from the average. While the run still descends,
    an average of all points would hold it back; this one forgets.

    Args:
        points: parameters along the run, of which the last k are held. Entries that are not
            floating point are taken from the earliest of them.
        window: k, at least 1. Of fewer points than that, all are averaged.

    Raises:
        ArgumentError: no points, points that do not match or are not finite, or a window below 1.

    >>> import torch
    >>> points = [{"w": torch.tensor([w])} for w in (9.0, 2.0, 3.0)]
    >>> lawa(points, window=2)["w"]
    tensor([2.5000])
    """
    if window < 1:
        raise ArgumentError("window", found=f"{window}", expected="at least 1")
    latest = deque(points, maxlen=window)
    _require_some(latest)
    return average(list(latest))


def _running(points: Iterable[Params], rate: Callable[[int], float]) -> dict[str, Tensor]:
    """Return the running mean of points, the n-th of which moves it by a rate(n)."""
    first: Params | None = None
    mean: dict[str, Tensor] = {}
    for n, point in enumerate(points, 1):
        name = f"points[{n - 1}]"
        if first is None:
            first, mean = point, entrywise(wide, point)
        require_matching(**{"points[0]": first, name: point})
        require_finite(**{name: point})
        if n > 1:
            step = rate(n)
            mean = entrywise(lambda m, t, r=step: m + r * (wide(t) - m), mean, point)
    _require_some(mean)
    return entrywise(lambda m, t: m.to(t.dtype), mean, first)


def _require_some(points: object) -> None:
    if not points:
        raise ArgumentError("points", found="no points", expected="at least one")
