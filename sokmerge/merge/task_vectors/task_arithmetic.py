"""Add, weigh and negate task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sokmerge.merge.task_vectors.vectors import (
    differences,
    prepare,
    step,
    task_vectors,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["task_arithmetic", "task_vectors"]


@method(
    branch="weight aggregation",
    paper="ilharco2022editing",
    needs=("base",),
    scope="entry",
    equation=r"\theta=\theta_0+\lambda\textstyle\sum_i w_i\tau_i",
)
def task_arithmetic(
    models: Sequence[Params],
    *,
    base: Params,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add task vectors to the base.

    .. math:: \theta = \theta_0 + \lambda \sum_i w_i\,(\theta_i - \theta_0)

    Adding task vectors is to give one network several skills; a negative weight takes a skill
    away; and weights (1, 1, -1) make the analogy "A is to B as C is to D" (Ilharco et al. 2022).
    The weights are not normalised: with weights that sum to one and scale 1 this is the weighted
    average of the models, and with one model and scale 1 it is that model.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a scale
            or weights that are not finite or of another number.

    >>> import torch
    >>> base = {"w": torch.tensor([1.0, 1.0])}
    >>> models = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 2.0])}]
    >>> task_arithmetic(models, base=base)["w"]
    tensor([3., 2.])
    >>> task_arithmetic(models[:1], base=base, weights=[-1])["w"]
    tensor([-1.,  1.])
    """
    weights = prepare(models, base, weights, scale=scale)

    def direction(name: str) -> Tensor:
        return weighted_sum(differences(models, base, name), weights)

    return step(base, direction, scale)
