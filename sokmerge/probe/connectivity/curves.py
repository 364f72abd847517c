r"""Curves between two networks: Bezier curves and chains of lines, trained to stay low."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, combine, host, inner, require_finite, require_matching
from sokmerge.probe.curvature.operator import Layout
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = ["Curve", "Profile", "along", "fit_curve"]

Loss = Callable[[dict[str, Tensor], int], Tensor]
"""A differentiable function of parameters and of the number of a step, by which it can choose its
batch; it returns a scalar."""

Kind = Literal["bezier", "chain"]


@dataclass(frozen=True, eq=False)
class Curve:
    r"""A curve in parameter space, given by control points.

    .. math:: \gamma(t) = \sum_{j=0}^{k} w_j(t)\,p_j, \qquad 0\le t\le 1

    For a Bezier curve :math:`w_j(t) = \binom kj t^j(1-t)^{k-j}`, the Bernstein polynomials; for a
    polygonal chain the point walks from each :math:`p_j` straight to the next, each in the same
    time (Garipov et al. 2018, section 3). Two control points make a line either way.

    Attributes:
        points: the control points, the two ends among them.
        kind: ``"bezier"`` or ``"chain"``.

    Raises:
        ArgumentError: fewer than two points, points that do not match, or an unknown kind.

    >>> corners = [{"w": torch.tensor([x, y])} for x, y in [(0.0, 0.0), (1.0, 2.0), (2.0, 0.0)]]
    >>> Curve(corners, "bezier")(0.5)["w"], Curve(corners, "chain")(0.5)["w"]
    (tensor([1., 1.]), tensor([1., 2.]))
    """

    points: Sequence[Params]
    kind: Kind = "bezier"

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        if len(self.points) < 2:
            raise ArgumentError("points", found=f"{len(self.points)}", expected="at least two ends")
        if self.kind not in ("bezier", "chain"):
            raise ArgumentError("kind", found=repr(self.kind), expected="'bezier' or 'chain'")
        require_matching(**{f"points[{j}]": p for j, p in enumerate(self.points)})

    def __call__(self, t: float) -> dict[str, Tensor]:
        """Return the point at t; at 0 and 1 exactly the ends.

        Raises:
            ArgumentError: t is outside 0 to 1.
        """
        return combine(weights(self.kind, len(self.points), t), self.points)

    def length(self, pieces: int = 64) -> float:
        """Return the length of the curve; of a chain exactly, else of that many chords.

        This waits for the device.
        """
        count = len(self.points)
        pieces = count - 1 if self.kind == "chain" else pieces
        rows = [[inner(p, q) for q in self.points] for p in self.points]
        gram = host(torch.stack([torch.stack(row) for row in rows]))
        at = np.array([weights(self.kind, count, k / pieces) for k in range(pieces + 1)])
        steps = np.diff(at, axis=0)
        squares = np.einsum("ki,ij,kj->k", steps, gram, steps)
        return float(np.sqrt(np.maximum(squares, 0)).sum())

    def straightness(self) -> float:
        """Return the length as a multiple of the distance of the ends: 1 for a straight line.

        Lin et al. (2024) call it the normalised geodesic distance, where the curve is the
        shortest among those of low loss.
        """
        ends = Curve((self.points[0], self.points[-1]), "chain")
        return self.length() / ends.length()


@dataclass(frozen=True)
class Profile:
    r"""The risk along a curve, as :class:`~sokmerge.probe.Line` is that along a line.

    The excess is the height above the straight interpolation of the two ends, of the loss

    .. math:: \Delta L(t) = L(\gamma(t)) - \bigl[(1-t)\,L(\gamma(0)) + t\,L(\gamma(1))\bigr]

    and above their mean, of the error. Standard errors are those of paired differences.

    Attributes:
        t: positions, shape (T,), the first 0 and the last 1.
        loss, loss_stderr: mean loss and its standard error, shape (T,).
        error, error_stderr: share of wrong answers and its standard error.
        excess_loss, excess_loss_stderr: :math:`\Delta L` and its standard error.
        excess_error, excess_error_stderr: the same of the error.
        length: length of the curve.
        n: number of examples.
    """

    t: np.ndarray
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    excess_loss: np.ndarray
    excess_loss_stderr: np.ndarray
    excess_error: np.ndarray
    excess_error_stderr: np.ndarray
    length: float
    n: int

    @property
    def barrier(self) -> float:
        """The highest excess loss at the positions seen, at least 0."""
        return float(self.excess_loss.max())

    @property
    def error_barrier(self) -> float:
        """The highest excess error at the positions seen, at least 0."""
        return float(self.excess_error.max())

    @property
    def connectivity(self) -> float:
        r"""The mode connectivity of Yang et al. (2021).

        .. math:: \text{mc} = \tfrac12\bigl[L(\gamma(0)) + L(\gamma(1))\bigr] - L(\gamma(t^*))

        where :math:`t^*` is the position at which the absolute value of that difference is
        greatest. Below 0 there is a barrier; near 0 the ends are well connected; above 0 the
        curve leads to points that are better than its ends, which were not trained enough.
        """
        difference = (self.loss[0] + self.loss[-1]) / 2 - self.loss
        if np.isnan(difference).all():
            return math.nan
        return float(difference[np.abs(difference).argmax()])


def along(
    risk: EmpiricalRisk,
    curve: Curve,
    points: int = 25,
    *,
    positions: Sequence[float] | None = None,
) -> Profile:
    """Evaluate the risk along a curve.

    BatchNorm statistics are estimated anew at each point, by the risk.

    Args:
        risk: the risk to evaluate.
        curve: where to go.
        points: number of equally spaced positions, the ends among them.
        positions: ascending from 0 to 1, instead of ``points``.

    Raises:
        ArgumentError: the curve does not belong to the risk's network or is not finite, the
            positions are not as stated, or the loss overflows on the way.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> risk = EmpiricalRisk(net, torch.ones(2, 1), torch.zeros(2, 1),
    ...                      loss=lambda f, y, reduction: (f**2).mean(1))
    >>> bent = Curve([{"weight": torch.tensor([[w]])} for w in (1.0, 0.0, 1.0)], "chain")
    >>> along(risk, bent, points=3).loss  # straight through the minimum
    array([1., 0., 1.])
    """
    t = list(np.linspace(0, 1, points)) if positions is None else [float(p) for p in positions]
    if len(t) < 2 or t[0] != 0 or t[-1] != 1 or any(x >= y for x, y in zip(t, t[1:], strict=False)):
        raise ArgumentError(
            "positions" if positions is not None else "points",
            found=f"{t}",
            expected="ascending positions, the first 0 and the last 1",
        )
    risk.require_valid(**{f"points[{j}]": p for j, p in enumerate(curve.points)})
    seen = [risk.per_example(curve(position)) for position in t]
    losses, errors = (torch.stack(each) for each in zip(*seen, strict=True))
    require_finite_loss(losses, "curve")
    at = torch.tensor(t, dtype=losses.dtype).to(losses.device)[:, None]
    # Written as differences, so that it is exactly 0 at the ends.
    excess_losses = (1 - at) * (losses - losses[:1]) + at * (losses - losses[-1:])
    excess_errors = errors - (errors[:1] + errors[-1:]) / 2
    statistics = [
        host(statistic)
        for samples in (losses, errors, excess_losses, excess_errors)
        for statistic in mean_and_stderr(samples)
    ]
    return Profile(np.asarray(t), *statistics, length=curve.length(), n=risk.n)


def fit_curve(
    a: Params,
    b: Params,
    *,
    loss: Loss,
    steps: int,
    kind: Kind = "bezier",
    bends: int = 1,
    lr: float = 1e-2,
    pull: float = 0.0,
    start: Sequence[Params] | None = None,
    seed: int = 0,
) -> Curve:
    r"""Train the inner control points of a curve so that the loss is low all along it.

    .. math:: \min_{p_1,\ldots,p_k}\ \mathbb E_{t\sim U[0,1]}\,L\bigl(\gamma(t)\bigr)
              + \lambda\,\frac{(k+1)\sum_j\lVert p_{j+1}-p_j\rVert^2}{\lVert b-a\rVert^2}

    The ends stay as they are. Each step draws one t, takes the gradient at that point and hands it
    to the control points in proportion to their weights (Garipov et al. 2018, section 3.2, where
    :math:`\lambda=0`). The second term is ours: it pulls the chain straight, as a rubber band
    would, and is 1 for evenly spaced points of the line. A step costs as much as one of training.

    The loss is called with parameters alone. A network with BatchNorm has to normalise by the
    statistics of the batch there, since the running statistics belong to another point.

    Args:
        a: parameters at t = 0.
        b: parameters at t = 1.
        loss: a differentiable function of parameters and of the number of the step, a scalar.
        steps: steps of Adam.
        kind: ``"bezier"`` or ``"chain"``.
        bends: k, the number of inner control points.
        lr: the first rate; it falls to zero by a cosine.
        pull: :math:`\lambda`.
        start: the inner control points to start from; by default evenly spaced on the line.
        seed: decides the positions.

    Raises:
        ArgumentError: ends that do not match or are not finite, numbers that cannot be used, or
            points that did not stay finite.

    >>> ends = [{"w": torch.tensor([x, 0.0])} for x in (-1.0, 1.0)]
    >>> def circle(p, step):  # low on the unit circle alone
    ...     return (p["w"].square().sum() - 1).square()
    >>> bow = fit_curve(*ends, loss=circle, steps=200, lr=0.1, start=[{"w": torch.ones(2)}])
    >>> bool(bow(0.5)["w"][1] > 0.8)
    True
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    require_numbers(steps=steps, lr=lr)
    if not (isinstance(bends, int) and bends >= 1):
        raise ArgumentError("bends", found=f"{bends}", expected="a whole number, at least 1")
    if not 0 <= pull < math.inf:
        raise ArgumentError("pull", found=f"{pull}", expected="a finite number, 0 or more")
    layout, ends = ends_of(a, b)
    middle = torch.linspace(0, 1, bends + 2, dtype=ends.dtype).to(ends.device)[1:-1, None]
    free = torch.lerp(ends[:1], ends[1:], middle)
    if start is not None:
        if len(start) != bends:
            raise ArgumentError("start", found=f"{len(start)}", expected=f"{bends}, one a bend")
        require_matching(a=a, **{f"start[{j}]": p for j, p in enumerate(start)})
        free = torch.stack([layout.flatten(p) for p in start])
    apart = (ends[1] - ends[0]).square().sum()
    free = free.clone().requires_grad_()
    drawn = random.Random(f"{seed}:curve")
    optimizer = torch.optim.Adam([free], lr=lr)
    for step in range(steps):
        t = drawn.random()
        set_rate(optimizer, lr, step, steps)
        with torch.enable_grad():
            every = torch.cat([ends[:1], free, ends[1:]])
            shares = torch.tensor(weights(kind, bends + 2, t), dtype=every.dtype)
            value = loss(layout.unflatten(shares.to(every.device) @ every), step)
            if pull:
                value = value + pull * (bends + 1) * every.diff(dim=0).square().sum() / apart
            (free.grad,) = torch.autograd.grad(value, [free])
        optimizer.step()
    inner_points = [{**a, **layout.unflatten(p)} for p in free.detach()]
    require_finite(**{f"bend{j}": p for j, p in enumerate(inner_points)})
    return Curve((a, *inner_points, b), kind)


def weights(kind: Kind, count: int, t: float) -> list[float]:
    """Return what each of the control points contributes to the point at t."""
    if not 0 <= t <= 1:
        raise ArgumentError("t", found=f"{t}", expected="a position from 0 to 1")
    k = count - 1
    if kind == "bezier":
        return [math.comb(k, j) * t**j * (1 - t) ** (k - j) for j in range(count)]
    at = min(int(t * k), k - 1)
    shares = [0.0] * count
    shares[at], shares[at + 1] = 1 - (t * k - at), t * k - at
    return shares


def ends_of(a: Params, b: Params) -> tuple[Layout, Tensor]:
    """Return a layout of the floating entries, and both ends as the rows of a matrix."""
    layout = Layout(
        {name: tensor.shape for name, tensor in a.items() if tensor.is_floating_point()}
    )
    return layout, torch.stack([layout.flatten(a), layout.flatten(b)])


def require_numbers(*, steps: int, lr: float) -> None:
    """Raise unless a number of steps and a rate can be used."""
    if not (isinstance(steps, int) and steps >= 0):
        raise ArgumentError("steps", found=f"{steps}", expected="a whole number, at least 0")
    if not 0 < lr < math.inf:
        raise ArgumentError("lr", found=f"{lr}", expected="a positive, finite number")


def set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Set the rate of a step, which falls from ``lr`` to zero by a cosine."""
    for group in optimizer.param_groups:
        group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
