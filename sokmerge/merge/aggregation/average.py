"""The weighted average of corresponding parameters."""

from __future__ import annotations

from collections.abc import Sequence

from sokmerge.merge.operands import proportions, require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, combine

__all__ = ["average"]


@method(
    branch="weight aggregation",
    paper="wortsman2022soups",
    scope="entry",
    equation=r"\theta=\textstyle\sum_i w_i\theta_i\,/\,\sum_i w_i",
)
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
    require_models(models)
    return combine(proportions(weights, models), models)
