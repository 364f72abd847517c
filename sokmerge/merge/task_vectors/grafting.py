"""Find a small part of a task vector that does most of its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.merge.task_vectors.tall_masks import apply_mask
from sokmerge.merge.task_vectors.ties import _thresholds
from sokmerge.merge.task_vectors.vectors import differences, names, prepare, require_between
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, wide

__all__ = ["Grafts", "graft_mask", "grafting"]


@dataclass(frozen=True)
class Grafts:
    r"""A mask for each task, and the networks between which it chooses.

    Attributes:
        base: parameters of the network from which the models started.
        models: parameters of the network of each task.
        masks: for each task a boolean tensor for each floating-point entry.
    """

    base: Params
    models: tuple[Params, ...]
    masks: tuple[dict[str, Tensor], ...]

    def task(self, index: int) -> Params:
        r"""Return one task's grafted network: its model under the mask, the base elsewhere.

        Raises:
            ArgumentError: there is no task of that index.
        """
        if index not in range(len(self.masks)):
            raise ArgumentError(
                "index", found=f"{index}", expected=f"a task from 0 to {len(self.masks) - 1}"
            )
        return apply_mask(self.masks[index], self.models[index], self.base)


def graft_mask(
    model: Params,
    base: Params,
    loss: Callable[[dict[str, Tensor]], Tensor],
    density: float,
    *,
    steps: int = 100,
    lr: float = 0.1,
    penalty: float = 0.3,
    start: float = 3.0,
) -> dict[str, Tensor]:
    r"""Learn which entries of a network, put into its base, do best at a task.

    .. math:: g^* = \arg\min_g\ L\bigl(\theta_0+\sigma(g)\odot\tau\bigr)
              + \frac{\alpha}{sn}\sum_j\sigma(g_j),\qquad
              m = \mathbb 1\bigl[g^*\text{ is among the } sn \text{ largest}\bigr]

    where s is the density and n the number of entries. The descent starts from the mask that keeps
    the entries which moved furthest, :math:`g=\pm g_0`.

    **Tie rule**: logits as large as the smallest one to keep are all kept.

    Args:
        model: parameters of the network fine-tuned on the task.
        base: parameters of the network from which it started.
        loss: a differentiable function of parameters, the task's loss.
        density: s, the share of entries to keep, in [0, 1].
        steps: steps of Adam on the logits.
        lr: their rate.
        penalty: :math:`\alpha\ge0`, the price of a mask that is as large as the density allows, in
            the unit of the loss.
        start: :math:`g_0>0`.

    Returns:
        A boolean tensor for each entry that is floating point.

    Raises:
        ArgumentError: the parameters do not match or are not finite, or numbers that cannot be
            used, or logits that are no longer finite.

    >>> base, model = {"w": torch.zeros(3)}, {"w": torch.tensor([3.0, -2.0, 1.0])}
    >>> graft_mask(model, base, lambda p: p["w"][0] + p["w"][1], 1 / 3)["w"]
    tensor([False,  True, False])
    """
    prepare([model], base)
    require_between("density", density, 0, 1, bounds="[]")
    require_between("penalty", penalty, 0, float("inf"), bounds="[)")
    require_between("start", start, 0, float("inf"), bounds="()")
    require_schedule(steps, lr)
    tau = {name: differences([model], base, name)[0] for name in names(base)}
    if density == 0:
        return {name: torch.zeros_like(t, dtype=torch.bool) for name, t in tau.items()}
    largest = _largest(tau, density)
    size = density * max(1, sum(t.numel() for t in tau.values()))

    def objective(logits: dict[str, Tensor], number: int) -> Tensor:
        masks = {name: g.sigmoid() for name, g in logits.items()}
        point = {
            name: (wide(t) + masks[name] * tau[name]).to(t.dtype) if name in tau else t
            for name, t in base.items()
        }
        return loss(point) + penalty * torch.stack([m.sum() for m in masks.values()]).sum() / size

    logits = {
        name: torch.full_like(kept, start, dtype=torch.float32).where(kept, -start)
        for name, kept in largest.items()
    }
    found = descend(logits, objective, steps=steps, lr=lr)
    # With all logits above zero, the largest ones are those of the largest magnitude.
    return _largest({name: wide(g).sigmoid() for name, g in found.items()}, density)


@method(
    branch="weight aggregation",
    paper="panigrahi2023task",
    needs=("base", "data"),
    returns="params per task",
    scope="model",
    equation=r"\theta_i=\theta_0+m_i\odot\tau_i,\ m_i\approx\arg\min_{\lVert m\rVert_0\le sn}"
    r"L_i(\theta_0+m\odot\tau_i)",
    ties="logits as large as the smallest one to keep are all kept",
)
def grafting(
    models: Sequence[Params],
    *,
    base: Params,
    losses: Sequence[Callable[[dict[str, Tensor]], Tensor]],
    density: float = 0.02,
    steps: int = 100,
    lr: float = 0.1,
    penalty: float = 0.3,
) -> Grafts:
    r"""Graft a small part of each network onto the base.

    .. math:: \theta_i = \theta_0 + m_i\odot(\theta_i-\theta_0),\qquad
              m_i \approx \arg\min_{\lVert m\rVert_0\le sn} L_i(\theta_0+m\odot\tau_i)

    (Skill localisation, Panigrahi et al. 2023.) The mask is learned through a sigmoid by
    :func:`~sokmerge.merge.task_vectors.graft_mask`; nothing else is trained. A full mask gives the
    fine-tuned network, an empty one the base. The paper flips entries of the mask that keeps
    those which moved furthest, and rounds; here the descent starts from the same mask, a price on
    its size keeps it small, and the largest logits are kept, so that the density is met.

    * **Scope**: the entries of a whole model are ranked together.
    * **Tie rule**: logits as large as the smallest one to keep are all kept.

    Args:
        models: parameters of networks fine-tuned from the base, one for each task.
        base: parameters of the network from which they started. Entries that are not floating
            point are taken from it.
        losses: for each task a differentiable function of parameters that returns a scalar.
        density: s, the share of entries to graft, in [0, 1].
        steps: steps of Adam for each mask.
        lr: their rate.
        penalty: the price of a mask as large as the density allows, in the unit of the loss.

    Raises:
        ArgumentError: no models, models and base that do not match or are not finite, another
            number of losses, or numbers that cannot be used.

    >>> base, model = {"w": torch.zeros(3)}, {"w": torch.tensor([3.0, -2.0, 1.0])}
    >>> found = grafting([model], base=base, losses=[lambda p: p["w"][1]], density=1 / 3)
    >>> found.task(0)["w"]
    tensor([ 0., -2.,  0.])
    """
    prepare(models, base)
    if len(losses) != len(models):
        raise ArgumentError(
            "losses",
            found=f"{len(losses)} losses for {len(models)} models",
            expected="one for each model, in the same order",
        )
    options = {"steps": steps, "lr": lr, "penalty": penalty}
    masks = [
        graft_mask(model, base, loss, density, **options)
        for model, loss in zip(models, losses, strict=True)
    ]
    return Grafts(base, tuple(models), tuple(masks))


def _largest(vector: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    thresholds = _thresholds(vector, density, "model")
    return {name: t.abs() >= thresholds[name] for name, t in vector.items()}
