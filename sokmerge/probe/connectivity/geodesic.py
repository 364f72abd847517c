r"""Short low paths, and many networks at once: paths that all go through one centre."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, host, inner, subtract
from sokmerge.probe.connectivity.curves import Curve, Loss, fit_curve
from sokmerge.probe.line import Barrier, barrier
from sokmerge.probe.risk import EmpiricalRisk

__all__ = ["Spokes", "geodesic", "spokes", "via"]


def geodesic(
    a: Params,
    b: Params,
    *,
    loss: Loss,
    steps: int,
    bends: int = 1,
    pull: float = 0.1,
    lr: float = 1e-2,
    seed: int = 0,
) -> Curve:
    r"""Return a polygonal chain that is low and, as far as that allows, short.

    Lin et al. (2024) ask how long the shortest path of low loss is, as a multiple of the distance
    of its ends, and prove it close to 1 for wide two-layer networks, with one bend. Here the
    chain of :func:`~sokmerge.probe.connectivity.fit_curve` is trained with a pull that
    straightens it; :meth:`~sokmerge.probe.connectivity.Curve.straightness` gives that multiple.
    The stronger the pull, the shorter the path and the higher its loss: give both.

    Args:
        a: parameters at one end.
        b: parameters at the other end.
        loss: a differentiable function of parameters and of the number of the step, a scalar.
        steps: steps of Adam.
        bends: number of inner points.
        pull: the weight of the length against the loss, in the unit of the loss.
        lr: the first rate; it falls to zero by a cosine.
        seed: decides the positions.

    Raises:
        ArgumentError: as :func:`~sokmerge.probe.connectivity.fit_curve`.

    >>> import torch
    >>> ends = [{"w": torch.tensor([x, 0.0])} for x in (-1.0, 1.0)]
    >>> flat = geodesic(*ends, loss=lambda p, step: p["w"].sum() * 0, steps=50)
    >>> round(flat.straightness(), 4)  # nothing in the way
    1.0
    """
    return fit_curve(
        a, b, loss=loss, steps=steps, kind="chain", bends=bends, pull=pull, lr=lr, seed=seed
    )


def via(a: Params, centre: Params, b: Params) -> Curve:
    """Return the path from a straight to a centre and from there straight to b.

    >>> import torch
    >>> corner = [{"w": torch.tensor(p)} for p in ([3.0, 0.0], [0.0, 0.0], [0.0, 4.0])]
    >>> via(*corner).length()
    7.0
    """
    return Curve((a, centre, b), "chain")


@dataclass(frozen=True)
class Spokes:
    r"""The straight lines from one centre to many networks.

    Attributes:
        barriers: of each line the barrier, with its line.
        lengths: of each line the length.
        angles: cosines between the lines, a matrix in the order of the networks. For networks
            that lie around the centre in independent directions they are near 0.
        detours: of each pair (i, j), i < j, the length of the path through the centre as a
            multiple of the distance of the two networks.
    """

    barriers: tuple[Barrier, ...]
    lengths: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    detours: dict[tuple[int, int], float]

    @property
    def worst(self) -> float:
        """The highest loss barrier of all lines: how far the networks are from a star."""
        return max(found.loss for found in self.barriers)


def spokes(
    risk: EmpiricalRisk, centre: Params, models: Sequence[Params], points: int = 25
) -> Spokes:
    r"""Measure whether all of some networks are connected to one centre by straight lines.

    A set is star-shaped if it has a centre from which every one of its points can be reached along
    a straight line within the set. Of pairwise lines nothing is asked: two networks are then
    connected through the centre (Sonthalia et al. 2024; Lin et al. 2024).

    Args:
        risk: the risk to evaluate.
        centre: parameters of the centre.
        models: parameters of the networks, two or more, none of them the centre.
        points: positions on each line.

    Raises:
        ArgumentError: fewer than two networks, points that do not belong to the risk's network, or
            a network that is the centre.

    >>> import torch
    >>> from torch import nn
    >>> risk = EmpiricalRisk(nn.Linear(2, 1, bias=False).eval(), torch.eye(2), torch.zeros(2, 1),
    ...                      loss=lambda f, y, reduction: f.square().mean(1))
    >>> at = [{"weight": torch.tensor([w])} for w in ([0.0, 0.0], [3.0, 0.0], [0.0, 4.0])]
    >>> found = spokes(risk, at[0], at[1:], points=3)
    >>> found.worst, found.lengths, found.detours[0, 1], found.angles[0][1]
    (0.0, (3.0, 4.0), 1.4, 0.0)
    """
    if len(models) < 2:
        raise ArgumentError("models", found=f"{len(models)}", expected="two or more")
    found = tuple(barrier(risk, centre, model, points) for model in models)
    steps = [subtract(model, centre) for model in models]
    gram = [[float(host(inner(p, q))) for q in steps] for p in steps]
    lengths = tuple(gram[i][i] ** 0.5 for i in range(len(models)))
    if min(lengths) == 0:
        raise ArgumentError(
            "models", found=f"the centre at {lengths.index(0)}", expected="other networks"
        )
    many = range(len(models))
    return Spokes(
        barriers=found,
        lengths=lengths,
        angles=tuple(tuple(gram[i][j] / lengths[i] / lengths[j] for j in many) for i in many),
        detours={
            (i, j): (lengths[i] + lengths[j]) / (gram[i][i] + gram[j][j] - 2 * gram[i][j]) ** 0.5
            for i in many
            for j in many
            if i < j
        },
    )
