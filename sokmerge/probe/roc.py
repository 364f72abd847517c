r"""How well a score tells two groups apart: the ROC curve, and the area under it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.params import host

__all__ = ["AUC", "ROC", "auc", "roc"]


@dataclass(frozen=True)
class AUC:
    """The area under an ROC curve.

    Attributes:
        value: in [0, 1]; 0.5 is what a score without information has on average.
        stderr: its standard error; NaN if a group has one member.
        positives, negatives: sizes of the two groups.
    """

    value: float
    stderr: float
    positives: int
    negatives: int


@dataclass(frozen=True, eq=False)
class ROC:
    """An ROC curve, from the strictest threshold to the loosest.

    Attributes:
        false_positive: share of the negatives that are called positive, ascending from 0 to 1.
        true_positive: share of the positives that are called positive.
        threshold: who has at least this score is called positive; the first one is infinite.
    """

    false_positive: np.ndarray
    true_positive: np.ndarray
    threshold: np.ndarray

    def at(self, false_positive: float) -> float:
        """Return the largest true-positive share at no more than a share of false positives.

        No randomisation between thresholds: a share that no threshold reaches exactly is rounded
        down to one that some threshold reaches.
        """
        reached = self.false_positive <= false_positive + 1e-12
        return float(self.true_positive[reached].max())


def auc(positives: Tensor, negatives: Tensor) -> AUC:
    r"""Return the area under the ROC curve of a score, with its standard error.

    .. math:: \text{AUC} = \frac1{mn}\sum_{i=1}^m\sum_{j=1}^n
              \Bigl(\mathbb 1[x_i>y_j]+\tfrac12\,\mathbb 1[x_i=y_j]\Bigr)

    is the probability that a positive scores above a negative, ties counted half: the statistic of
    Mann and Whitney (1947), divided by mn. With the placements :math:`v_i`, the share of
    negatives below the positive i, and :math:`w_j`, the share of positives above the negative j,
    the standard error is :math:`\sqrt{s_v^2/m + s_w^2/n}` (DeLong et al. 1988). It takes the
    members of both groups for independent draws.

    Args:
        positives: scores, shape (m,); high speaks for positive.
        negatives: scores, shape (n,).

    Raises:
        ArgumentError: a group that is empty or not of one dimension.

    >>> import torch
    >>> auc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])).value
    0.875
    """
    x, y = _scores(positives, negatives)
    m, n = len(x), len(y)
    value = float(stats.mannwhitneyu(x, y).statistic) / (m * n)
    # Ranks among all less ranks within the own group count the others below.
    ranks = stats.rankdata(np.concatenate([x, y]))
    above = (ranks[:m] - stats.rankdata(x)) / n
    below = (ranks[m:] - stats.rankdata(y)) / m
    spread = math.nan
    if m > 1 and n > 1:
        spread = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return AUC(value, spread, m, n)


def roc(positives: Tensor, negatives: Tensor) -> ROC:
    """Return the ROC curve of a score: one point for each value that occurs, and the origin.

    Args:
        positives: scores, shape (m,); high speaks for positive.
        negatives: scores, shape (n,).

    Raises:
        ArgumentError: a group that is empty or not of one dimension.

    >>> import torch
    >>> curve = roc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0]))
    >>> curve.false_positive.tolist(), curve.true_positive.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    x, y = _scores(positives, negatives)
    values = np.unique(np.concatenate([x, y]))[::-1]
    passed = [
        1 - np.searchsorted(np.sort(group), values, side="left") / len(group) for group in (y, x)
    ]
    false_positive, true_positive = (np.concatenate([[0.0], share]) for share in passed)
    return ROC(false_positive, true_positive, np.concatenate([[math.inf], values]))


def _scores(positives: Tensor, negatives: Tensor) -> tuple[np.ndarray, np.ndarray]:
    for name, group in (("positives", positives), ("negatives", negatives)):
        if group.ndim != 1 or not len(group):
            raise ArgumentError(
                name, found=f"shape {tuple(group.shape)}", expected="one dimension, not empty"
            )
    return host(positives), host(negatives)
