r"""Directions in parameter space, and the plane through three points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import (
    Params,
    combine,
    host,
    inner,
    norm,
    normal_like,
    require_finite,
    require_matching,
    scale,
    subtract,
)

__all__ = ["Frame", "filter_normalised", "through"]


@dataclass(frozen=True)
class Frame:
    r"""A plane :math:`\{\theta_0 + \alpha u + \beta v\}` laid through three given points.

    Attributes:
        origin: :math:`\theta_0`, the first point.
        u: unit vector towards the second point.
        v: unit vector in the plane, orthogonal to u, on the side of the third point.
        coordinates: shape (3, 2), where the three points lie. Distances in the plane are
            Euclidean distances in parameter space.
    """

    origin: Params
    u: Params
    v: Params
    coordinates: np.ndarray

    def spans(self, steps: int = 25, margin: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
        """Return positions along u and along v that cover the points and a margin around them.

        Args:
            steps: positions along each direction.
            margin: what to add on each side, as a share of the extent.
        """
        low, high = self.coordinates.min(0), self.coordinates.max(0)
        room = margin * (high - low)
        along_u, along_v = (
            np.linspace(low[k] - room[k], high[k] + room[k], steps) for k in range(2)
        )
        return along_u, along_v


def through(a: Params, b: Params, c: Params) -> Frame:
    r"""Return the plane through three points (Garipov et al. 2018, section 1).

    .. math:: u = \frac{b-a}{\lVert b-a\rVert},\qquad
              v = \frac{w}{\lVert w\rVert},\quad w = (c-a) - \langle c-a,u\rangle\,u

    Raises:
        ArgumentError: the Params do not match, or the three points lie on one line.

    >>> corners = [{"w": torch.tensor(p)} for p in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0])]
    >>> through(*corners).coordinates
    array([[0., 0.],
           [2., 0.],
           [1., 3.]])
    """
    require_matching(a=a, b=b, c=c)
    require_finite(a=a, b=b, c=c)
    to_b, to_c = subtract(b, a), subtract(c, a)
    length = _length(to_b, "b", "the same point as a")
    u = scale(to_b, 1 / length)
    shadow = float(host(inner(to_c, u)))
    away = combine([1, -shadow], [to_c, u])
    height = _length(away, "c", "a point on the line through a and b", scale_of=to_c)
    v = scale(away, 1 / height)
    return Frame(a, u, v, np.array([[0, 0], [length, 0], [shadow, height]], dtype=float))


def filter_normalised(params: Params, seed: int) -> dict[str, Tensor]:
    r"""Return a random direction, filter-normalised (Li et al. 2018, section 4).

    Gaussian noise is rescaled filter by filter to the norm that the filter has in the network,

    .. math:: d_{i,j} \leftarrow \frac{d_{i,j}}{\lVert d_{i,j}\rVert}\,\lVert\theta_{i,j}\rVert

    where j runs over the filters of layer i: the slices along the first dimension of a weight,
    hence the rows of a linear layer. So the picture does not change when the weights of a whole
    ReLU layer are scaled up and those of the next one down, as plain distances would. It does
    change when each unit has a factor of its own: the next layer's filters then change in shape,
    not in length alone. Biases and normalisation parameters, which are vectors, are left where
    they are: their direction is 0.

    Args:
        params: the point around which the direction is to be used.
        seed: see :func:`sokmerge.params.normal_like`.

    >>> point = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b": torch.ones(2)}
    >>> direction = filter_normalised(point, seed=0)
    >>> direction["w"].norm(dim=1), direction["b"]
    (tensor([5., 1.]), tensor([0., 0.]))
    """
    require_finite(params=params)
    noise = normal_like(params, seed)
    return {name: _to_norms_of(params[name], drawn) for name, drawn in noise.items()}


def _to_norms_of(tensor: Tensor, drawn: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return drawn
    if tensor.dim() < 2:
        return torch.zeros_like(drawn)
    rows, noise = tensor.flatten(1), drawn.flatten(1)
    factor = rows.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return (noise * factor).view_as(tensor)


def _length(step: Params, name: str, found: str, scale_of: Params | None = None) -> float:
    """Return the norm of a step, which must not vanish. This waits for the device."""
    length = float(host(norm(step)))
    if length <= 1e-6 * (float(host(norm(scale_of))) if scale_of is not None else 0.0):
        raise ArgumentError(name, found=found, expected="three points that span a plane")
    return length
