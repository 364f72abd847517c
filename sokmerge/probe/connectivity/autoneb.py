r"""A band of networks that is pushed down sideways until it lies in a valley: AutoNEB."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, require_finite, require_matching
from sokmerge.probe.connectivity.curves import Curve, Loss, ends_of, require_numbers, set_rate
from sokmerge.probe.curvature.operator import Layout

__all__ = ["Band", "autoneb", "nudge"]


@dataclass(frozen=True, eq=False)
class Band:
    """A path found by :func:`autoneb`.

    Attributes:
        curve: the path, a polygonal chain through its pivots.
        pivots: how many pivots the band had in each cycle, the ends among them.
        gradients: how many gradients were taken in all.
    """

    curve: Curve
    pivots: tuple[int, ...]
    gradients: int


def autoneb(
    a: Params,
    b: Params,
    *,
    loss: Loss,
    measure: Callable[[Params], float],
    cycles: int = 3,
    steps: int = 20,
    lr: float = 1e-2,
    pivots: int = 1,
    looks: int = 3,
    threshold: float = 0.2,
    most: int = 9,
) -> Band:
    r"""Find a low path between two networks by a nudged elastic band that grows where needed.

    The band begins as the straight line. A cycle lets it sink (:func:`nudge`) and then looks at
    ``looks`` points within each of its segments. Where the loss there lies more than ``threshold``
    of the band's whole range of losses above the straight interpolation of the segment's pivots,
    the highest such point becomes a pivot (AutoNEB, Draxler et al. 2018). Cycles in which a band
    has few pivots are cheap.

    Args:
        a: parameters at one end.
        b: parameters at the other end.
        loss: a differentiable function of parameters and of the number of the step, a scalar.
        measure: the loss by which pivots are added, such as ``lambda p: risk(p).loss``.
        cycles: how often the band sinks.
        steps: steps in a cycle; each costs one gradient for each inner pivot.
        lr: the first rate of each cycle; it falls to zero by a cosine.
        pivots: inner pivots of the first cycle.
        looks: points at which a segment is looked at.
        threshold: which share of the range of losses is too high.
        most: no more inner pivots than that.

    Raises:
        ArgumentError: ends that do not match or are not finite, numbers that cannot be used, or
            pivots that did not stay finite.

    >>> def ring(p, step=0):
    ...     return (p["w"].square().sum() - 1).square() + 0.1 * p["w"][1].sub(1).square()
    >>> ends = [{"w": torch.tensor([x, 0.0])} for x in (-1.0, 1.0)]
    >>> how = {"loss": ring, "measure": lambda p: float(ring(p)), "cycles": 2, "most": 3}
    >>> found = autoneb(*ends, **how, steps=40, lr=0.1)
    >>> found.pivots, bool(found.curve(0.5)["w"][1] > 0.8)
    ((3, 5), True)
    """
    require_matching(a=a, b=b)
    require_finite(a=a, b=b)
    for name, value in {"cycles": cycles, "pivots": pivots, "looks": looks}.items():
        if not (isinstance(value, int) and value >= 1):
            raise ArgumentError(name, found=f"{value}", expected="a whole number, at least 1")
    if not (isinstance(most, int) and most >= pivots):
        raise ArgumentError("most", found=f"{most}", expected=f"at least the {pivots} at the start")
    if not 0 <= threshold < math.inf:
        raise ArgumentError("threshold", found=f"{threshold}", expected="a share, 0 or more")
    layout, ends = ends_of(a, b)
    share = torch.linspace(0, 1, pivots + 2, dtype=ends.dtype).to(ends.device)[:, None]
    band = torch.lerp(ends[:1], ends[1:], share)
    had, gradients = [], 0
    for cycle in range(cycles):
        if cycle:
            band = _grown(
                band, lambda row: measure(_params(row, layout, a)), looks, threshold, most
            )
        had.append(len(band))
        gradients += steps * (len(band) - 2)
        began = cycle * steps
        band = nudge(band, lambda p, s, k=began: loss(p, k + s), layout, steps=steps, lr=lr)
    points = [a, *(_params(row, layout, a) for row in band[1:-1]), b]
    require_finite(**{f"pivot{j}": p for j, p in enumerate(points)})
    return Band(Curve(points, "chain"), tuple(had), gradients)


def nudge(band: Tensor, loss: Loss, layout: Layout, *, steps: int, lr: float) -> Tensor:
    r"""Let a band sink, its pivots kept apart.

    Each inner pivot moves along the part of the negative gradient that is perpendicular to the
    band,

    .. math:: F_i = -\bigl(\nabla L(p_i) - \langle\nabla L(p_i),\tau_i\rangle\,\tau_i\bigr),

    so that it does not slide down along the band. The tangent :math:`\tau_i` is the unit vector
    between :math:`p_i` and that of its two neighbours whose loss is higher. The springs between
    the pivots are infinitely stiff: after each step the pivots are set anew at equal distances
    along the band (Draxler et al. 2018). Steps are Adam's, taken with these forces.

    Args:
        band: the pivots as rows, shape (P, entries), the ends first and last; they do not move.
        loss: a differentiable function of parameters and of the number of the step. All pivots
            of a step are given the same number, and so can be compared.
        layout: how a row is read as parameters.
        steps: how many steps.
        lr: the first rate; it falls to zero by a cosine.

    Returns:
        The pivots, shape (P, entries).
    """
    require_numbers(steps=steps, lr=lr)
    band = band.detach().clone()
    inner = band[1:-1].clone().requires_grad_()
    optimizer = torch.optim.Adam([inner], lr=lr)
    for step in range(steps):
        set_rate(optimizer, lr, step, steps)
        found = [_slope(row, loss, layout, step) for row in band[1:-1]]
        with torch.no_grad():
            ends = [loss(layout.unflatten(row), step) for row in (band[0], band[-1])]
        heights = torch.stack([ends[0], *(height for height, _ in found), ends[1]])
        forces = []
        for i in range(1, len(band) - 1):
            up = band[i + 1] - band[i], band[i] - band[i - 1]
            tangent = torch.where(heights[i + 1] > heights[i - 1], *up)
            tangent = tangent / tangent.norm()
            slope = found[i - 1][1]
            forces.append(slope - (slope @ tangent) * tangent)
        inner.grad = torch.stack(forces)
        optimizer.step()
        band = even(torch.cat([band[:1], inner.detach(), band[-1:]]))
        with torch.no_grad():
            inner.copy_(band[1:-1])
    return band


def even(band: Tensor) -> Tensor:
    """Return pivots at equal distances along the chain through the rows of a matrix.

    >>> even(torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]))
    tensor([[0., 0.],
            [2., 0.],
            [4., 0.]])
    """
    lengths = band.diff(dim=0).norm(dim=1)
    so_far = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    wanted = torch.linspace(0, 1, len(band), dtype=band.dtype).to(band.device)[1:-1] * so_far[-1]
    segment = torch.searchsorted(so_far[1:-1].contiguous(), wanted)
    share = (wanted - so_far[segment]) / lengths[segment]
    between = torch.lerp(band[segment], band[segment + 1], share[:, None])
    return torch.cat([band[:1], between, band[-1:]])


def _slope(row: Tensor, loss: Loss, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
    """Return the loss at a pivot and its gradient."""
    with torch.enable_grad():
        row = row.detach().requires_grad_()
        value = loss(layout.unflatten(row), step)
        (slope,) = torch.autograd.grad(value, [row])
    return value.detach(), slope


def _grown(
    band: Tensor,
    measure: Callable[[Tensor], float],
    looks: int,
    threshold: float,
    most: int,
) -> Tensor:
    """Return the band with new pivots where a segment is too high between its own."""
    at_pivots = [measure(row) for row in band]
    shares = [(k + 1) / (looks + 1) for k in range(looks)]
    found = []
    seen = list(at_pivots)
    for i in range(len(band) - 1):
        for share in shares:
            row = torch.lerp(band[i], band[i + 1], share)
            height = measure(row)
            seen.append(height)
            found.append((height - (1 - share) * at_pivots[i] - share * at_pivots[i + 1], i, row))
    spread = max(seen) - min(seen)
    highest: dict[int, tuple[float, Tensor]] = {}
    for excess, i, row in found:
        if excess > threshold * spread and excess > highest.get(i, (-math.inf,))[0]:
            highest[i] = excess, row
    room = most - (len(band) - 2)
    chosen = sorted(highest, key=lambda i: -highest[i][0])[: max(room, 0)]
    rows = []
    for i, row in enumerate(band):
        rows += [row] + ([highest[i][1]] if i in chosen else [])
    return torch.stack(rows)


def _params(row: Tensor, layout: Layout, like: Params) -> dict[str, Tensor]:
    return {**like, **layout.unflatten(row)}
