"""The centre of a star: the minimum that is known, its pull, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.probe import EmpiricalRisk, barrier
from sokmerge.probe.star import star


def _parabola(theta, step):
    return theta["w"].square().sum()


def test_the_centre_of_a_parabola_is_where_its_mean_gradient_vanishes():
    r"""With L = |w|^2 the mean gradient is 2 (E(1-t)^2 c + E t(1-t) mean), so c = -mean / 2."""
    ends = [{"w": torch.tensor(p)} for p in ([2.0, 0.0], [0.0, 4.0])]
    found = star(ends, loss=_parabola, steps=500, lr=0.05).centre["w"]
    torch.testing.assert_close(found, torch.tensor([-0.5, -1.0]), atol=0.15, rtol=0)


def test_every_point_is_drawn_and_every_part_of_the_line():
    ends = [{"w": torch.full((2,), float(k))} for k in range(3)]
    found = star(ends, loss=_parabola, steps=200)
    assert set(found.ends.tolist()) == {0, 1, 2} and found.losses.shape == (200,)
    assert 0 <= found.positions.min() < 0.05 and 0.95 < found.positions.max() <= 1
    np.testing.assert_allclose(found.losses[0], 2 * (found.positions[0] * found.ends[0]) ** 2,
                               rtol=1e-5)  # fmt: skip


def test_it_changes_nothing_it_is_given_and_comes_out_the_same_again():
    ends = [{"w": torch.ones(2), "count": torch.tensor(3)} for _ in range(2)]
    one, two = (star(ends, loss=_parabola, steps=5, lr=0.1, seed=3) for _ in range(2))
    assert torch.equal(one.centre["w"], two.centre["w"])
    assert not torch.equal(one.centre["w"], ends[0]["w"]) and int(one.centre["count"]) == 3
    assert all(torch.equal(end["w"], torch.ones(2)) and not end["w"].requires_grad for end in ends)
    other = star(ends, loss=_parabola, steps=5, lr=0.1, seed=4)
    assert not torch.equal(one.centre["w"], other.centre["w"])


def test_it_lowers_the_barriers_between_signs_of_one_network():
    """A product of two weights: (1, 1) and (-1, -1) are one function, with a ridge between."""
    layers = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Flatten(0)
    net = nn.Sequential(*layers).eval()
    x = torch.linspace(-1.5, 1.5, 7)
    risk = EmpiricalRisk(net, x[:, None], x, loss=F.mse_loss)

    def weights(w):
        return {"0.weight": torch.tensor(w)[:, None], "1.weight": torch.tensor(w)[None]}

    def loss(theta, step):
        return F.mse_loss(torch.func.functional_call(net, theta, (x[:, None],)), x)

    ends = [weights([1.0, 0.0]), weights([-1.0, 0.0])]
    centre = star(ends, loss=loss, start=weights([0.1, 0.9]), steps=100, lr=0.05).centre
    worst = max(barrier(risk, centre, end).loss for end in ends)
    assert worst < 0.5 * barrier(risk, *ends).loss


@pytest.mark.parametrize(
    ("points", "how", "message"),
    [
        ([], {}, "points: found no points"),
        ([1.0], {"steps": 0}, "steps: found 0"),
        ([1.0], {"lr": 0.0}, "lr: found 0.0"),
        ([float("nan")], {}, "NaN or infinite"),
        ([1.0], {"start": {"w": torch.ones(3)}}, "shape"),
    ],
)
def test_what_cannot_be_used_is_named(points, how, message):
    ends = [{"w": torch.full((2,), value)} for value in points]
    with pytest.raises(ArgumentError, match=message):
        star(ends, loss=_parabola, **how)


def test_a_centre_that_runs_away_is_an_error():
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        star([params.scale({"w": torch.ones(2)}, 1.0)], loss=lambda t, s: t["w"].sum() * torch.nan,
             steps=2)  # fmt: skip
