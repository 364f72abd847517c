"""Model Stock: as far from the base towards the average as the models agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, entrywise, wide

__all__ = ["model_stock"]


@method(
    branch="weight aggregation",
    paper="jang2024model",
    needs=("base",),
    scope="model",
    equation=r"\theta=t\bar\theta+(1-t)\theta_0,\ t=\frac{k\cos\vartheta}{(k-1)\cos\vartheta+1}",
)
def model_stock(models: Sequence[Params], *, base: Params) -> Params:
    r"""Return a point between the base and the average, nearer to it the more the models agree.

    .. math:: \theta = t\,\bar\theta + (1-t)\,\theta_0, \qquad
              t = \frac{k\cos\vartheta}{(k-1)\cos\vartheta + 1}, \qquad
              \bar\theta = \frac1k\sum_i\theta_i

    where :math:`\cos\vartheta` is the mean cosine, over the pairs of models, between the changes
    :math:`\theta_i-\theta_0` (Jang et al. 2024). If the models lie at one distance around a
    centre, in directions orthogonal to one another and to the step from the base to the centre,
    then this is the point nearest to the centre on the line through the base and the average.
    The ratio is found for each tensor on its own (scope: per tensor).

    Two rules for what the derivation leaves open: where the models disagree on the whole
    (:math:`\cos\vartheta<0`) the ratio is 0, the base; a change of zero has cosine 0 with all
    others.

    Args:
        models: parameters of two or more networks of one architecture. Entries that are not
            floating point are taken from the first.
        base: parameters of the network that they were trained from.

    Raises:
        ArgumentError: fewer than two models, or Params that do not match or are not finite.

    >>> base = {"w": torch.zeros(2)}
    >>> a, b = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([1.0, 3**0.5])}
    >>> model_stock([a, b], base=base)["w"]  # cosine 1/2, so two thirds of the way
    tensor([1.0000, 0.5774])
    """
    require_models(models, least=2, base=base)
    return entrywise(_stock, *models, base)


def _stock(*operands: Tensor) -> Tensor:
    *tensors, base = operands
    k, origin = len(tensors), wide(base)
    changes = torch.stack([wide(t) - origin for t in tensors]).flatten(1)
    norms = changes.square().sum(1, keepdim=True).sqrt()
    units = torch.where(norms > 0, changes / norms, 0.0)
    # The pairs' cosines sum to half of |sum of units|^2 - sum of |unit|^2.
    among = units.sum(0).square().sum() - units.square().sum()
    cosine = (among / (k * (k - 1))).clamp(0, 1)
    ratio = k * cosine / ((k - 1) * cosine + 1)
    step = changes.sum(0).reshape(base.shape) / k
    return (origin + ratio * step).to(base.dtype)
