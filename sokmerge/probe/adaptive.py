r"""The barrier on a line, with no more evaluations than its tolerance asks for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.fft import dct
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, lerp
from sokmerge.probe.line import Barrier, excess_of_losses, read_off
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr

__all__ = ["AdaptiveBarrier", "adaptive_barrier"]

# Intervals of equal angle on which a polynomial is searched for its maximum. One of degree m has
# its maximum within (m pi / 2 N)^2 / 2 of what it is on the grid, relative to its largest size:
# below 1e-4 for the highest degree here.
_GRID = 4096
_DEGREES = (2, 4, 8, 16, 32)
_NODES = [float((1 - np.cos(np.pi * j / _DEGREES[-1])) / 2) for j in range(_DEGREES[-1] + 1)]
_FEWEST = _DEGREES[2] + 1  # three degrees show two differences, and so a rate


@dataclass(frozen=True)
class AdaptiveBarrier(Barrier):
    r"""The highest excess on a line, found with as few evaluations as its tolerance allows.

    ``loss`` and ``loss_alpha`` are those of the polynomial through the nodes, and ``loss_stderr``
    is the standard error of its value there, over the examples. ``error`` and ``error_alpha`` are
    the highest of the nodes and nothing else: the error is constant piece by piece, so a
    polynomial says nothing of it. ``line`` holds the nodes.

    Attributes:
        loss_uncertainty: estimate of how far ``loss`` is from the maximum over the whole line, in
            the unit of the loss; the uncertainty from finite data comes on top.
        converged: whether that is at most the tolerance.
    """

    loss_uncertainty: float
    converged: bool

    @property
    def evaluations(self) -> int:
        """How often the risk was evaluated."""
        return len(self.line.alphas)


def adaptive_barrier(
    risk: EmpiricalRisk,
    a: Params,
    b: Params,
    *,
    tol: float = 0.02,
    most: int = 33,
    together: int | None = None,
) -> AdaptiveBarrier:
    r"""Return the barrier between a and b to a tolerance, with 9, 17 or 33 evaluations.

    The excess of the loss :math:`\Delta L` (see :class:`Line`) is evaluated at the
    Chebyshev-Lobatto nodes :math:`\alpha_j=\tfrac12\bigl(1-\cos(\pi j/m)\bigr)` for
    :math:`m=2,4,8,16,32`. Each set holds the one before, so no evaluation is lost. :math:`p_m` is
    the polynomial through :math:`m+1` nodes. Its maximum stands for that of :math:`\Delta L`. Let
    :math:`\alpha=\tfrac12(1-\cos\vartheta)`. The difference to the polynomial before is

    .. math::

       \delta_m(\vartheta) = \max_{|\vartheta'-\vartheta|\le\pi/m}
       \bigl|p_m(\vartheta')-p_{m/2}(\vartheta')\bigr|,

    read in a window, because two polynomials agree at their common nodes whatever lies between.
    The sum of all later differences, if they go on to shrink at the rate of the last two, is
    estimated as

    .. math::

       \varepsilon_m = \frac{q}{1-q}\,\delta_m, \qquad
       q = \min\bigl(\tfrac12,\; \max\delta_m/\max\delta_{m/2}\bigr),

    and the uncertainty of the maximum is the larger of

    .. math::

       \max\bigl(p_m+\varepsilon_m\bigr)-\max p_m
       \quad\text{and}\quad
       \max p_m-\max\bigl\{\max(p_m-\delta_m),\; \max_j\Delta L(\alpha_j)\bigr\}.

    Downwards the difference counts in full, for near a kink a polynomial is rather too high.
    So a steep flank costs no evaluation if it lies too low to matter. Nodes are added until the
    uncertainty is at most ``tol``.

    What can be relied on: :math:`\max_j\Delta L(\alpha_j)` is a lower bound. The rest is an
    estimate. No finite number of values bounds what a function does between them: a network
    with ReLU has kinks along the line, and a spike between all nodes is not seen. Read the
    uncertainty as what it is, the judgement of a fit by its own history. Averages over many
    examples are smooth enough for it in practice; a mean over a few is not. The barrier of the
    error is the highest of the nodes, without an estimate of what lies between.

    Args:
        risk: the risk to evaluate; any module, any loss.
        a: parameters at alpha = 0.
        b: parameters at alpha = 1.
        tol: largest uncertainty of the maximum, in the unit of the loss.
        most: evaluations at most; 9, 17 and 33 make a difference.
        together: positions in one forward pass; by default what is faster on the device (see
            :meth:`EmpiricalRisk.per_example_at`).

    Returns:
        the barrier; ``converged`` says whether the tolerance is met.

    Raises:
        ArgumentError: as for :func:`line`; or ``tol`` is not positive, or ``most`` below 9.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: torch.cos(f).mean(1))
    >>> ends = [{"weight": torch.full((1, 1), w)} for w in (-1.0, 1.2)]
    >>> found = adaptive_barrier(risk, *ends)
    >>> found.evaluations, round(found.loss, 3), round(found.loss_alpha, 2)
    (9, 1.054, 0.48)
    >>> found.converged, found.loss_uncertainty < 0.01
    (True, True)
    """
    if not tol > 0:
        raise ArgumentError("tol", found=f"{tol}", expected="a positive number")
    if most < _FEWEST:
        raise ArgumentError("most", found=f"{most}", expected=f"at least {_FEWEST} evaluations")
    risk.require_valid(a=a, b=b)

    evaluated: dict[int, tuple[Tensor, Tensor]] = {}
    fit, change = np.zeros(_GRID + 1), 0.0
    for degree in (degree for degree in _DEGREES if degree < most):
        nodes = range(0, _DEGREES[-1] + 1, _DEGREES[-1] // degree)
        new = [node for node in nodes if node not in evaluated]
        samples = risk.per_example_at((lerp(a, b, _NODES[node]) for node in new), together)
        evaluated.update(zip(new, zip(*samples, strict=True), strict=True))
        positions = [_NODES[node] for node in nodes]
        losses, errors = (torch.stack([evaluated[k][part] for k in nodes]) for part in (0, 1))
        found = read_off(positions, losses, errors)

        coarser, fit = fit, _interpolation(degree) @ found.excess_loss
        before, change = change, np.abs(fit - coarser).max()
        rate = change / before if 2 * change < before else 0.5
        band = _nearby(np.abs(fit - coarser), degree)
        highest = (fit + rate / (1 - rate) * band).max()
        lowest = max((fit - band).max(), found.excess_loss.max())
        uncertainty = float(max(highest - fit.max(), fit.max() - lowest))
        if degree >= _FEWEST - 1 and uncertainty <= tol:
            break

    best, worst_error = int(fit.argmax()), int(found.excess_error.argmax())
    weights = torch.from_numpy(_interpolation(degree)[best]).to(losses.device, losses.dtype)
    stderr = mean_and_stderr(weights @ excess_of_losses(positions, losses))[1]
    return AdaptiveBarrier(
        loss=float(fit[best]),
        loss_stderr=float(host(stderr)),
        loss_alpha=float((1 - np.cos(np.pi * best / _GRID)) / 2),
        error=float(found.excess_error[worst_error]),
        error_stderr=float(found.excess_error_stderr[worst_error]),
        error_alpha=float(found.alphas[worst_error]),
        line=found,
        loss_uncertainty=uncertainty,
        converged=uncertainty <= tol,
    )


@functools.cache
def _interpolation(degree: int) -> np.ndarray:
    """Return the matrix from values at the nodes to the polynomial on the grid of equal angles."""
    coefficients = dct(np.eye(degree + 1), type=1, axis=0) / degree
    coefficients[[0, -1]] /= 2
    matrix = chebyshev.chebvander(np.cos(np.pi * np.arange(_GRID + 1) / _GRID), degree)
    matrix = matrix @ coefficients
    # At a node the polynomial has the node's value to the last digit.
    matrix[:: _GRID // degree] = np.eye(degree + 1)
    return matrix


def _nearby(values: np.ndarray, degree: int) -> np.ndarray:
    """Return the largest value within one distance of nodes, on the grid of equal angles."""
    return maximum_filter1d(values, 2 * (_GRID // degree) + 1)
