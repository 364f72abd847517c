"""Spherical interpolation between two networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, entrywise, wide

__all__ = ["slerp"]

# Below this sine, the arc differs from the line by less than single precision can hold.
_COLLINEAR = 1e-4


@method(
    branch="weight aggregation",
    paper="shoemake1985animating",
    scope="model",
    equation=r"\theta=\frac{\sin((1-\alpha)\Omega)}{\sin\Omega}\theta_0+\frac{\sin(\alpha\Omega)}{\sin\Omega}\theta_1",
)
def slerp(models: Sequence[Params], *, alpha: float = 0.5) -> Params:
    r"""Return a point of the arc between two networks, tensor by tensor.

    .. math:: \theta = \frac{\sin((1-\alpha)\,\Omega)}{\sin\Omega}\,\theta_0
                     + \frac{\sin(\alpha\,\Omega)}{\sin\Omega}\,\theta_1,
              \qquad \cos\Omega =
              \frac{\langle\theta_0,\theta_1\rangle}{\lVert\theta_0\rVert\,\lVert\theta_1\rVert}

    Shoemake (1985) interpolates unit quaternions so. Here a vector is all that one tensor holds
    (scope: per tensor). Where the two tensors have one norm, so has every point of the arc, while
    the average of two orthogonal tensors is shorter by :math:`\sqrt2`. Where the norms differ,
    the same formula is applied to the tensors as they are.

    Two tensors that point the same way or opposite ways (:math:`\sin\Omega<10^{-4}`) and a tensor
    that is zero span no arc: there the result is :math:`(1-\alpha)\,\theta_0+\alpha\,\theta_1`.
    Tensors that are nearly opposite have an arc, but the formula is then sensitive: of unequal
    norms it makes a result that is longer than both.
    ``alpha`` 0 and 1 give the ends exactly.

    Args:
        models: parameters of two networks of one architecture. Entries that are not floating
            point are taken from the first.
        alpha: the share of the angle, from 0 to 1, at which the result lies.

    Raises:
        ArgumentError: another number of models than two, models that do not match or are not
            finite, or an ``alpha`` outside of 0 to 1.

    >>> a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}
    >>> slerp([a, b])["w"]
    tensor([0.7071, 0.7071])
    """
    if len(models) != 2:
        raise ArgumentError("models", found=f"{len(models)} models", expected="two")
    require_models(models)
    if not 0 <= alpha <= 1:
        raise ArgumentError("alpha", found=f"{alpha}", expected="a number from 0 to 1")
    return entrywise(lambda a, b: _arc(a, b, alpha), *models)


def _arc(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    x, y = wide(a), wide(b)
    u, v = x / x.square().sum().sqrt(), y / y.square().sum().sqrt()
    # Unlike the arc cosine, this is accurate at small angles too.
    angle = 2 * torch.atan2((u - v).square().sum().sqrt(), (u + v).square().sum().sqrt())
    sine = angle.sin()
    arc = ((1 - alpha) * angle).sin() / sine * x + (alpha * angle).sin() / sine * y
    # A zero tensor makes the sine NaN, and so takes the way of the line.
    return torch.where(sine >= _COLLINEAR, arc, torch.lerp(x, y, alpha)).to(a.dtype)
