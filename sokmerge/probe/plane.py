r"""The risk on a plane in parameter space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, combine, host
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = ["Plane", "plane"]


@dataclass(frozen=True)
class Plane:
    r"""The risk on the grid :math:`\theta_0+\alpha_i u+\beta_j v`.

    Attributes:
        alphas: positions along u, shape (A,).
        betas: positions along v, shape (B,).
        loss, loss_stderr: mean loss at (alphas[i], betas[j]) and its standard error, shape (A, B).
        error, error_stderr: share of wrong answers and its standard error, shape (A, B).
        origin, u, v: the plane itself, so that it can be visited again.
        n: number of examples.
    """

    alphas: np.ndarray
    betas: np.ndarray
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    origin: Params
    u: Params
    v: Params
    n: int


def plane(
    risk: EmpiricalRisk,
    origin: Params,
    u: Params,
    v: Params,
    *,
    alphas: Sequence[float] | None = None,
    betas: Sequence[float] | None = None,
    together: int | None = None,
) -> Plane:
    """Evaluate the risk on a grid of a plane.

    Args:
        risk: the risk to evaluate.
        origin: the point at (0, 0).
        u: the first direction, for instance from :func:`filter_normalised` or :func:`through`.
        v: the second direction.
        alphas: positions along u; by default 25 from -1 to 1.
        betas: positions along v; by default as ``alphas``.
        together: points of a row in one forward pass; by default what is faster on the device
            (see :meth:`EmpiricalRisk.per_example_at`).

    Raises:
        ArgumentError: origin, u or v does not belong to the risk's network or is not finite,
            there is no position, or the loss overflows somewhere on the grid.

    >>> from torch import nn
    >>> net = nn.Linear(2, 1, bias=False).eval()
    >>> risk = EmpiricalRisk(
    ...     net, torch.eye(2), torch.zeros(2, 1), loss=lambda f, y, reduction: (f**2).sum(1)
    ... )
    >>> zero, u, v = ({"weight": torch.tensor([w])} for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    >>> plane(risk, zero, u, v, alphas=[0, 1], betas=[0, 2]).loss  # (alpha^2 + beta^2) / 2
    array([[0. , 2. ],
           [0.5, 2.5]])
    """
    alphas = np.linspace(-1, 1, 25) if alphas is None else np.asarray(alphas, dtype=float)
    betas = alphas if betas is None else np.asarray(betas, dtype=float)
    for name, positions in (("alphas", alphas), ("betas", betas)):
        if positions.ndim != 1 or positions.size == 0 or not np.isfinite(positions).all():
            raise ArgumentError(
                name, found=f"{positions!r}", expected="a list of finite numbers, at least one"
            )
    risk.require_valid(origin=origin, u=u, v=v)

    rows = []
    for alpha in alphas:
        # Only means and standard errors are kept: the examples of a whole grid would not fit.
        row = (combine([1, alpha, beta], [origin, u, v]) for beta in betas)
        samples = risk.per_example_at(row, together)
        rows.append([statistic for each in samples for statistic in mean_and_stderr(each)])
    loss, loss_stderr, error, error_stderr = (
        torch.stack(column) for column in zip(*rows, strict=True)
    )
    require_finite_loss(loss, "the grid around origin")
    return Plane(
        alphas, betas, host(loss), host(loss_stderr), host(error), host(error_stderr),
        origin, u, v, risk.n,
    )  # fmt: skip
