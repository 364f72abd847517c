"""The weighted average of corresponding parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sokmerge.errors import ArgumentError
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, combine, require_finite, require_matching

__all__ = ["average"]


@method(branch="weight aggregation", paper="wortsman2022soups")
def average(models: Sequence[Params], *, weights: Sequence[float] | None = None) -> Params:
    r"""Return the average of several networks' parameters.

    .. math:: \theta = \frac{\sum_i w_i\,\theta_i}{\sum_i w_i}

    With equal weights this is the uniform soup (Wortsman et al. 2022, section 2), and along one
    run it is stochastic weight averaging (Izmailov et al. 2018). It makes sense where
    the straight lines between the networks stay low: within one basin.

    Args:
        models: parameters of networks of one architecture. Entries that are not floating point
            are taken from the first.
        weights: one non-negative number for each model, by default all equal; they need not sum
            to one.

    Raises:
        ArgumentError: no models, models that do not match or are not finite, or weights that are
            negative, not finite, all zero, or of another number.

    >>> import torch
    >>> average([{"w": torch.zeros(1)}, {"w": torch.ones(1)}], weights=[1, 3])["w"]
    tensor([0.7500])
    """
    if len(models) == 0:
        raise ArgumentError("models", found="no models", expected="at least one")
    named = {f"models[{i}]": model for i, model in enumerate(models)}
    require_matching(**named)
    require_finite(**named)
    weights = [1.0] * len(models) if weights is None else [float(w) for w in weights]
    usable = all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)
    if len(weights) != len(models) or not usable:
        raise ArgumentError(
            "weights",
            found=f"{weights} for {len(models)} models",
            expected="one finite, non-negative number for each model, not all zero",
        )
    total = math.fsum(weights)
    return combine([w / total for w in weights], models)
