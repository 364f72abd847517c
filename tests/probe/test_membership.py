"""Membership inference on a network whose losses are known by heart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sokmerge.probe import EmpiricalRisk
from sokmerge.probe.membership import loss_scores, membership

MODULE = nn.Linear(1, 1, bias=False).eval()


def _identity_loss(outputs, targets, reduction):
    return outputs[:, 0] - targets


def _risk(losses):
    losses = torch.tensor(losses, dtype=torch.float32)
    return EmpiricalRisk(MODULE, losses[:, None], torch.zeros(len(losses)), loss=_identity_loss)


POINT = {"weight": torch.ones(1, 1)}


def test_the_score_is_the_loss_with_the_other_sign():
    assert loss_scores(_risk([1.0, 3.0]), POINT).tolist() == [-1, -3]


def test_the_threshold_is_the_mean_loss_of_the_members():
    members, others = _risk([0.0, 1.0, 2.0, 9.0]), _risk([2.0, 4.0, 8.0, 6.0])
    found = membership(members, others, POINT, false_positive=0.25)  # the mean is 3
    assert found.advantage == pytest.approx(3 / 4 - 1 / 4)
    assert found.gap == pytest.approx(5 - 3)
    # Members win 4 + 4 + 3.5 + 0 of 16 comparisons; at one false alarm, 2.0, three are caught.
    assert found.auc.value == pytest.approx(11.5 / 16)
    assert (found.true_positive, found.false_positive) == (0.75, 0.25)


def test_a_network_that_does_not_tell_them_apart_gives_nothing_away():
    same = _risk([1.0, 2.0, 3.0])
    found = membership(same, same, POINT)
    assert (found.auc.value, found.advantage, found.gap) == (0.5, 0, 0)


def test_memory_is_seen_where_there_is_some():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 200, generator=generator), torch.arange(40) % 2
    fitted = torch.linalg.lstsq(x[:20], 2.0 * y[:20, None] - 1).solution
    net = nn.Linear(200, 2, bias=False).eval()
    point = {"weight": torch.stack([-fitted[:, 0], fitted[:, 0]])}
    found = membership(
        EmpiricalRisk(net, x[:20], y[:20]), EmpiricalRisk(net, x[20:], y[20:]), point
    )
    assert found.auc.value > 0.7 and found.advantage > 0.3 and found.gap > 0
