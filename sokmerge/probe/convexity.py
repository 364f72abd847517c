r"""Convexity of a mode: its hull, the way down to it, its width, and its sharpness.

A loss is convex on a set of points if at every mixture of them it lies at or below the mixture of
their losses. None of these measures proves that; each can show that it fails.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, combine, entrywise, host, norm, require_matching, stream
from sokmerge.probe.line import Line, line
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = [
    "Basin",
    "Descent",
    "Hull",
    "Sharpness",
    "basin",
    "descent",
    "hull",
    "inside",
    "outside",
    "rescale",
    "risk_gradient",
    "sharpness",
    "unit_directions",
]


# The hull --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hull:
    r"""The risk at affine combinations of m points, :math:`\sum_i w_i\theta_i`.

    The weights sum to 1. The excess is what Jensen's inequality is about,

    .. math:: \Delta(w) = L\Bigl(\sum_i w_i\theta_i\Bigr) - \sum_i w_i\,L(\theta_i) .

    If L is convex, it is at most 0 inside the hull, where all weights are at least 0. Its
    standard error is that of the paired differences on the same examples.

    Attributes:
        weights: shape (points, m).
        loss, loss_stderr, error, error_stderr: at the combinations, shape (points,).
        excess, excess_stderr: :math:`\Delta`, shape (points,).
        member_loss, member_error: at the m points themselves, shape (m,).
        n: number of examples.
    """

    weights: np.ndarray
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    excess: np.ndarray
    excess_stderr: np.ndarray
    member_loss: np.ndarray
    member_error: np.ndarray
    n: int


def inside(
    members: int, points: int = 50, *, concentration: float = 1.0, seed: int = 0
) -> np.ndarray:
    r"""Return weights of random points of a convex hull, shape (points, members).

    They follow the symmetric Dirichlet distribution; a concentration of 1 is uniform on the
    simplex, below 1 is near its corners, above 1 near its centre.

    Args:
        members: corners of the hull, at least two.
        points: how many.
        concentration: the parameter of the distribution, above 0.
        seed: of the draw.

    Raises:
        ArgumentError: fewer than two members, no points, or another concentration.

    >>> inside(3, points=2).sum(1).round(6)
    array([1., 1.])
    """
    _require_counts(members, points)
    if not 0 < concentration < math.inf:
        raise ArgumentError(
            "concentration", found=f"{concentration}", expected="a positive, finite number"
        )
    generator = np.random.default_rng([seed, members])
    return generator.dirichlet(np.full(members, float(concentration)), size=points)


def outside(
    members: int,
    points: int = 50,
    *,
    alphas: Sequence[float] = (-0.5, 1.5),
    seed: int = 0,
) -> np.ndarray:
    r"""Return weights of points beyond the ends of lines between members, shape (points, members).

    Each is :math:`(1-\alpha)\,\theta_i+\alpha\,\theta_j` of a random pair, the positions taken in
    turn. A position outside [0, 1] lies outside the hull of the pair, and outside that of all
    members if these are affinely independent.

    Args:
        members: how many points there are, at least two.
        points: how many weights to draw.
        alphas: positions on the line.
        seed: of the draw.

    Raises:
        ArgumentError: fewer than two members, no points, or no position.

    >>> outside(2, points=2).sum(1)
    array([1., 1.])
    >>> bool((outside(5, points=9).min(1) == -0.5).all())
    True
    """
    _require_counts(members, points)
    if not len(alphas):
        raise ArgumentError("alphas", found="no position", expected="at least one")
    generator = np.random.default_rng([seed, members])
    weights = np.zeros((points, members))
    for row, alpha in zip(weights, itertools.cycle(alphas), strict=False):
        i, j = generator.choice(members, size=2, replace=False)
        row[i], row[j] = 1 - alpha, alpha
    return weights


def hull(risk: EmpiricalRisk, members: Sequence[Params], weights: np.ndarray) -> Hull:
    """Evaluate the risk at affine combinations of points.

    Yunis et al. (2022) look for a convex hull of low loss between the ends of runs that share a
    beginning; Gueta et al. (2023) compare the inside of a region with what lies beyond it.

    Args:
        risk: the risk to evaluate.
        members: the points.
        weights: shape (points, members), rows that sum to 1, from :func:`inside` or
            :func:`outside`.

    Raises:
        ArgumentError: members that do not belong to the risk's network or are not finite, weights
            of another shape or sum, or a loss that overflows.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.ones(2, 1)
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: (f**2).mean(1))
    >>> ends = [{"weight": torch.full((1, 1), w)} for w in (-1.0, 1.0)]
    >>> hull(risk, ends, np.array([[0.5, 0.5], [-0.5, 1.5]])).excess  # of a parabola
    array([-1.,  3.])
    """
    weights = np.asarray(weights, dtype=float)
    fits = weights.ndim == 2 and len(weights) > 0 and weights.shape[1] == len(members)
    if not fits or not np.allclose(weights.sum(1), 1):
        raise ArgumentError(
            "weights",
            found=f"an array of shape {weights.shape}",
            expected=f"rows of {len(members)} weights that sum to 1",
        )
    risk.require_valid(**{f"members[{i}]": member for i, member in enumerate(members)})
    own = [risk.per_example(member) for member in members]
    own_losses, own_errors = (torch.stack([pair[k] for pair in own]) for k in range(2))
    statistics: list[list[Tensor]] = []
    for row in weights:
        losses, errors = risk.per_example(combine(row.tolist(), list(members)))
        mixed = sum(float(w) * each for w, each in zip(row, own_losses, strict=True))
        found = [mean_and_stderr(each) for each in (losses, errors, losses - mixed)]
        statistics.append([value for pair in found for value in pair])
    columns = [torch.stack(column) for column in zip(*statistics, strict=True)]
    require_finite_loss(columns[0], "weights")
    member_loss, member_error = (
        host(mean_and_stderr(each)[0]) for each in (own_losses, own_errors)
    )
    return Hull(weights, *map(host, columns), member_loss, member_error, risk.n)


def _require_counts(members: int, points: int) -> None:
    for name, count, fewest in (("members", members, 2), ("points", points, 1)):
        if count < fewest:
            raise ArgumentError(name, found=f"{count}", expected=f"at least {fewest}")


# The way down ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descent:
    r"""The straight line from a start down to a solution.

    Attributes:
        climb: :math:`\max_{\alpha<\beta}\,[L(\theta_\beta)-L(\theta_\alpha)]` over the points of
            the line, at least 0; it is 0 if the loss never rises. In the unit of the loss.
        climb_stderr: standard error of that difference, on the same examples; it does not include
            the choice of the two points.
        climb_from, climb_to: where the climb begins and ends.
        plateau: the first position at which the loss has fallen by a share of its whole fall, so
            the length of the part before; 1 if it never does, NaN if the end is no lower than the
            start.
        share: that share.
        line: the line itself.
    """

    climb: float
    climb_stderr: float
    climb_from: float
    climb_to: float
    plateau: float
    share: float
    line: Line


def descent(
    risk: EmpiricalRisk, start: Params, end: Params, points: int = 25, *, share: float = 0.1
) -> Descent:
    r"""Measure whether the loss falls steadily on the straight line from a start to a solution.

    Monotone linear interpolation (Goodfellow et al. 2014; Lucas et al. 2021) is a climb of 0. A
    long plateau (Wang et al. 2022) is a line that stays high before it falls.

    Args:
        risk: the risk to evaluate.
        start: parameters before training.
        end: parameters after it.
        points: number of equally spaced positions, the ends among them.
        share: of the whole fall, at which the plateau ends, between 0 and 1.

    Raises:
        ArgumentError: as for :func:`~sokmerge.probe.line`, or another share.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.ones(2, 1)
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: (f**2).mean(1))
    >>> two, zero, minus = ({"weight": torch.full((1, 1), w)} for w in (2.0, 0.0, -1.0))
    >>> descent(risk, two, zero).climb, round(descent(risk, two, minus, points=4).climb, 6)
    (0.0, 1.0)
    """
    if not 0 < share < 1:
        raise ArgumentError("share", found=f"{share}", expected="a number between 0 and 1")
    way = line(risk, start, end, points)
    rises = way.loss[None, :] - way.loss[:, None]  # [i, j]: what is gained from i to j
    rises[np.tril_indices(len(way.loss))] = 0.0
    i, j = np.unravel_index(int(np.argmax(rises)), rises.shape)
    spread = 0.0
    if j > i:
        low, high = (
            risk.per_example(combine([1 - a, a], [start, end]))[0] for a in way.alphas[[i, j]]
        )
        spread = float(host(mean_and_stderr(high - low)[1]))
    return Descent(
        climb=float(rises[i, j]),
        climb_stderr=spread,
        climb_from=float(way.alphas[i]),
        climb_to=float(way.alphas[j]),
        plateau=_plateau(way, share),
        share=share,
        line=way,
    )


def _plateau(way: Line, share: float) -> float:
    fall = way.loss[0] - way.loss[-1]
    if not fall > 0:
        return math.nan
    return min(_first_crossing(way.alphas, way.loss[0] - way.loss, share * fall), 1.0)


def _first_crossing(at: np.ndarray, values: np.ndarray, level: float) -> float:
    """Return where values first reach a level, between neighbours by a line; inf if nowhere."""
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return math.inf
    k = int(reached[0])
    if k == 0:
        return float(at[0])
    part = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(at[k - 1] + part * (at[k] - at[k - 1]))


# Width -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Basin:
    r"""The rise of the loss around a point, along several directions.

    Attributes:
        radii: positions r along each direction, shape (R,), the first one 0.
        rise: :math:`L(\theta+r\,d)-L(\theta)`, shape (directions, R).
        mean: over the directions, shape (R,).
        stderr: standard error of that mean, over the directions, shape (R,).
        level: the rise at which the width is read off.
        widths: where each direction first reaches that level, between neighbours by a line; inf
            where it does not within the radii. Shape (directions,).
        width, width_stderr: their mean and its standard error.
        n: number of examples.
    """

    radii: np.ndarray
    rise: np.ndarray
    mean: np.ndarray
    stderr: np.ndarray
    level: float
    widths: np.ndarray
    width: float
    width_stderr: float
    n: int


def basin(
    risk: EmpiricalRisk,
    centre: Params,
    directions: Sequence[Params],
    *,
    radii: Sequence[float],
    level: float = 0.1,
) -> Basin:
    """Measure how wide the basin around a point is, along given directions.

    With directions of :func:`~sokmerge.probe.filter_normalised` a radius of 1 is as long, filter
    by filter, as the network itself (Li et al. 2018). With directions of length one the radius is
    the distance.

    Args:
        risk: the risk to evaluate.
        centre: the point.
        directions: at least two.
        radii: positions along each direction, ascending, the first one 0.
        level: the rise at which the width is read off, in the unit of the loss.

    Raises:
        ArgumentError: points that do not belong to the risk's network or are not finite, fewer
            than two directions, other radii, a level that is not above 0, or a loss that
            overflows.

    >>> from torch import nn
    >>> net = nn.Linear(2, 1, bias=False).eval()
    >>> risk = EmpiricalRisk(
    ...     net, torch.eye(2), torch.zeros(2, 1), loss=lambda f, y, reduction: (f**2).sum(1)
    ... )
    >>> zero, *ways = ({"weight": torch.tensor([w])} for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 2.0]))
    >>> basin(risk, zero, ways, radii=[0, 1, 2], level=0.5).widths
    array([1.  , 0.25])
    """
    at = np.asarray(radii, dtype=float)
    if at.ndim != 1 or len(at) < 2 or at[0] != 0 or not (np.diff(at) > 0).all():
        raise ArgumentError("radii", found=f"{at.tolist()}", expected="0, and then ascending")
    if len(directions) < 2:
        raise ArgumentError("directions", found=f"{len(directions)}", expected="at least two")
    if not level > 0:
        raise ArgumentError("level", found=f"{level}", expected="a number above 0")
    named = {f"directions[{k}]": each for k, each in enumerate(directions)}
    risk.require_valid(centre=centre, **named)
    here = mean_and_stderr(risk.per_example(centre)[0])[0]
    rows = []
    for direction in directions:
        losses = [
            mean_and_stderr(risk.per_example(combine([1.0, r], [centre, direction]))[0])[0]
            for r in at[1:].tolist()
        ]
        rows.append(torch.stack([here, *losses]) - here)
    found = torch.stack(rows)
    require_finite_loss(found, "radii")
    rise = host(found)
    widths = np.array([_first_crossing(at, row, level) for row in rise])
    many = math.sqrt(len(rise))
    return Basin(
        radii=at,
        rise=rise,
        mean=rise.mean(0),
        stderr=rise.std(0, ddof=1) / many,
        level=float(level),
        widths=widths,
        width=float(widths.mean()),
        width_stderr=float(widths.std(ddof=1) / many) if np.isfinite(widths).all() else math.nan,
        n=risk.n,
    )


# Sharpness -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharpness:
    r"""The highest rise of the loss that was found in a ball.

    Attributes:
        value: :math:`\max_{\lVert\epsilon\rVert\le\rho}L(\theta+\epsilon)-L(\theta)`, as far as
            the ascent found it: a lower bound.
        stderr: its standard error over the examples, paired.
        first: what one step along the gradient reaches, the estimate that SAM descends.
        rho: the radius.
        direction: the step :math:`\epsilon` that reaches it.
        n: number of examples.
    """

    value: float
    stderr: float
    first: float
    rho: float
    direction: Params
    n: int


def sharpness(risk: EmpiricalRisk, centre: Params, rho: float, *, steps: int = 10) -> Sharpness:
    r"""Look for the highest loss in a ball around a point.

    The first step is that of sharpness-aware minimisation (Foret et al. 2020),
    :math:`\epsilon=\rho\,g/\lVert g\rVert` with the gradient g. Each further one adds the unit
    gradient found there, times the radius, and goes back to the sphere. The highest value seen is
    returned. BatchNorm statistics are estimated at each point.

    Args:
        risk: the risk, with a loss that can be differentiated.
        centre: the point.
        rho: the radius, in the norm of parameter space.
        steps: gradients to take, at least one.

    Raises:
        ArgumentError: a point that does not belong to the risk's network or is not finite, a
            radius or steps that are not positive, a gradient of zero, or a loss that overflows.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.ones(2, 1)
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: (f**2).mean(1))
    >>> round(sharpness(risk, {"weight": torch.ones(1, 1)}, rho=0.5).value, 4)  # 1.5 ** 2 - 1
    1.25
    """
    if not 0 < rho < math.inf:
        raise ArgumentError("rho", found=f"{rho}", expected="a positive, finite radius")
    if steps < 1:
        raise ArgumentError("steps", found=f"{steps}", expected="at least one")
    risk.require_valid(centre=centre)
    here = risk.per_example(centre)[0]
    best: tuple[float, float, Params] | None = None
    first = math.nan
    step: Params | None = None
    at: Params = centre
    for number in range(steps):
        uphill = _of_length(risk_gradient(risk, at), rho, "centre")
        step = uphill if step is None else _of_length(combine([1, 1], [step, uphill]), rho, "rho")
        at = combine([1, 1], [centre, step])
        losses = risk.per_example(at)[0]
        require_finite_loss(losses, "rho")
        value, spread = (float(host(each)) for each in mean_and_stderr(losses - here))
        first = value if number == 0 else first
        if best is None or value > best[0]:
            best = value, spread, step
    return Sharpness(best[0], best[1], first, float(rho), best[2], risk.n)


def risk_gradient(risk: EmpiricalRisk, params: Params) -> dict[str, Tensor]:
    r"""Return the gradient of the risk at a point, :math:`\nabla L(\theta)`.

    BatchNorm statistics are estimated at the point and held fixed. Entries that are not parameters
    of the network, or not floating point, have the gradient zero.

    Args:
        risk: the risk, with a loss that can be differentiated.
        params: the point.

    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False).eval()
    >>> x = torch.ones(2, 1)
    >>> risk = EmpiricalRisk(net, x, 0 * x, loss=lambda f, y, reduction: (f**2).mean(1))
    >>> risk_gradient(risk, {"weight": torch.full((1, 1), 3.0)})
    {'weight': tensor([[6.]])}
    """
    free = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in params.items()
        if tensor.is_floating_point() and name in risk.network.parameters
    }
    state = {**risk.state(params), **free}
    total = {name: torch.zeros_like(tensor) for name, tensor in free.items()}
    for x, y in risk.chunks():
        with torch.enable_grad():
            losses = risk.losses(risk.network(state, x), y).sum() / risk.n
            parts = torch.autograd.grad(losses, list(free.values()), materialize_grads=True)
        for name, part in zip(free, parts, strict=True):
            total[name] += part
    return {name: total.get(name, torch.zeros_like(tensor)) for name, tensor in params.items()}


def _of_length(step: Params, length: float, name: str) -> dict[str, Tensor]:
    found = float(host(norm(step)))
    if found == 0:
        raise ArgumentError(
            name, found="a gradient of zero", expected="a point at which the loss has a slope"
        )
    return entrywise(lambda tensor: tensor * (length / found), step)


# The same function elsewhere -------------------------------------------------------------------


def rescale(
    params: Params,
    incoming: Sequence[str],
    outgoing: Sequence[str],
    factors: float | Tensor,
) -> dict[str, Tensor]:
    r"""Scale units up where their weights come in, and down where they go out.

    ReLU is positively homogeneous, :math:`\phi(cz)=c\,\phi(z)` for :math:`c>0`. So with factors
    :math:`c_i>0` for the units of one layer

    .. math:: W\leftarrow\operatorname{diag}(c)\,W,\qquad b\leftarrow\operatorname{diag}(c)\,b,
              \qquad V\leftarrow V\operatorname{diag}(c)^{-1}

    leave the function unchanged, if b belongs to the incoming weights W and V is what reads the
    units. Dinh et al. (2017) move a network to another place in this way, where its basin looks as
    sharp as one likes. For units that are not positively homogeneous it changes the function.

    Args:
        params: the point.
        incoming: parameters with one entry for each unit along the first dimension.
        outgoing: parameters with one for each unit along the second.
        factors: one positive number for all units, or a tensor of shape (units,).

    Raises:
        ArgumentError: unknown names, tensors that do not fit the factors, or a factor that is not
            positive and finite.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> theta = {name: p.detach() for name, p in net.named_parameters()}
    >>> twin = rescale(theta, ["0.weight", "0.bias"], ["2.weight"], 10.0)
    >>> x = torch.ones(1, 2)
    >>> there = torch.func.functional_call(net, twin, (x,))
    >>> torch.allclose(there, net(x)), torch.equal(twin["2.bias"], theta["2.bias"])
    (True, True)
    """
    factor = torch.as_tensor(factors, dtype=torch.float32)
    bad = host((~((factor > 0) & factor.isfinite())).sum())
    if factor.dim() > 1 or bad > 0:
        raise ArgumentError(
            "factors", found=f"{factors}", expected="positive, finite numbers, one for each unit"
        )
    found = dict(params)
    for names, dim, power in ((incoming, 0, 1), (outgoing, 1, -1)):
        for name in names:
            found[name] = _scaled(found, name, dim, factor**power)
    require_matching(params=params, rescaled=found)
    return found


def _scaled(params: Mapping[str, Tensor], name: str, dim: int, factor: Tensor) -> Tensor:
    if name not in params:
        raise ArgumentError(name, found="no such parameter", expected="a name of params")
    tensor = params[name]
    if tensor.dim() <= dim or (factor.dim() and tensor.shape[dim] != len(factor)):
        raise ArgumentError(
            name,
            found=f"shape {tuple(tensor.shape)}",
            expected=f"{len(factor) if factor.dim() else 'the units'} along dimension {dim}",
        )
    shape = [-1 if k == dim else 1 for k in range(tensor.dim())]
    factor = factor.to(device=tensor.device, dtype=tensor.dtype)
    return tensor * (factor.view(shape) if factor.dim() else factor)


def unit_directions(params: Params, count: int, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return random directions of length one, uniform on the sphere.

    Args:
        params: what they shall fit.
        count: how many.
        seed: of the draw.

    >>> [way] = unit_directions({"w": torch.zeros(3, 4)}, 1)
    >>> round(float(norm(way)), 6)
    1.0
    """
    found = []
    for k in range(count):
        generator = stream(f"direction:{seed}:{k}")
        noise = {
            name: torch.randn(t.shape, generator=generator).to(device=t.device, dtype=t.dtype)
            if t.is_floating_point()
            else t
            for name, t in params.items()
        }
        found.append(_of_length(noise, 1.0, "params"))
    return found
