"""Elect one vector for all tasks; give each task a mask and a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.task_vectors.ties import elect_sign
from sokmerge.merge.task_vectors.vectors import differences, names, prepare, step
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["Modulated", "emr"]


@dataclass(frozen=True)
class Modulated:
    r"""One unified task vector, and what turns it into each task's network.

    Attributes:
        base: parameters of the network from which the models started.
        unified: the elected vector, for each entry that is floating point.
        masks: for each task a boolean tensor for each of these entries: one bit a parameter.
        rescalers: for each task a scalar, on the device of the models.
    """

    base: Params
    unified: dict[str, Tensor]
    masks: tuple[dict[str, Tensor], ...]
    rescalers: tuple[Tensor, ...]

    def task(self, index: int) -> Params:
        r"""Return one task's parameters, :math:`\theta_0 + \lambda_i\, m_i\odot\tau`.

        Raises:
            ArgumentError: there is no task of that index.
        """
        if index not in range(len(self.masks)):
            raise ArgumentError(
                "index", found=f"{index}", expected=f"a task from 0 to {len(self.masks) - 1}"
            )
        mask, rescaler = self.masks[index], self.rescalers[index]
        return step(
            self.base,
            lambda name: rescaler * wide(self.unified[name]).where(mask[name], 0.0),
            1.0,
        )


@method(
    branch="weight aggregation",
    paper="huang2024emr",
    needs=("base",),
    returns="params per task",
    scope="entry",
    equation=r"\theta_i=\theta_0+\lambda_i\,m_i\odot\tau,"
    r"\ \tau=\gamma\odot\max_{\tau_i\gamma>0}|\tau_i|,"
    r"\ \gamma=\operatorname{sgn}\textstyle\sum_i\tau_i",
    signs="the sign with the greater total mass is elected; an entry whose sign loses is masked "
    "for its task, and at equal mass the unified vector is zero",
)
def emr(models: Sequence[Params], *, base: Params) -> Modulated:
    r"""Elect a unified task vector, and give each task a mask and a rescaler.

    .. math:: \tau = \gamma\odot\max_{i:\,\tau_i\gamma>0}|\tau_i|,\qquad
              m_i = \mathbb 1[\tau_i\,\tau>0],\qquad
              \lambda_i = \frac{\lVert\tau_i\rVert_1}{\lVert m_i\odot\tau\rVert_1}

    where :math:`\gamma=\operatorname{sgn}\sum_i\tau_i` is the elected sign (EMR-Merging: elect,
    mask and rescale; Huang et al. 2024). The result is not one network but one vector and n light
    modulators: task i's network is :math:`\theta_0+\lambda_i\,m_i\odot\tau`, whose step is as
    long as :math:`\tau_i`, in the 1-norm.

    * **Scope**: signs, magnitudes and masks entry by entry; a rescaler over a whole model.
    * **Sign rule**: where the elected sign is 0 the unified vector is 0. An entry whose sign
      loses, or that its task did not move, is masked for that task.
    * Of a task with nothing left under its mask the rescaler is 0: it gets the base.
    * The order of the models does not matter but for the order of the tasks.

    Args:
        models: parameters of networks fine-tuned from the base.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.

    Raises:
        ArgumentError: no models, or models and base that do not match or are not finite.

    >>> base = {"w": torch.zeros(3)}
    >>> models = [{"w": torch.tensor([1.0, 2.0, 0.0])}, {"w": torch.tensor([3.0, -1.0, 0.0])}]
    >>> found = emr(models, base=base)
    >>> found.unified["w"], found.task(1)["w"]
    (tensor([3., 2., 0.]), tensor([4., 0., 0.]))
    """
    prepare(models, base)
    ones = [1.0] * len(models)
    unified: dict[str, Tensor] = {}
    masks: tuple[dict[str, Tensor], ...] = tuple({} for _ in models)
    lengths: list[list[Tensor]] = [[] for _ in models]
    covered: list[list[Tensor]] = [[] for _ in models]
    for name in names(base):
        vectors = differences(models, base, name)
        sign = elect_sign(vectors, ones)
        agreeing = torch.stack([tau.abs().where(tau * sign > 0, 0.0) for tau in vectors])
        elected = sign * agreeing.amax(0)
        unified[name] = elected.to(torch.promote_types(base[name].dtype, torch.float32))
        for i, tau in enumerate(vectors):
            masks[i][name] = tau * sign > 0
            lengths[i].append(tau.abs().sum())
            covered[i].append(elected.abs().where(masks[i][name], 0.0).sum())
    rescalers = tuple(_ratio(length, cover) for length, cover in zip(lengths, covered, strict=True))
    return Modulated(base, unified, masks, rescalers)


def _ratio(lengths: Sequence[Tensor], covered: Sequence[Tensor]) -> Tensor:
    if not lengths:  # no entry is floating point
        return torch.zeros(())
    length, cover = torch.stack(list(lengths)).sum(), torch.stack(list(covered)).sum()
    return torch.where(cover > 0, length / cover, 0.0)
