"""Trim, elect signs, and average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.vectors import (
    differences,
    kth_smallest,
    masked_vector,
    names,
    prepare,
    require_between,
    step,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["disjoint_mean", "elect_sign", "ties", "trim"]

Scope = Literal["model", "tensor"]


def trim(vector: Params, density: float, *, scope: Scope = "model") -> dict[str, Tensor]:
    r"""Keep the largest entries of a task vector and set the others to zero.

    Of n entries those are kept whose magnitude is at least the k-th largest,
    :math:`k = \max(1, \operatorname{round}(\text{density}\cdot n))`.

    **Scope.** ``"model"`` ranks all entries of the vector together, ``"tensor"`` the entries of
    each tensor among themselves.
    **Ties.** Entries that are as large as the k-th largest are all kept, so there may be more
    than k; which ones are kept depends on values only, not on their places.

    Args:
        vector: a task vector. Entries that are not floating point are left as they are.
        density: the share to keep, in (0, 1].
        scope: over what the entries are ranked.

    Raises:
        ArgumentError: the density or the scope is none of these.

    >>> trim({"w": torch.tensor([0.1, -3.0, 2.0, 0.2, -0.3])}, 0.4)["w"]
    tensor([ 0., -3.,  2.,  0.,  0.])
    >>> trim({"w": torch.tensor([1.0, -1.0, 0.5])}, 0.4)["w"]
    tensor([ 1., -1.,  0.])
    """
    thresholds = _thresholds(vector, density, scope)
    return masked_vector(vector, {k: vector[k].abs() >= t for k, t in thresholds.items()})


def elect_sign(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Return the sign with the greater total mass, entry by entry.

    .. math:: \gamma = \operatorname{sgn}\Bigl(\sum_i w_i\,\tau_i\Bigr)

    **Sign rule.** Where the masses of the two signs are equal the elected sign is 0.

    >>> elect_sign([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-3.0, 2.0, -1.0])], [1.0, 1.0])
    tensor([-1.,  1.,  0.])
    """
    return weighted_sum(tensors, weights).sign()


def disjoint_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Return, entry by entry, the weighted mean of the values that have the elected sign.

    .. math:: \tau = \frac{\sum_{i\in A} w_i\,\tau_i}{\sum_{i\in A} w_i},
              \qquad A = \{i : \tau_i\,\gamma > 0\}

    Zeros have no sign: they are in no A and do not pull the mean down. Where A is empty, the
    elected sign being 0 or all values zero, the mean is 0.

    >>> disjoint_mean([torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-3.0, -1.0, 2.0])], [1.0, 1.0])
    tensor([-3.,  0.,  2.])
    """
    elected = elect_sign(tensors, weights)
    agree = [tensor * elected > 0 for tensor in tensors]
    total = weighted_sum([t.where(a, 0.0) for t, a in zip(tensors, agree, strict=True)], weights)
    share = weighted_sum([a.to(total.dtype) for a in agree], weights)
    return torch.where(share > 0, total / share, 0.0)


@method(
    branch="weight aggregation",
    paper="yadav2023ties",
    needs=("base",),
    scope="model",
    equation=r"\theta=\theta_0+\lambda\operatorname*{mean}_{\operatorname{sgn}\hat\tau_i=\gamma}\hat\tau_i,"
    r"\ \gamma=\operatorname{sgn}\textstyle\sum_i w_i\hat\tau_i",
    ties="entries as large as the k-th largest are all kept",
    signs="the sign with the greater total mass is elected, and only entries of that sign are "
    "averaged; at equal mass the result is zero",
)
def ties(
    models: Sequence[Params],
    *,
    base: Params,
    density: float = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    scope: Scope = "model",
) -> Params:
    r"""Merge task vectors by trimming them, electing signs, and averaging what agrees.

    .. math:: \theta = \theta_0 + \lambda\,\tau,\qquad
              \tau = \operatorname{disjoint\ mean}_i\ \operatorname{trim}(\theta_i - \theta_0)

    (TIES-Merging, Yadav et al. 2023.) :func:`~sokmerge.merge.task_vectors.trim` keeps the share
    ``density`` of the largest entries, :func:`~sokmerge.merge.task_vectors.elect_sign` and
    :func:`~sokmerge.merge.task_vectors.disjoint_mean` settle conflicts.

    With density 1 and no conflicting signs or zeros, :math:`\tau` is the mean of the task
    vectors; a scale equal to the number of models then gives their sum, as in task arithmetic.

    * **Scope**: trimming ranks all parameters of a model as one vector, or with
      ``scope="tensor"`` each tensor by itself. Signs are elected entry by entry.
    * **Tie rule**: magnitudes equal to the smallest one to keep are all kept.
    * **Sign rule**: where positive and negative mass are equal, the entry keeps the base's value.
    * The order of the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        density: the share of each task vector to keep, in (0, 1].
        scale: :math:`\lambda`, the length of the step.
        weights: one non-negative number for each model, by default all equal. They count both
            in the election and in the mean; only their proportions matter.
        scope: ``"model"`` or ``"tensor"``.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or a
            density, scale, scope or weights that cannot be used.

    >>> base = {"w": torch.zeros(4)}
    >>> models = [{"w": torch.tensor([4.0, 3.0, 0.1, 0.0])},
    ...           {"w": torch.tensor([2.0, -5.0, 0.0, 0.1])}]
    >>> ties(models, base=base, density=0.5)["w"]
    tensor([ 3., -5.,  0.,  0.])
    """
    weights = prepare(models, base, weights, scale=scale, negative=False)
    thresholds = []
    for model in models:
        vector = {name: differences([model], base, name)[0] for name in names(base)}
        thresholds.append(_thresholds(vector, density, scope))

    def direction(name: str) -> Tensor:
        trimmed = [
            tau.where(tau.abs() >= threshold[name], 0.0)
            for tau, threshold in zip(differences(models, base, name), thresholds, strict=True)
        ]
        return disjoint_mean(trimmed, weights)

    return step(base, direction, scale)


def _thresholds(vector: Params, density: float, scope: Scope) -> dict[str, Tensor]:
    """Return for each floating tensor the smallest magnitude to keep, a scalar on its device."""
    require_between("density", density, 0, 1, bounds="(]")
    if scope not in ("model", "tensor"):
        raise ArgumentError("scope", found=repr(scope), expected="'model' or 'tensor'")
    magnitudes = {name: vector[name].abs() for name in names(vector) if vector[name].numel()}
    empty = {name: wide(vector[name].new_zeros(())) for name in names(vector)}
    if not magnitudes:
        return empty
    if scope == "tensor":
        return empty | {name: _kth_largest(m, density) for name, m in magnitudes.items()}
    together = torch.cat([m.flatten() for m in magnitudes.values()])
    return empty | dict.fromkeys(magnitudes, _kth_largest(together, density))


def _kth_largest(magnitudes: Tensor, density: float) -> Tensor:
    kept = max(1, round(density * magnitudes.numel()))
    return kth_smallest(magnitudes, magnitudes.numel() - kept + 1)
