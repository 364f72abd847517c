"""WiSE-FT: between the network before fine-tuning and the one after."""

from __future__ import annotations

from collections.abc import Sequence

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, lerp

__all__ = ["wise_ft"]


@method(
    branch="weight aggregation",
    paper="wortsman2022robust",
    needs=("base",),
    scope="entry",
    equation=r"\theta=(1-\alpha)\,\theta_0+\alpha\,\bar\theta",
)
def wise_ft(models: Sequence[Params], *, base: Params, alpha: float = 0.5) -> Params:
    r"""Return a point between the base and what was fine-tuned from it.

    .. math:: \theta = (1-\alpha)\,\theta_0 + \alpha\,\bar\theta

    Fine-tuning gains on the task and loses on what the base did well under other distributions; a
    point between the two keeps much of both (Wortsman et al. 2022, WiSE-FT). Theirs is one
    fine-tuned network. Of several, :math:`\bar\theta` is the
    :func:`~sokmerge.merge.average`.

    Args:
        models: parameters of the fine-tuned network, or of several. Entries that are not floating
            point are taken from the base.
        base: parameters of the network that they were trained from.
        alpha: from 0, the base, to 1, the fine-tuned network; both ends are exact. Without data to
            choose by the authors take one half.

    Raises:
        ArgumentError: models that do not match the base or are not finite, or an ``alpha``
            outside of 0 to 1.

    >>> import torch
    >>> wise_ft([{"w": torch.ones(1)}], base={"w": torch.zeros(1)}, alpha=0.25)["w"]
    tensor([0.2500])
    """
    require_models(models, base=base)
    if not 0 <= alpha <= 1:
        raise ArgumentError("alpha", found=f"{alpha}", expected="a number from 0 to 1")
    return lerp(base, models[0] if len(models) == 1 else average(models), alpha)
