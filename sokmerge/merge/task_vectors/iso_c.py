"""Flatten the spectrum of the sum of the task vectors, matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sokmerge.merge.task_vectors.matrices import as_matrix, is_matrix, singular, weighted_mean
from sokmerge.merge.task_vectors.vectors import differences, prepare, step, weighted_sum
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["iso_c"]


@method(
    branch="weight aggregation",
    paper="marczak2025no",
    needs=("base",),
    scope="tensor",
    equation=r"\theta=\theta_0+\lambda\,\bar\sigma\,UV^\top,"
    r"\ U\Sigma V^\top=\textstyle\sum_i w_i\tau_i,\ \bar\sigma=\operatorname{mean}\Sigma",
)
def iso_c(
    models: Sequence[Params],
    *,
    base: Params,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add the task vectors, and make every direction of the sum equally long.

    .. math:: \theta = \theta_0 + \lambda\,\bar\sigma\,UV^\top,\qquad
              U\Sigma V^\top = \sum_i w_i\,(\theta_i-\theta_0),\qquad
              \bar\sigma = \frac1r\sum_{j=1}^r\sigma_j

    for each weight matrix (Iso-C, isotropic merging in the common subspace; Marczak et al. 2025).
    The sum of task vectors has few long directions, those that tasks share, and many short ones.
    The singular vectors stay as they are, and so does the sum of the singular values; each value
    becomes their mean. r counts the singular values that are not zero.

    * **Scope**: each tensor with two axes or more, read as a matrix with its first axis as rows.
      Of other tensors, such as biases, the step is the weighted mean of the task vectors, the sum
      divided by the number of models.
    * There is neither a tie rule nor a sign rule. The order of the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a scale
            or weights that cannot be used.

    >>> import torch
    >>> base = {"w": torch.zeros(2, 2)}
    >>> models = [{"w": torch.diag(torch.tensor([3.0, 0.0]))},
    ...           {"w": torch.diag(torch.tensor([0.0, 1.0]))}]
    >>> iso_c(models, base=base)["w"]
    tensor([[2., 0.],
            [0., 2.]])
    """
    weights = prepare(models, base, weights, scale=scale)

    def direction(name: str) -> Tensor:
        vectors = differences(models, base, name)
        if not is_matrix(base[name]):
            return weighted_mean(vectors, weights)
        total = weighted_sum(vectors, weights)
        u, values, vt = singular(as_matrix(total))
        level = values.sum() / (values > 0).sum().clamp(min=1)
        return (level * (u @ vt)).reshape(total.shape)

    return step(base, direction, scale)
