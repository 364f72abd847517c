r"""Training in a random subspace, and the dimension at which it suffices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, stream
from sokmerge.probe.curvature.operator import Layout

__all__ = ["IntrinsicDimension", "RandomSubspace", "intrinsic_dimension", "random_subspace"]

Kind = Literal["sparse", "dense"]


@dataclass(frozen=True)
class RandomSubspace:
    r"""The points :math:`\theta_0 + Pz` with a fixed random P and d coordinates z.

    P has orthonormal columns: a step of some length in z is one of the same length in the
    parameters.

    Attributes:
        origin: :math:`\theta_0`.
        dimension: d.
        size: n, the number of floating entries of the origin.
    """

    origin: Params
    dimension: int
    size: int
    _layout: Layout
    _columns: Tensor
    _values: Tensor | None

    def point(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Return the point at coordinates of shape (d,), differentiable in them."""
        if coordinates.shape != (self.dimension,):
            raise ArgumentError(
                "coordinates",
                found=f"shape {tuple(coordinates.shape)}",
                expected=f"shape ({self.dimension},)",
            )
        step = self._layout.unflatten(self._times(coordinates))
        return {k: t + step[k].to(t.dtype) if k in step else t for k, t in self.origin.items()}

    def _times(self, coordinates: Tensor) -> Tensor:
        if self._values is None:
            return self._columns @ coordinates
        return coordinates[self._columns] * self._values


def random_subspace(
    origin: Params, dimension: int, *, seed: int, kind: Kind = "sparse"
) -> RandomSubspace:
    r"""Lay a random subspace through a point (Li et al. 2018, Measuring the intrinsic dimension).

    .. math:: \theta = \theta_0 + P z,\qquad P^\top P = I_d

    ``"dense"``: P is the orthonormal factor of a normal random matrix, uniform over all
    subspaces; it holds n d numbers. ``"sparse"``: each row of P has one entry that is not zero.
    The n parameters are dealt at random to d groups whose sizes differ by one at most; each
    parameter has a random sign, and those of a group move together. It holds n numbers, and for
    d = n it is the whole space. (The paper uses dense, sparse and structured matrices; this
    sparse one is ours, chosen because its columns are orthonormal exactly.)

    Args:
        origin: :math:`\theta_0`; entries that are not floating point stay.
        dimension: d, from 1 to n.
        seed: fixes P, which is drawn on the CPU.
        kind: ``"sparse"`` or ``"dense"``.

    Raises:
        ArgumentError: d is out of range, or the kind is neither.

    >>> space = random_subspace({"w": torch.zeros(4)}, 2, seed=0)
    >>> step = space.point(torch.tensor([1.0, 0.0]))["w"]
    >>> step.count_nonzero(), round(float(step.norm()), 4)  # two of four entries, length 1
    (tensor(2), 1.0)
    """
    layout = Layout({k: t.shape for k, t in origin.items() if t.is_floating_point()})
    n = layout.size
    if not 1 <= dimension <= n:
        raise ArgumentError("dimension", found=f"{dimension}", expected=f"1 to {n}")
    if kind not in get_args(Kind):
        raise ArgumentError("kind", found=repr(kind), expected=f"one of {get_args(Kind)}")
    first = origin[next(iter(layout.shapes))]
    generator = stream(f"{seed}:{kind}:{dimension}")
    if kind == "dense":
        drawn = torch.randn(n, dimension, generator=generator, dtype=torch.float64)
        columns, values = torch.linalg.qr(drawn).Q.to(first), None
    else:
        group = torch.arange(n)[torch.randperm(n, generator=generator)] % dimension
        signs = 2.0 * torch.randint(2, (n,), generator=generator) - 1
        sizes = (n - 1 - group) // dimension + 1  # of the group that each parameter belongs to
        values = (signs / sizes.sqrt()).to(first)
        columns = group.to(first.device)
    return RandomSubspace(origin, dimension, n, layout, columns, values)


@dataclass(frozen=True)
class IntrinsicDimension:
    r"""The dimension at which a random subspace gives a share of what the whole space gives.

    Attributes:
        value: the dimension, between grid points by interpolation in its logarithm; NaN if no
            dimension of the grid suffices, and the lowest one if all do.
        low, high: the grid points on either side: between them it lies. ``low`` is 0 if all
            suffice, ``high`` infinite if none does.
        target: the score to reach.
    """

    value: float
    low: float
    high: float
    target: float


def intrinsic_dimension(
    dims: Sequence[int], scores: Sequence[float], whole: float, *, share: float = 0.9
) -> IntrinsicDimension:
    r"""Read the intrinsic dimension off a curve of scores.

    .. math:: d_{\mathrm{int}} = \min\{d:\ \text{score}(d) \ge s\cdot\text{score of the whole}\}

    (Li et al. 2018, with s = 0.9 for :math:`d_{\mathrm{int}90}`.) The first crossing counts.

    Args:
        dims: ascending dimensions.
        scores: what training in each reached, such as the accuracy; more is better.
        whole: what training in the whole space reached.
        share: s, in (0, 1].

    Raises:
        ArgumentError: dimensions that do not ascend, scores that are not as many, or a share out
            of range.

    >>> found = intrinsic_dimension([10, 100, 1000], [0.3, 0.7, 0.9], whole=0.9)
    >>> round(found.value), found.low, found.high
    (355, 100, 1000)
    """
    if len(dims) != len(scores) or not len(dims) or any(np.diff(dims) <= 0) or dims[0] < 1:
        raise ArgumentError(
            "dims",
            found=f"{list(dims)} with {len(scores)} scores",
            expected="ascending numbers, with a score for each",
        )
    if not 0 < share <= 1:
        raise ArgumentError("share", found=f"{share}", expected="a number in (0, 1]")
    target = share * whole
    reached = [i for i, score in enumerate(scores) if score >= target]
    if not reached:
        return IntrinsicDimension(math.nan, dims[-1], math.inf, target)
    i = reached[0]
    if i == 0:
        return IntrinsicDimension(float(dims[0]), 0, dims[0], target)
    part = (target - scores[i - 1]) / (scores[i] - scores[i - 1])
    value = dims[i - 1] * (dims[i] / dims[i - 1]) ** part
    return IntrinsicDimension(float(value), dims[i - 1], dims[i], target)
