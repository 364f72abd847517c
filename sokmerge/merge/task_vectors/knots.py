"""Bring low-rank updates into one basis before they are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.matrices import as_matrix, is_matrix, singular
from sokmerge.merge.task_vectors.ties import ties
from sokmerge.merge.task_vectors.vectors import differences, names, prepare, step
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["knots"]


@method(
    branch="weight aggregation",
    paper="stoica2024knots",
    needs=("base",),
    scope="tensor",
    equation=r"\theta=\theta_0+\lambda\,U\Sigma\operatorname{merge}_iV_i^\top,"
    r"\ [\tau_1|\cdots|\tau_n]=U\Sigma[V_1^\top|\cdots|V_n^\top]",
    ties="those of the merge it wraps",
    signs="those of the merge it wraps",
)
def knots(
    models: Sequence[Params],
    *,
    base: Params,
    merge: Callable[..., Params] = ties,
    rank: int | None = None,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Merge task vectors in the basis that a joint singular value decomposition gives them.

    .. math:: [\tau_1|\cdots|\tau_n] = U\Sigma\,[V_1^\top|\cdots|V_n^\top],\qquad
              \theta = \theta_0 + \lambda\,U\Sigma\operatorname{merge}(V_1^\top,\ldots,V_n^\top)

    for each weight matrix (KnOTS, Stoica et al. 2024). Updates that were trained as low-rank
    products (LoRA) move entries of a matrix together, and the same entry stands for different
    things in two of them. In the joint basis, row j of each :math:`V_i^\top` says how much task i
    uses direction j, and entries can be held against each other, as a merge by signs and
    magnitudes does.

    A merge that is linear in the task vectors gives the same with and without the change of
    basis.

    * **Scope**: each tensor with two axes or more, read as a matrix with its first axis as rows.
      Other tensors enter the merge as they are. The merge sees the :math:`V_i^\top` of all
      tensors as one model, with a base of zeros; its own scope, tie rule and sign rule hold there.
    * Directions whose singular value is zero, or beyond ``rank``, are zero in all
      :math:`V_i^\top`.
    * The order of the models matters as far as it does to the merge.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        merge: a method that takes models, ``base`` and ``weights``; give it other options with
            :func:`functools.partial`.
        rank: the most directions to keep in each matrix, for instance the number of models times
            the rank of a LoRA module; by default all.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number for each model, handed on to the merge.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a rank,
            scale or weights that cannot be used.

    >>> base = {"w": torch.zeros(2, 2)}
    >>> models = [{"w": torch.tensor([[2.0, 0.0], [2.0, 0.0]])},
    ...           {"w": torch.tensor([[0.0, 1.0], [0.0, 1.0]])}]
    >>> knots(models, base=base)["w"].round(decimals=3)  # no conflict: both stay
    tensor([[2., 1.],
            [2., 1.]])
    """
    prepare(models, base, weights, scale=scale)
    if rank is not None and rank < 1:
        raise ArgumentError("rank", found=f"{rank}", expected="at least one direction")
    bases: dict[str, Tensor] = {}
    aligned: list[dict[str, Tensor]] = [{} for _ in models]
    for name in names(base):
        vectors = differences(models, base, name)
        if is_matrix(base[name]):
            bases[name], vectors = _tied(vectors, rank)
        for own, vector in zip(aligned, vectors, strict=True):
            own[name] = vector
    origin = {name: torch.zeros_like(tensor) for name, tensor in aligned[0].items()}
    merged = merge(aligned, base=origin, weights=weights)

    def direction(name: str) -> Tensor:
        there = bases[name] @ merged[name] if name in bases else merged[name]
        return there.reshape(base[name].shape)

    return step(base, direction, scale)


def _tied(vectors: Sequence[Tensor], rank: int | None) -> tuple[Tensor, list[Tensor]]:
    """Return the joint basis, columns scaled by their singular values, and each task's part."""
    u, values, vt = singular(torch.cat([as_matrix(vector) for vector in vectors], 1))
    kept = len(values) if rank is None else min(rank, len(values))
    return u[:, :kept] * values[:kept], list(vt[:kept].chunk(len(vectors), 1))
