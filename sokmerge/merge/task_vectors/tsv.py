"""Keep the leading singular vectors of each task, and make them orthogonal between tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.matrices import (
    as_matrix,
    is_matrix,
    polar_factor,
    singular,
    weighted_mean,
)
from sokmerge.merge.task_vectors.vectors import differences, prepare, step
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["tsv"]


@method(
    branch="weight aggregation",
    paper="gargiulo2024task",
    needs=("base",),
    scope="tensor",
    equation=r"\theta=\theta_0+\lambda\,U_\perp\Sigma V_\perp^\top,"
    r"\ U=[U_1|\cdots|U_n],\ \tau_i\approx U_i\Sigma_iV_i^\top",
)
def tsv(
    models: Sequence[Params],
    *,
    base: Params,
    rank: int | None = None,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add the leading parts of the task vectors, their singular vectors made orthogonal.

    .. math:: \theta = \theta_0 + \lambda\,U_\perp\,\Sigma\,V_\perp^\top,\qquad
              U_\perp = \arg\min_{X^\top X=I}\lVert X-[U_1|\cdots|U_n]\rVert_F

    and in the same way for :math:`V_\perp`, for each weight matrix (TSV-Merge, Gargiulo et al.
    2024). :math:`U_i\Sigma_iV_i^\top` are the k largest singular values of task i's difference and
    their vectors, :math:`\Sigma` holds :math:`w_1\Sigma_1,\ldots,w_n\Sigma_n` on its diagonal. The
    minimum is the polar factor (orthogonal Procrustes): singular vectors of different tasks get
    out of one another's way. With one model and all singular values this is that model.

    * **Scope**: each tensor with two axes or more, read as a matrix with its first axis as rows.
      Of other tensors, such as biases, the step is the weighted mean of the task vectors, the sum
      divided by the number of models.
    * Directions that no task has are not invented: where the kept vectors are dependent, the
      polar factor is the partial isometry. Two copies of a model with k as large as its rank give
      that model, not twice its task vector.
    * There is neither a tie rule nor a sign rule. The order of the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        rank: k, the most singular values to keep of each task; by default, and at most, the
            smaller side of the matrix divided by the number of models, but at least one.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a rank,
            scale or weights that cannot be used.

    >>> base = {"w": torch.zeros(2, 2)}
    >>> models = [{"w": torch.tensor([[4.0, 0.0], [0.0, 1.0]])},
    ...           {"w": torch.tensor([[0.0, 0.0], [0.0, 3.0]])}]
    >>> tsv(models, base=base)["w"]
    tensor([[4., 0.],
            [0., 3.]])
    """
    weights = prepare(models, base, weights, scale=scale)
    if rank is not None and rank < 1:
        raise ArgumentError("rank", found=f"{rank}", expected="at least one singular value")

    def direction(name: str) -> Tensor:
        vectors = differences(models, base, name)
        if not is_matrix(base[name]):
            return weighted_mean(vectors, weights)
        parts = [singular(as_matrix(tau)) for tau in vectors]
        share = max(1, len(parts[0][1]) // len(models))
        kept = share if rank is None else min(rank, share)
        left = polar_factor(torch.cat([u[:, :kept] for u, _, _ in parts], 1))
        right = polar_factor(torch.cat([vt[:kept].T for _, _, vt in parts], 1))
        values = [w * s[:kept] for w, (_, s, _) in zip(weights, parts, strict=True)]
        return (left * torch.cat(values) @ right.T).reshape(vectors[0].shape)

    return step(base, direction, scale)
