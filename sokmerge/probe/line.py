r"""The line between two networks, and the barrier on it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, lerp
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = ["Line", "Barrier", "line", "barrier"]


@dataclass(frozen=True)
class Line:
    r"""The risk along :math:`\theta_\alpha=(1-\alpha)\,\theta_A+\alpha\,\theta_B`.

    All arrays have the shape of ``alphas``. The excess is what the line lies above its ends:

    .. math::

       \Delta L(\alpha) &= L(\theta_\alpha) - \bigl[(1-\alpha)L(\theta_A)+\alpha L(\theta_B)\bigr]\\
       \Delta E(\alpha) &= E(\theta_\alpha) - \tfrac12\bigl[E(\theta_A)+E(\theta_B)\bigr]

    for the loss (Entezari et al. 2021) and for the error (Frankle et al. 2020, who call its
    maximum the linear interpolation instability). Its standard error is that of the paired
    differences on the same examples, which is much smaller than the one that separate standard
    errors would give.

    Attributes:
        alphas: positions; the first is 0 and the last is 1.
        loss, loss_stderr: mean loss and its standard error.
        error, error_stderr: share of wrong answers and its standard error.
        excess_loss, excess_loss_stderr: :math:`\Delta L` and its standard error.
        excess_error, excess_error_stderr: :math:`\Delta E` and its standard error.
        n: number of examples.
    """

    alphas: np.ndarray
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    excess_loss: np.ndarray
    excess_loss_stderr: np.ndarray
    excess_error: np.ndarray
    excess_error_stderr: np.ndarray
    n: int


@dataclass(frozen=True)
class Barrier:
    r"""The highest excess on a line, for the loss and for the error.

    Both are at least 0 by construction, since the ends themselves are on the line: there the
    excess of the loss is 0, and that of the error is half the difference of the two errors, once
    with each sign. A standard error is that of the excess at the maximum; it does not include the
    choice of the maximum.

    Attributes:
        loss: :math:`\max_\alpha \Delta L(\alpha)`, in the unit of the loss.
        loss_stderr: its standard error.
        loss_alpha: where it is reached.
        error: :math:`\max_\alpha \Delta E(\alpha)`, a share of the examples.
        error_stderr: its standard error.
        error_alpha: where it is reached.
        line: the line itself.
    """

    loss: float
    loss_stderr: float
    loss_alpha: float
    error: float
    error_stderr: float
    error_alpha: float
    line: Line


def line(
    risk: EmpiricalRisk,
    a: Params,
    b: Params,
    points: int = 25,
    *,
    alphas: Sequence[float] | None = None,
    together: int | None = None,
) -> Line:
    """Evaluate the risk along the straight line from a to b.

    Args:
        risk: the risk to evaluate.
        a: parameters at alpha = 0.
        b: parameters at alpha = 1.
        points: number of equally spaced positions, the ends among them.
        alphas: positions in increasing order from 0 to 1, instead of ``points``.
        together: positions in one forward pass; by default what is faster on the device (see
            :meth:`EmpiricalRisk.per_example_at`).

    Raises:
        ArgumentError: a or b does not belong to the risk's network or is not finite, the
            positions are not as stated, or the loss overflows on the way.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = EmpiricalRisk(net, x, 2 * x, loss=lambda f, y, reduction: ((f - y) ** 2).mean(1))
    >>> zero, two = {"weight": torch.zeros(1, 1)}, {"weight": torch.full((1, 1), 2.0)}
    >>> line(risk, zero, two, points=3).loss  # a parabola with its minimum at two
    array([10. ,  2.5,  0. ])
    """
    positions = _positions(points, alphas)
    risk.require_valid(a=a, b=b)
    between = (lerp(a, b, alpha) for alpha in positions)
    return read_off(positions, *risk.per_example_at(between, together))


def barrier(
    risk: EmpiricalRisk,
    a: Params,
    b: Params,
    points: int = 25,
    *,
    alphas: Sequence[float] | None = None,
    together: int | None = None,
) -> Barrier:
    """Return the barrier between a and b: the highest excess on the line between them.

    The arguments and errors are those of :func:`line`.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: torch.cos(f).mean(1))
    >>> ends = [{"weight": torch.full((1, 1), w)} for w in (-1.0, 1.0)]
    >>> found = barrier(risk, *ends, points=5)
    >>> found.loss_alpha, round(found.loss, 4)  # 1 - (cos 1 + cos 2) / 2
    (0.5, 0.9379)
    """
    found = line(risk, a, b, points, alphas=alphas, together=together)
    worst_loss, worst_error = int(found.excess_loss.argmax()), int(found.excess_error.argmax())
    return Barrier(
        loss=float(found.excess_loss[worst_loss]),
        loss_stderr=float(found.excess_loss_stderr[worst_loss]),
        loss_alpha=float(found.alphas[worst_loss]),
        error=float(found.excess_error[worst_error]),
        error_stderr=float(found.excess_error_stderr[worst_error]),
        error_alpha=float(found.alphas[worst_error]),
        line=found,
    )


def read_off(positions: Sequence[float], losses: Tensor, errors: Tensor) -> Line:
    """Return the line that per-example losses and errors at its positions make.

    Both have the shape (positions, n). This waits for the device.
    """
    require_finite_loss(losses, "the line from a to b")
    statistics = [
        host(statistic)
        for samples in (
            losses,
            errors,
            excess_of_losses(positions, losses),
            errors - (errors[:1] + errors[-1:]) / 2,
        )
        for statistic in mean_and_stderr(samples)
    ]
    return Line(np.asarray(positions), *statistics, n=losses.shape[1])


def excess_of_losses(positions: Sequence[float], losses: Tensor) -> Tensor:
    """Return what each example's loss lies above the chord, shape (positions, n)."""
    alpha = torch.tensor(positions, dtype=losses.dtype).to(losses.device)[:, None]
    # Written as differences, so that it is exactly 0 at the ends and between equal losses.
    return (1 - alpha) * (losses - losses[:1]) + alpha * (losses - losses[-1:])


def _positions(points: int, alphas: Sequence[float] | None) -> list[float]:
    if alphas is None:
        if points < 2:
            raise ArgumentError("points", found=f"{points}", expected="at least the two ends")
        return [float(alpha) for alpha in np.linspace(0, 1, points)]
    positions = [float(alpha) for alpha in alphas]
    increasing = all(x < y for x, y in itertools.pairwise(positions))
    if len(positions) < 2 or not increasing or positions[0] != 0 or positions[-1] != 1:
        raise ArgumentError(
            "alphas",
            found=f"{positions}",
            expected="increasing positions, the first 0 and the last 1",
            do="A barrier is measured against the two ends, so they must be on the line.",
        )
    return positions
