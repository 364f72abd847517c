r"""Membership inference: whether a network was trained on an example, told by its loss.

A network that has fitted an example has a lower loss on it than on others of its kind. The
attack says "member" where the loss is low (Yeom et al. 2017). It is the weakest of its family: it
bounds from below what a network gives away, never from above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sokmerge.params import Params, host
from sokmerge.probe.risk import EmpiricalRisk
from sokmerge.probe.roc import AUC, auc, roc

__all__ = ["Membership", "loss_scores", "membership"]


@dataclass(frozen=True)
class Membership:
    """How well the loss of a network tells members from others.

    Attributes:
        auc: area under the ROC curve of the negated loss.
        advantage: true-positive less false-positive share of the attack whose threshold is the
            members' mean loss, which a published training loss gives away; 0 is none, 1 is all.
        true_positive: share of members found at ``false_positive``.
        false_positive: share of others that may be taken for members.
        gap: mean loss of the others less that of the members.
    """

    auc: AUC
    advantage: float
    true_positive: float
    false_positive: float
    gap: float


def loss_scores(risk: EmpiricalRisk, params: Params) -> Tensor:
    """Return the score of membership of each example of a risk, its negated loss, shape (n,)."""
    return -risk.per_example(params)[0]


def membership(
    members: EmpiricalRisk, others: EmpiricalRisk, params: Params, *, false_positive: float = 0.01
) -> Membership:
    r"""Attack a network by the threshold on its loss.

    .. math:: \text{Adv} = \Pr\bigl[\ell(x)\le\tau \mid x\text{ a member}\bigr]
              - \Pr\bigl[\ell(x)\le\tau \mid x\text{ no member}\bigr],
              \qquad \tau = \operatorname{mean}_{x\text{ a member}}\ell(x)

    (Membership advantage and the attack by mean training loss: Yeom et al. 2017.) What matters to
    a single person is how many members are found at few false alarms, which an average hides
    (Carlini et al. 2021); ``true_positive`` says it.

    Args:
        members: the network on examples that it was trained on.
        others: the same network on examples of the same distribution that it was not trained on.
            A difference of the two distributions would be taken for memory.
        params: the network.
        false_positive: share of false alarms for ``true_positive``.

    >>> import torch
    >>> net, labels = torch.nn.Linear(2, 2).eval(), torch.tensor([0, 1])
    >>> seen, unseen = (EmpiricalRisk(net, x, labels) for x in (torch.eye(2), torch.zeros(2, 2)))
    >>> found = membership(seen, unseen, {"weight": 9 * torch.eye(2), "bias": torch.zeros(2)})
    >>> found.auc.value, found.advantage
    (1.0, 1.0)
    """
    inside, outside = loss_scores(members, params), loss_scores(others, params)
    known, unknown = -host(inside), -host(outside)
    threshold = known.mean()
    caught = roc(inside, outside).at(false_positive)
    return Membership(
        auc(inside, outside),
        float(np.mean(known <= threshold) - np.mean(unknown <= threshold)),
        caught,
        false_positive,
        float(unknown.mean() - threshold),
    )
