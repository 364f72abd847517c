"""Find which entries of a merged network each task uses, and keep those that several use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.vectors import (
    differences,
    names,
    prepare,
    step,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, require_finite, require_matching

__all__ = ["apply_mask", "consensus", "tall_mask"]


def tall_mask(model: Params, base: Params, merged: Params, scale: float = 0.4) -> dict[str, Tensor]:
    r"""Return the mask of the entries of a merged network that a task uses.

    .. math:: m = \mathbb 1\bigl[\,|\theta_i-\theta_0| > \lambda\,|\theta-\theta_i|\,\bigr]

    An entry is used if the merged network is close to the task's, measured by how far the task
    moved it (TALL-masks, Wang et al. 2024). Entry by entry; **tie rule**: equality is not use, so
    an entry that the task did not move is never used.

    Args:
        model: parameters of the network fine-tuned on the task.
        base: parameters of the network from which it started.
        merged: parameters of the merged network.
        scale: :math:`\lambda\ge 0`; the larger, the fewer entries are used.

    Returns:
        A boolean tensor for each entry that is floating point, on the device of the models.

    Raises:
        ArgumentError: the parameters do not match or are not finite, or the scale is negative or
            not finite.

    >>> base, model = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, 1.0, 0.0])}
    >>> tall_mask(model, base, {"w": torch.tensor([2.0, 9.0, 1.0])})["w"]
    tensor([ True, False, False])
    """
    require_matching(base=base, model=model, merged=merged)
    require_finite(base=base, model=model, merged=merged)
    _require_scales([scale], "scale")
    masks = {}
    for name in names(base):
        tau, multitask = differences([model, merged], base, name)
        masks[name] = _used(tau, multitask, scale)
    return masks


def apply_mask(mask: Mapping[str, Tensor], merged: Params, base: Params) -> dict[str, Tensor]:
    r"""Return the merged network where the mask is True and the base elsewhere.

    .. math:: \theta_0 + m\odot(\theta-\theta_0)

    With the mask of one task this recovers that task's network from the merged one. It is exact:
    a full mask gives the merged network, an empty one the base.

    Args:
        mask: a boolean tensor for each entry that is floating point.
        merged: parameters of the merged network.
        base: parameters of the base. Entries without a mask are taken from it.

    Raises:
        ArgumentError: the parameters do not match, or the mask has other keys or shapes.

    >>> mask = {"w": torch.tensor([True, False])}
    >>> apply_mask(mask, {"w": torch.ones(2)}, {"w": torch.zeros(2)})["w"]
    tensor([1., 0.])
    """
    require_matching(base=base, merged=merged)
    expected = {name: tuple(base[name].shape) for name in names(base)}
    found = {name: tuple(m.shape) for name, m in mask.items()}
    if found != expected:
        wrong = sorted({k for k, _ in expected.items() ^ found.items()})
        raise ArgumentError(
            "mask",
            found=f"other keys or shapes at {wrong[:4]}",
            expected="one tensor for each floating entry of base, of its shape",
        )
    return {k: merged[k].where(mask[k], t) if k in mask else t for k, t in base.items()}


@method(
    branch="weight aggregation",
    paper="wang2024localizing",
    needs=("base",),
    scope="entry",
    equation=r"\theta=\theta_0+\lambda\,\mathbb 1\bigl[\textstyle\sum_i m_i\ge k\bigr]\odot\tau,"
    r"\ m_i=\mathbb 1\bigl[|\tau_i|>\lambda_i|\tau-\tau_i|\bigr]",
    ties="equality is not use: an entry that the task did not move is never used",
    signs="left as they are; sums may cancel",
)
def consensus(
    models: Sequence[Params],
    *,
    base: Params,
    at_least: int = 2,
    mask_scale: float | Sequence[float] = 0.4,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add task vectors, and keep the entries that at least k tasks use.

    .. math:: \theta = \theta_0 + \lambda\; c\odot\tau,\qquad
              \tau = \sum_i w_i\,(\theta_i-\theta_0),\qquad
              c = \mathbb 1\Bigl[\sum_i m_i \ge k\Bigr]

    where :math:`m_i` is the :func:`~sokmerge.merge.task_vectors.tall_mask` of task i in
    :math:`\theta_0+\tau`, the sum before it is scaled by :math:`\lambda` (Consensus Merging, Wang
    et al. 2024). k = 2 removes what no task uses and what one task alone uses, k = 1 only the
    former; k = 0 is task arithmetic.

    * **Scope**: entry by entry.
    * **Tie rule**: as for one mask, equality is not use.
    * There is no sign rule: signs are left as they are.
    * The order of the models does not matter.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        at_least: k, from 0 to the number of models.
        mask_scale: the threshold of the masks, one non-negative number or one for each model.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or numbers
            that cannot be used.

    >>> base = {"w": torch.zeros(3)}
    >>> models = [{"w": torch.tensor([1.0, 5.0, 0.0])}, {"w": torch.tensor([1.0, 0.0, 0.0])}]
    >>> consensus(models, base=base)["w"]
    tensor([2., 0., 0.])
    """
    weights = prepare(models, base, weights, scale=scale)
    if at_least not in range(len(models) + 1):
        raise ArgumentError(
            "at_least",
            found=f"{at_least} for {len(models)} models",
            expected="a whole number from 0 to the number of models",
        )
    single = isinstance(mask_scale, int | float)
    scales = [float(mask_scale)] * len(models) if single else [float(s) for s in mask_scale]
    if len(scales) != len(models):
        raise ArgumentError(
            "mask_scale",
            found=f"{len(scales)} numbers for {len(models)} models",
            expected="one number, or one for each model",
        )
    _require_scales(scales, "mask_scale")

    def direction(name: str) -> Tensor:
        vectors = differences(models, base, name)
        total = weighted_sum(vectors, weights)
        uses = torch.stack([_used(t, total, s) for t, s in zip(vectors, scales, strict=True)])
        return total.where(uses.sum(0) >= at_least, 0.0)

    return step(base, direction, scale)


def _used(tau: Tensor, multitask: Tensor, scale: float) -> Tensor:
    return tau.abs() > scale * (multitask - tau).abs()


def _require_scales(scales: Sequence[float], name: str) -> None:
    for scale in scales:
        if not 0 <= scale < float("inf"):
            raise ArgumentError(name, found=f"{scale}", expected="a finite, non-negative number")
