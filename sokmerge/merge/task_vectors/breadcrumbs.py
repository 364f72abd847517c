"""Mask the largest and the smallest entries of task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.vectors import (
    differences,
    kth_smallest,
    prepare,
    require_between,
    step,
    weighted_sum,
)
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params

__all__ = ["breadcrumbs"]


@method(
    branch="weight aggregation",
    paper="davari2023model",
    needs=("base",),
    scope="tensor",
    equation=r"\theta=\theta_0+\lambda\textstyle\sum_i w_i\,m_i\odot\tau_i,"
    r"\ m_i=\mathbb 1[\text{neither small nor outlying}]",
    ties="an entry as large as one that is kept is kept as well",
    signs="left as they are; sums may cancel",
)
def breadcrumbs(
    models: Sequence[Params],
    *,
    base: Params,
    smallest: float = 0.85,
    largest: float = 0.01,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Params:
    r"""Add task vectors without their outliers and without their negligible entries.

    .. math:: \theta = \theta_0 + \lambda\sum_i w_i\, m_i\odot(\theta_i-\theta_0)

    The mask :math:`m_i` is 0 at the share ``smallest`` of entries of least magnitude and at the
    share ``largest`` of entries of greatest magnitude, and 1 between them (Model Breadcrumbs,
    Davari and Belilovsky 2023). With both shares 0 this is task arithmetic.

    * **Scope**: each tensor of each task vector by itself. (The paper masks layer by layer; here
      the weight and the bias of a layer are two tensors.)
    * **Counts**: of n entries, ``round(smallest * n)`` and ``round(largest * n)`` are masked, but
      at least one entry of each tensor is kept: the largest of those not masked as outliers.
    * **Tie rule**: an entry as large as one that is kept is kept as well, so fewer may be masked.
    * There is no sign rule: signs are left as they are, and sums may cancel.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        smallest: share of small entries to mask, in [0, 1).
        largest: share of large entries to mask, in [0, 1); the two sum to less than 1. The
            defaults are this library's, to be chosen anew for other networks.
        scale: :math:`\lambda`, the length of the common step.
        weights: one number of any sign for each model, by default all 1.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, or shares,
            a scale or weights that cannot be used.

    >>> import torch
    >>> base, model = {"w": torch.zeros(5)}, {"w": torch.tensor([0.1, -2.0, 90.0, 3.0, -0.2])}
    >>> breadcrumbs([model], base=base, smallest=0.4, largest=0.2)["w"]
    tensor([ 0., -2.,  0.,  3.,  0.])
    """
    weights = prepare(models, base, weights, scale=scale)
    require_between("smallest", smallest, 0, 1, bounds="[)")
    require_between("largest", largest, 0, 1, bounds="[)")
    if smallest + largest >= 1:
        raise ArgumentError(
            "smallest and largest",
            found=f"{smallest} and {largest}",
            expected="shares that sum to less than 1",
        )

    def direction(name: str) -> Tensor:
        kept = [_between(tau, smallest, largest) for tau in differences(models, base, name)]
        return weighted_sum(kept, weights)

    return step(base, direction, scale)


def _between(tensor: Tensor, smallest: float, largest: float) -> Tensor:
    n = tensor.numel()
    if n == 0:
        return tensor
    above = min(round(largest * n), n - 1)
    below = min(round(smallest * n), n - 1 - above)
    magnitudes = tensor.abs()
    least, most = kth_smallest(magnitudes, below + 1), kth_smallest(magnitudes, n - above)
    return tensor.where((magnitudes >= least) & (magnitudes <= most), 0.0)
